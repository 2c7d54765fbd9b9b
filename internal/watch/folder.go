package watch

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// Folder says when a file of a folder gets a new content in one step: when it is
// renamed into place. And it says when something is removed from it, itself perhaps.
type Folder struct {
	changes *fsnotify.Watcher
	stop    chan struct{}
	done    chan struct{}
	once    sync.Once
}

// NewFolder begins to watch the folder at path. changed gets the file's name, or
// none when messages were lost; removed is called for whatever is removed. Files whose names
// begin with a dot are not told: they are on their way to another name.
func NewFolder(path string, changed func(name string), removed func()) (*Folder, error) {
	path = filepath.Clean(path)
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		if err == nil {
			err = &os.PathError{Op: "watch", Path: path, Err: unix.ENOTDIR}
		}
		return nil, err
	}
	changes, err := fsnotify.NewBufferedWatcher(batch)
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", path, err)
	}
	if err := changes.Add(path); err != nil {
		changes.Close()
		return nil, watchError(path, err)
	}
	f := &Folder{changes: changes, stop: make(chan struct{}), done: make(chan struct{})}
	event := func(e fsnotify.Event) {
		name := filepath.Base(e.Name)
		switch {
		case e.Has(fsnotify.Remove), e.Name == path && e.Has(fsnotify.Rename):
			removed()
		case e.Has(fsnotify.Create) && name[0] != '.':
			changed(name)
		}
	}
	lost := func(error) { changed(""); removed() }
	go func() {
		defer close(f.done)
		listen(changes, f.stop, event, lost)
	}()
	return f, nil
}

// Close ends the watch.
func (f *Folder) Close() error {
	var err error
	f.once.Do(func() {
		close(f.stop)
		<-f.done
		err = f.changes.Close()
	})
	return err
}
