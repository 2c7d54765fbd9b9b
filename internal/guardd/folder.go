package guardd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"dmloop/guard"
	"dmloop/internal/guardrpc"
	"dmloop/internal/record"
	"dmloop/internal/watch"
)

const (
	// folderTick is how often the guard looks whether what it has in the state directory is
	// still there, in case nothing reported it.
	folderTick = 2 * time.Second
	// folderPatience bounds how long it waits for the lock of a command then.
	folderPatience = 2 * time.Second
)

// home is what the guard has in the state directory.
type home struct {
	lock     *os.File
	listener *net.UnixListener
	socket   os.FileInfo   // the listener's file
	watch    *watch.Folder // nil when inotify failed
	trouble  string        // what could not be made again, as it was logged
}

// live serves clients until ctx ends, and looks after the state directory meanwhile: when
// somebody empties or removes it, a guard that nobody can reach would keep denying every
// open of the images.
func (d *Daemon) live(ctx context.Context, h *home, lost chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	failed := make(chan error, 1)
	serve := func(l *net.UnixListener) {
		serving.Go(func() {
			if err := guardrpc.Serve(ctx, l, d, d.Log); err != nil && !errors.Is(err, net.ErrClosed) {
				select {
				case failed <- err:
				default:
				}
			}
		})
	}
	serve(h.listener)
	ticker := time.NewTicker(folderTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-lost:
		case <-ticker.C:
		}
		if ctx.Err() != nil {
			return nil // Serve has removed the socket, which is no loss to be mended
		}
		trouble := ""
		if err := d.mend(ctx, h, serve, lost); err != nil {
			trouble = err.Error()
		}
		if trouble != h.trouble && trouble != "" && ctx.Err() == nil {
			d.Log.Error("the state directory was emptied or removed, and the guard cannot make all of it again", "error", trouble)
		}
		h.trouble = trouble
	}
}

// watchFolder has lost told when something is removed from the folder.
func (d *Daemon) watchFolder(h *home, lost chan<- struct{}) {
	h.unwatch()
	folder, err := watch.NewFolder(d.Dir, d.recordSaved, func() {
		select {
		case lost <- struct{}{}:
		default:
		}
	})
	if err != nil {
		d.Log.Warn("what killed commands leave is found only when the guard starts", "error", err)
		return
	}
	h.watch = folder
}

func (h *home) unwatch() {
	if h.watch != nil {
		_ = h.watch.Close() // of a folder that may be gone
		h.watch = nil
	}
}

// mend makes again what is not there any more: the folder, the lock, the socket, and the
// records of the mappings that are watched and live.
func (d *Daemon) mend(ctx context.Context, h *home, serve func(*net.UnixListener), lost chan<- struct{}) error {
	if !d.store.There() {
		if err := d.store.Reopen(); err != nil {
			return err
		}
		d.Log.Error("the state directory was removed or replaced; the guard goes on with the one that is there now", "folder", d.Dir)
		d.watchFolder(h, lost)
	}
	if now, err := os.Lstat(filepath.Join(d.Dir, guardrpc.LockName)); err != nil || !sameOpen(h.lock, now) {
		lock, err := lockGuard(d.Dir)
		if err != nil {
			return err // of another guard, perhaps, which a command has started meanwhile
		}
		h.lock.Close()
		h.lock = lock
	}
	if now, err := os.Lstat(filepath.Join(d.Dir, guardrpc.SocketName)); err != nil || !os.SameFile(now, h.socket) {
		if ctx.Err() != nil {
			return ctx.Err() // gone because the guard ends
		}
		if err := d.listen(h); err != nil {
			return err
		}
		serve(h.listener)
		d.Log.Error("the guard's socket was removed from the state directory; it serves on a new one", "folder", d.Dir)
	}
	return d.recordAgain(ctx)
}

// listen makes the socket, in the place of the one that there was.
func (d *Daemon) listen(h *home) error {
	l, err := guardrpc.Listen(d.Dir)
	if err != nil {
		return err
	}
	socket, err := os.Lstat(filepath.Join(d.Dir, guardrpc.SocketName))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	if h.listener != nil {
		h.listener.SetUnlinkOnClose(false) // the new one has its path
		h.listener.Close()
	}
	h.listener, h.socket = l, socket
	return nil
}

func sameOpen(f *os.File, named os.FileInfo) bool {
	open, err := f.Stat()
	return err == nil && os.SameFile(open, named)
}

// recordAgain writes the records of watched mappings that are live and have none: no
// command takes a record away before its device.
func (d *Daemon) recordAgain(ctx context.Context) error {
	recorded, err := d.store.Names()
	if err != nil {
		return err
	}
	lost := slices.DeleteFunc(d.names(), func(name string) bool { return slices.Contains(recorded, name) || !d.unrecorded(name) })
	if len(lost) == 0 {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, folderPatience)
	defer cancel()
	unlock, err := d.store.Lock(wait)
	if err != nil {
		return err
	}
	defer unlock()
	for _, name := range lost {
		m, watched := d.remembered(name)
		if !watched || !d.unrecorded(name) {
			continue
		}
		if err := d.store.Save(m); err != nil {
			return err
		}
		d.Log.Error("the record of a mapping was removed from the state directory; the guard wrote it again", "mapping", name)
	}
	return nil
}

// unrecorded reports whether a watched mapping has a device and no record.
func (d *Daemon) unrecorded(name string) bool {
	asked, err := d.askUnrecorded(name)
	return asked && err == nil
}

// remembered is the record of a watched mapping as it has to be now.
func (d *Daemon) remembered(name string) (m record.Record, watched bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	mp := d.mappings[name]
	if mp == nil {
		return m, false
	}
	m = mp.record
	if s := mp.saved; s.UUID == m.UUID { // what map adds while it is watched already
		m.State, m.Reason, m.Parts, m.Pins, m.Grade, m.Proof = s.State, s.Reason, s.Parts, s.Pins, s.Grade, s.Proof
	}
	if m.State != guard.Releasing {
		r := mp.watch.Last()
		m.State, m.Reason = r.Decision.State, r.Decision.Reason
	}
	return m, true
}
