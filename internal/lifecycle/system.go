package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/guardrpc"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/record"
	"dmloop/internal/survey"
	"dmloop/internal/watch"
)

// patience is how long a command waits for what may pass.
type patience struct {
	lock    time.Duration // for another command's lock
	openers time.Duration // for those who have an image open
	removal time.Duration // for udev workers and scanners that have a device open for a moment
	held    time.Duration // for an open that a guard which does not answer may hold up
}

var usualPatience = patience{lock: 60 * time.Second, openers: 5 * time.Second, removal: 5 * time.Second, held: 2 * time.Second}

// System is what the use cases work on: the kernel's device-mapper and the state
// folder, each opened when first needed, so that what needs neither works without.
type System struct {
	log      *slog.Logger
	stateDir string
	sysfs    string
	devices  *mapper.Mapper // nil until it is needed
	guard    Guard
	hung     error // why the guard did not answer in time; nil while it does
	held     bool  // opens of images wait for the guard that hangs
	patience patience
	released []record.Record                 // finished for an earlier command, by recover
	looked   *image.Found                    // what Look found; nil when nothing is kept
	asleep   map[dmtable.Device]*fault.Error // why a file system, by its device, takes no changes; see awake

	kernelDenies func() (bool, error) // whether the kernel can deny opens
}

// NewSystem returns the system of this machine with its state in stateDir.
func NewSystem(stateDir string, log *slog.Logger) *System {
	return &System{log: log, stateDir: stateDir, sysfs: "/sys", patience: usualPatience, kernelDenies: watch.KernelDenies}
}

// WithConn makes the system use conn for device-mapper. Tests give it a fake kernel.
func (s *System) WithConn(conn *dm.Conn) *System {
	s.devices = &mapper.Mapper{Conn: conn, Log: s.log, Sysfs: s.sysfs, Patience: s.patience.removal}
	return s
}

// Close gives back what was opened, the connection to the guard with it.
func (s *System) Close() error {
	if s.guard != nil {
		s.guard.Close()
	}
	if s.devices == nil {
		return nil
	}
	return s.devices.Close()
}

// mapper returns device-mapper and what belongs to it, opened when first needed.
func (s *System) mapper() (*mapper.Mapper, error) {
	if s.devices != nil {
		return s.devices, nil
	}
	m, err := mapper.Open(s.log)
	if err != nil {
		return nil, err
	}
	m.Sysfs, m.Patience = s.sysfs, s.patience.removal
	s.devices = m
	return m, nil
}

// surveyor returns what looks at images.
func (s *System) surveyor() survey.Surveyor {
	return survey.Surveyor{Log: s.log, Sysfs: s.sysfs, Mapper: s.mapper, Openers: s.patience.openers, KernelDenies: s.kernelDenies}
}

// Waiting says how a command that writes to the image at path waits for those who have
// it open.
func (s *System) Waiting(path string) image.Wait {
	return survey.Waiting(s.log, path, s.patience.openers)
}

// soleOpener takes the write lease, the proof that nobody else has the file open.
func (s *System) soleOpener(ctx context.Context, img *image.Image, path string, patience time.Duration) (*image.Lease, error) {
	return image.AwaitSoleOpener(ctx, img.File(), survey.Waiting(s.log, path, patience))
}

// NotLive refuses an image on whose blocks a live device-mapper device lies. It is for what
// writes to an image without the other use cases. Without root, where device-mapper
// cannot be asked, the image's pins refuse the caller.
func (s *System) NotLive(img *image.Image) error {
	facts, err := img.Facts()
	if err != nil {
		return fault.Wrap(img.Path(), "", err)
	}
	err = s.surveyor().NotLive(img, facts.Filesystem)
	if fault.ClassOf(err) == fault.NotPermitted && unix.Geteuid() != 0 {
		s.log.Debug("not checked without root: whether a device lies on the image's blocks", "image", img.Path())
		return nil
	}
	return err
}

// DeviceMapperVersion returns the version of the kernel's ioctl interface.
func (s *System) DeviceMapperVersion() (string, error) {
	conn, err := s.mapper()
	if err != nil {
		return "", err
	}
	v, err := conn.Version()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]), nil
}

// openStore opens the state folder, making it when create is set. Without create,
// a folder that was never made gives a nil store: there are no mappings.
func (s *System) openStore(create bool) (*record.Store, error) {
	store, err := record.Open(s.stateDir, create)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !create:
		return nil, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, &fault.Error{Class: fault.NotPermitted, Message: "only root may see or change mappings", Remedy: fault.Permission(fault.CapFiles), Err: err}
	}
	return store, err
}

// lockStore opens the state folder and takes its lock, then finishes or undoes
// what killed commands left half-way.
func (s *System) lockStore(ctx context.Context) (*record.Store, func(), error) {
	store, err := s.openStore(true)
	if err != nil {
		return nil, nil, err
	}
	wait, cancel := context.WithTimeout(ctx, s.patience.lock)
	defer cancel()
	unlock, err := store.Lock(wait)
	if err != nil {
		store.Close()
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, nil, s.lockHeld(err)
		}
		return nil, nil, err
	}
	done := func() { unlock(); store.Close() }
	if err := s.recover(ctx, store); err != nil {
		done()
		return nil, nil, err
	}
	return store, done, nil
}

// lockHeld says who has the lock.
func (s *System) lockHeld(cause error) error {
	message, remedy := "another dmloop command", extents.Remedy{}
	for _, pid := range image.LockHolders(filepath.Join(s.stateDir, record.LockName)) {
		message += fmt.Sprintf(" (process %d)", pid)
		remedy = advice.SeeLockHolder.At(extents.Bytes(pid), 0)
	}
	return &fault.Error{Class: fault.Busy, Message: message + " holds the lock in " + s.stateDir, Remedy: remedy, Err: cause}
}

// Names lists the names of the mappings that have a record.
func (s *System) Names() ([]string, error) {
	store, err := s.openStore(false)
	if err != nil || store == nil {
		return nil, err
	}
	defer store.Close()
	return store.Names()
}

// lookUp finds the file at path. What a command does with it is done with the file that
// was found, whatever the path leads to by then: a path is looked up once.
func (s *System) lookUp(path string) (*image.Found, error) {
	if s.looked != nil && s.looked.Given() == path {
		return s.looked.Again()
	}
	found, err := image.Find(path)
	if err != nil {
		return nil, openError(path, err)
	}
	return found, nil
}

// Look looks path up for all that is done with this path until done is called, which a
// command that takes several steps needs.
func (s *System) Look(path string) (done func(), err error) {
	if s.looked != nil && s.looked.Given() == path {
		return func() {}, nil
	}
	found, err := s.lookUp(path)
	if err != nil {
		return func() {}, err
	}
	before := s.looked
	s.looked = found
	return func() { s.looked = before; found.Close() }, nil
}

// openImage looks the image at path up and opens it.
func (s *System) openImage(ctx context.Context, path string) (*image.Image, error) {
	found, err := s.lookUp(path)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	return s.open(ctx, found)
}

// lockImage looks the image at path up, refuses one whose file system takes no changes,
// takes the lock, refuses an image that is mapped, and opens it. It is opened with the lock held, so that the lease of another run does
// not see it; no such open waits for a lease of somebody else.
func (s *System) lockImage(ctx context.Context, path string) (*record.Store, *image.Image, func(), error) {
	none := func() {}
	found, err := s.lookUp(path)
	if err != nil {
		return nil, nil, none, err
	}
	defer found.Close()
	if err := s.awake(ctx, path, found.Handle()); err != nil {
		return nil, nil, none, err
	}
	start := time.Now()
	store, unlock, err := s.lockStore(ctx)
	if err != nil {
		return nil, nil, none, err
	}
	var img *image.Image
	if err = s.imageFree(store, found); err == nil && time.Since(start) > askAgain {
		err = s.awake(ctx, path, found.Handle())
	}
	if err == nil {
		img, err = s.open(ctx, found)
	}
	if err != nil {
		unlock()
		return nil, nil, none, err
	}
	return store, img, func() { img.Close(); unlock() }, nil
}

// askAgain is how long a command may have waited for the lock until what was asked before
// is old.
const askAgain = 100 * time.Millisecond

// open opens a file that was found. Of an image that the guard watches it is the
// guard's own descriptor: the guard denies opens to everybody, and where it cannot,
// an open of ours would look like a stranger's.
func (s *System) open(ctx context.Context, found *image.Found) (*image.Image, error) {
	if img, err := s.openWatched(ctx, found); err != nil || img != nil {
		return img, err
	}
	return openUnwatched(found)
}

func openUnwatched(found *image.Found) (*image.Image, error) {
	img, err := found.Open()
	if err == nil {
		return img, nil
	}
	return nil, openError(found.Given(), err)
}

// openError says why a file cannot be opened.
func openError(path string, err error) error {
	var p *extents.Refusal
	switch {
	case errors.As(err, &p):
		return fault.Refuse(path, p.Problems)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return &fault.Error{Class: fault.NotFound, Subject: path, Message: "no such file"}
	case errors.Is(err, fs.ErrPermission) && unix.Geteuid() == 0:
		return &fault.Error{Class: fault.NotPermitted, Subject: path, Message: "somebody denies root to open it, a guard that this command does not reach most likely",
			Remedy: advice.ReachGuard}
	case errors.Is(err, fs.ErrPermission):
		return &fault.Error{Class: fault.NotPermitted, Subject: path, Message: "not permitted to open it", Remedy: fault.Permission(fault.CapFiles)}
	}
	var plain *fs.PathError
	if errors.As(err, &plain) {
		err = plain.Err // the path stands before the message
	}
	return fault.Wrap(path, "it cannot be opened", err)
}

// openWatched returns nil when no guard watches the file. A guard that is there and
// does not answer may hold up every open of the image, so that is an error.
func (s *System) openWatched(ctx context.Context, found *image.Found) (*image.Image, error) {
	id := found.Identity()
	f, err := s.askGuard(ctx, record.Image{Path: found.Path(), Major: id.Major, Minor: id.Minor, Inode: id.Inode})
	if err != nil {
		return nil, fault.Wrap(found.Given(), "", err)
	}
	if f == nil {
		return nil, nil
	}
	return image.Adopt(f)
}

// askGuard returns the guard's own descriptor of an inode, or nil when no guard watches it.
func (s *System) askGuard(ctx context.Context, want record.Image) (*os.File, error) {
	if s.guard == nil {
		return nil, nil
	}
	var f *os.File
	err := s.hung
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, guardPatience)
		defer cancel()
		f, err = s.guard.OpenImage(ctx, want)
		err = refusal(err)
		s.noteHung(err)
	}
	switch {
	case errors.Is(err, guardrpc.ErrNotWatched):
		return nil, nil
	case err != nil:
		return nil, &fault.Error{Class: fault.Failed, Subject: want.Path, Message: "the guard does not hand out the image", Err: err,
			Remedy: advice.KillGuard}
	}
	return f, nil
}
