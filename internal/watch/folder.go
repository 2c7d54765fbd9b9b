package watch

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Folder says when a file of a folder gets a new content in one step: when it is
// renamed into place. And it says when something is removed from it, itself perhaps.
type Folder struct{ poller *poller }

// NewFolder begins to watch the folder at path. changed gets the file's name, or
// none when messages were lost; removed is called for whatever is removed.
func NewFolder(path string, changed func(name string), removed func()) (*Folder, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MOVED_TO|folderRemovals|unix.IN_ONLYDIR); err != nil {
		unix.Close(fd)
		return nil, watchError(path, err)
	}
	buf := make([]byte, 16<<10)
	p, err := newPoller(fd, unix.POLLIN, func() bool { return readFolder(fd, buf, changed, removed) })
	if err != nil {
		return nil, err
	}
	return &Folder{poller: p}, nil
}

// Close ends the watch.
func (f *Folder) Close() error { return f.poller.close() }

const folderRemovals = unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF

func readFolder(fd int, buf []byte, changed func(string), removed func()) bool {
	return readEvents(fd, buf, func(_ int32, mask uint32, name string) {
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			changed("")
			removed()
		case mask&unix.IN_MOVED_TO != 0:
			changed(name)
		case mask&(folderRemovals|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0:
			removed()
		}
	}) == nil
}
