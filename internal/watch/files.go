package watch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"dmloop/guard"
	"dmloop/internal/inode"
	"dmloop/internal/ration"
)

// FileHints is told what happens to images.
type FileHints interface {
	// Touched names the image's key and the event.
	Touched(key, event string)
	// Lost says that events of the image are no longer delivered, or were dropped;
	// an empty key means all images.
	Lost(key, why string)
}

// Files watches images and their directories. fsnotify says what changes them (inotify).
// Moving blocks and changing flags raise no event there, but who does it has the image open
// before and closes it afterwards, which fanotify tells.
type Files struct {
	hints   FileHints
	changes *fsnotify.Watcher
	opens   *opens // nil where the kernel has no fanotify
	noOpens error  // why
	done    chan struct{}
	stop    chan struct{}
	once    sync.Once

	mu     sync.Mutex
	keys   map[string]*fileWatch
	images map[string]string    // path that is watched -> key
	dirs   map[string]*dirWatch // path that is watched -> its images
}

type fileWatch struct {
	image *os.File // the caller's
	path  string   // by which it is watched
	dir   *dirWatch
	name  string
}

// dirWatch is a directory of images. It is watched through a descriptor: fsnotify gives a
// directory up when it is renamed, and no path leads to it then.
type dirWatch struct {
	id    guard.FileID
	fd    int
	path  string
	names map[string][]string // file name -> keys
}

// NewFiles begins to listen.
func NewFiles(hints FileHints) (*Files, error) {
	changes, err := fsnotify.NewBufferedWatcher(batch)
	if err != nil {
		return nil, err
	}
	w := &Files{hints: hints, changes: changes, done: make(chan struct{}), stop: make(chan struct{}),
		keys: map[string]*fileWatch{}, images: map[string]string{}, dirs: map[string]*dirWatch{}}
	w.opens, w.noOpens = newOpens(hints)
	go func() {
		defer close(w.done)
		listen(changes, w.stop, w.changed, func(err error) { hints.Lost("", lossText(err)) })
	}()
	return w, nil
}

// Close ends all watches.
func (w *Files) Close() error {
	var err error
	w.once.Do(func() {
		close(w.stop)
		<-w.done
		err = w.changes.Close()
		if w.opens != nil {
			err = errors.Join(err, w.opens.close())
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, d := range w.dirs {
			unix.Close(d.fd)
		}
		clear(w.dirs)
	})
	return err
}

// Watch adds an image under a key. The image is not opened, and stays open until the key is
// forgotten; path is where its name is. When the error wraps ErrOpensUntold, changes are told
// all the same, and only opens are not.
func (w *Files) Watch(key string, image *os.File, path string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	dir, name := filepath.Split(path)
	f := &fileWatch{image: image, path: selfPath(image), name: name}
	if err := w.changes.Add(f.path); err != nil {
		return watchError(path, err)
	}
	d, err := w.directory(dir)
	if err != nil {
		return errors.Join(watchError(dir, err), w.changes.Remove(f.path))
	}
	d.names[name] = append(d.names[name], key)
	f.dir = d
	w.keys[key], w.images[f.path] = f, key
	if w.opens == nil {
		return fmt.Errorf("%w: %w", ErrOpensUntold, w.noOpens)
	}
	return w.opens.add(key, image)
}

// directory returns the watch of a directory, a new one when it has none.
func (w *Files) directory(path string) (*dirWatch, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	id, err := idOf(fd)
	for _, d := range w.dirs {
		if err == nil && d.id == id {
			unix.Close(fd)
			return d, nil
		}
	}
	d := &dirWatch{id: id, fd: fd, path: inode.Link(fd), names: map[string][]string{}}
	if err == nil {
		err = w.changes.Add(d.path)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	w.dirs[d.path] = d
	return d, nil
}

func watchError(path string, err error) error {
	hint := ""
	if errors.Is(err, unix.ENOSPC) {
		hint = " (raise fs.inotify.max_user_watches)"
	}
	return fmt.Errorf("watching %s: %w%s", path, err, hint)
}

// Forget ends the watch of a key. A directory is watched until its last image is
// forgotten.
func (w *Files) Forget(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.keys[key]
	if f == nil {
		return
	}
	delete(w.keys, key)
	delete(w.images, f.path)
	_ = w.changes.Remove(f.path) // which may be gone already
	if w.opens != nil {
		w.opens.forget(key, f.image)
	}
	d := f.dir
	d.names[f.name] = slices.DeleteFunc(d.names[f.name], func(k string) bool { return k == key })
	if len(d.names[f.name]) == 0 {
		delete(d.names, f.name)
	}
	if len(d.names) == 0 {
		delete(w.dirs, d.path)
		_ = w.changes.Remove(d.path)
		unix.Close(d.fd)
	}
}

// changed passes an event on to those whom it concerns.
func (w *Files) changed(e fsnotify.Event) {
	w.mu.Lock()
	var lost error
	keys, prefix := []string(nil), ""
	if key, is := w.images[e.Name]; is {
		keys, lost = []string{key}, w.again(e)
	} else if d := w.dirs[e.Name]; d != nil {
		if e.Has(fsnotify.Rename) || e.Has(fsnotify.Remove) { // of the directory itself
			for _, ks := range d.names {
				keys = append(keys, ks...)
			}
			prefix, lost = "directory: ", w.again(e)
		}
	} else if d := w.dirs[filepath.Dir(e.Name)]; d != nil && e.Op != fsnotify.Write && e.Op != fsnotify.Chmod {
		keys, prefix = slices.Clone(d.names[filepath.Base(e.Name)]), "directory: "
	}
	w.mu.Unlock()
	for _, k := range keys {
		if lost != nil {
			w.hints.Lost(k, prefix+"the watch is gone: "+lost.Error())
		} else {
			w.hints.Touched(k, prefix+opText(e.Op))
		}
	}
}

// again begins to watch again what fsnotify gives up when it is renamed.
func (w *Files) again(e fsnotify.Event) error {
	switch {
	case e.Has(fsnotify.Remove):
		return errors.New("it was deleted")
	case e.Has(fsnotify.Rename):
		return w.changes.Add(e.Name)
	}
	return nil
}

// batch is how many events are taken in a row, and then none for a rest when there have
// been many: what others can cause must not keep the guard busy.
const batch = 256

// listen calls event for what a watcher tells, and lost when it lost some, until stop is
// closed or nothing comes any more.
func listen(from *fsnotify.Watcher, stop <-chan struct{}, event func(fsnotify.Event), lost func(error)) {
	calls := ration.Ration{Burst: eagerly, Every: rest}
	for {
		select {
		case <-stop:
			return
		case <-time.After(calls.Wait(time.Now())):
		}
		select {
		case <-stop:
			return
		case e, open := <-from.Events:
			if !open {
				lost(errors.New("the watch ended"))
				return
			}
			event(e)
		case err := <-from.Errors:
			lost(err)
		}
		drain(from, event, lost)
		calls.Take(time.Now())
	}
}

// drain takes what has come meanwhile.
func drain(from *fsnotify.Watcher, event func(fsnotify.Event), lost func(error)) {
	for range batch {
		select {
		case e, open := <-from.Events:
			if !open {
				return // listen finds that out
			}
			event(e)
		case err := <-from.Errors:
			lost(err)
		default:
			return
		}
	}
}

func lossText(err error) string {
	if errors.Is(err, fsnotify.ErrEventOverflow) {
		return "the inotify queue overflowed"
	}
	return fmt.Sprintf("inotify: %v", err)
}

// opText names what happened, for logs.
func opText(op fsnotify.Op) string {
	text := ""
	for _, o := range []struct {
		bit  fsnotify.Op
		name string
	}{{fsnotify.Write, "modify"}, {fsnotify.Chmod, "attrib"}, {fsnotify.Rename, "renamed"}, {fsnotify.Remove, "removed"}, {fsnotify.Create, "created"}} {
		if op.Has(o.bit) {
			if text != "" {
				text += " "
			}
			text += o.name
		}
	}
	return text
}
