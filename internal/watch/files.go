package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Moving blocks and changing flags raise no event, but who does it has the image open
// before and closes it afterwards.
const (
	imageMask = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_OPEN | unix.IN_CLOSE_WRITE | unix.IN_CLOSE_NOWRITE |
		unix.IN_MOVE_SELF | unix.IN_DELETE_SELF
	dirMask = unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_CREATE | unix.IN_DELETE | unix.IN_DELETE_SELF |
		unix.IN_MOVE_SELF | unix.IN_ONLYDIR
)

// FileHints is told what inotify says.
type FileHints interface {
	// Touched names the image's key and the event.
	Touched(key, event string)
	// Lost says that events of the image are no longer delivered, or were dropped;
	// an empty key means all images.
	Lost(key, why string)
}

// Files watches images and their directories with inotify.
type Files struct {
	hints  FileHints
	poller *poller
	buf    []byte

	mu     sync.Mutex
	images map[int32]string              // watch descriptor -> key
	dirs   map[int32]map[string][]string // watch descriptor -> file name -> keys
	keys   map[string]fileWatch
}

type fileWatch struct {
	image, dir int32
	name       string
}

// NewFiles begins to listen.
func NewFiles(hints FileHints) (*Files, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	w := &Files{
		hints: hints, buf: make([]byte, 64<<10), images: map[int32]string{}, dirs: map[int32]map[string][]string{}, keys: map[string]fileWatch{},
	}
	if w.poller, err = newPoller(fd, unix.POLLIN, func() bool { return w.read(fd) }); err != nil {
		return nil, err
	}
	return w, nil
}

// Close ends all watches.
func (w *Files) Close() error { return w.poller.close() }

// Watch adds an image under a key. The image is not opened; path is where its
// name is.
func (w *Files) Watch(key string, image *os.File, path string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	dir, name := filepath.Split(path)
	wd, err := unix.InotifyAddWatch(w.poller.fd, selfPath(image), imageMask)
	if err != nil {
		return watchError(path, err)
	}
	dwd, err := unix.InotifyAddWatch(w.poller.fd, dir, dirMask)
	if err != nil {
		w.drop(int32(wd))
		return watchError(dir, err)
	}
	watch := fileWatch{image: int32(wd), dir: int32(dwd), name: name}
	w.images[watch.image] = key
	if w.dirs[watch.dir] == nil {
		w.dirs[watch.dir] = map[string][]string{}
	}
	w.dirs[watch.dir][name] = append(w.dirs[watch.dir][name], key)
	w.keys[key] = watch
	return nil
}

func watchError(path string, err error) error {
	hint := ""
	if errors.Is(err, unix.ENOSPC) {
		hint = " (raise fs.inotify.max_user_watches)"
	}
	return fmt.Errorf("watching %s: inotify_add_watch: %w%s", path, err, hint)
}

// Forget ends the watch of a key. A directory is watched until its last image is
// forgotten.
func (w *Files) Forget(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	watch, ok := w.keys[key]
	if !ok {
		return
	}
	delete(w.keys, key)
	w.drop(watch.image)
	delete(w.images, watch.image)
	names := w.dirs[watch.dir]
	var others []string
	for _, k := range names[watch.name] {
		if k != key {
			others = append(others, k)
		}
	}
	if len(others) > 0 {
		names[watch.name] = others
		return
	}
	delete(names, watch.name)
	if len(names) == 0 {
		w.drop(watch.dir)
		delete(w.dirs, watch.dir)
	}
}

// drop removes a kernel watch, which may be gone already.
func (w *Files) drop(wd int32) { unix.InotifyRmWatch(w.poller.fd, uint32(wd)) }

// read takes the events that are there. Without them the timer is all that is
// left, so the end of the stream is told as a loss.
func (w *Files) read(fd int) bool {
	if err := readEvents(fd, w.buf, w.event); err != nil {
		w.hints.Lost("", "inotify: "+err.Error())
		return false
	}
	return true
}

// readEvents takes the inotify events that are there, which may be none.
func readEvents(fd int, buf []byte, event func(wd int32, mask uint32, name string)) error {
	n, err := unix.Read(fd, buf)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return err
	}
	buf = buf[:n]
	// struct inotify_event { __s32 wd; __u32 mask; __u32 cookie; __u32 len; char name[]; }
	for len(buf) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(buf[0:]))
		mask := binary.NativeEndian.Uint32(buf[4:])
		length := int(binary.NativeEndian.Uint32(buf[12:]))
		end := unix.SizeofInotifyEvent + length
		if end > len(buf) {
			break
		}
		name, _, _ := bytes.Cut(buf[unix.SizeofInotifyEvent:end], []byte{0})
		event(wd, mask, string(name))
		buf = buf[end:]
	}
	return nil
}

func (w *Files) event(wd int32, mask uint32, name string) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		w.hints.Lost("", "the inotify queue overflowed")
		return
	}
	w.mu.Lock()
	key, isImage := w.images[wd]
	byName := w.dirs[wd]
	keys := append([]string(nil), byName[name]...)
	gone := mask&(unix.IN_IGNORED|unix.IN_UNMOUNT) != 0
	if len(byName) > 0 && (gone || mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0) {
		for _, ks := range byName {
			keys = append(keys, ks...)
		}
	}
	w.mu.Unlock()
	switch {
	case isImage && gone:
		w.hints.Lost(key, "the inotify watch of the image is gone: "+maskText(mask))
	case isImage:
		w.hints.Touched(key, maskText(mask))
	}
	for _, k := range keys {
		if gone {
			w.hints.Lost(k, "the inotify watch of the directory is gone: "+maskText(mask))
		} else {
			w.hints.Touched(k, "directory: "+maskText(mask))
		}
	}
}

// maskText names the events of mask as inotify(7) does.
func maskText(mask uint32) string {
	text := ""
	for _, e := range []struct {
		bit  uint32
		name string
	}{
		{unix.IN_MODIFY, "modify"}, {unix.IN_ATTRIB, "attrib"}, {unix.IN_OPEN, "open"},
		{unix.IN_CLOSE_WRITE, "close-write"}, {unix.IN_CLOSE_NOWRITE, "close"},
		{unix.IN_MOVE_SELF, "move-self"}, {unix.IN_DELETE_SELF, "delete-self"}, {unix.IN_MOVED_FROM, "moved-from"},
		{unix.IN_MOVED_TO, "moved-to"}, {unix.IN_CREATE, "create"}, {unix.IN_DELETE, "delete"},
		{unix.IN_UNMOUNT, "unmount"}, {unix.IN_IGNORED, "ignored"},
	} {
		if mask&e.bit != 0 {
			if text != "" {
				text += " "
			}
			text += e.name
			mask &^= e.bit
		}
	}
	if mask &^= unix.IN_ISDIR; mask != 0 {
		text += fmt.Sprintf(" 0x%x", mask)
	}
	return text
}
