package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/gate"
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

var usualPatience = patience{lock: 60 * time.Second, openers: 5 * time.Second, removal: mapper.Patience, held: 2 * time.Second}

// System is what the use cases work on: the kernel's device-mapper and the state
// folder, each opened when first needed, so that what needs neither works without.
type System struct {
	log      *slog.Logger
	stateDir string
	sysfs    string
	devices  *mapper.Mapper // nil until it is needed
	guard    *watchdog
	patience patience

	kernelDenies func() (bool, error)            // whether the kernel can deny opens
	progress     func(done, total extents.Bytes) // is told how far the writing of a whole image is; may be nil
}

// WithProgress has show told how far the writing of a whole image is, in bytes.
func (s *System) WithProgress(show func(done, total extents.Bytes)) *System {
	s.progress = show
	return s
}

// NewSystem returns the system of this machine with its state in stateDir.
func NewSystem(stateDir string, log *slog.Logger) *System {
	if err := gate.Enter(); err != nil {
		log.Debug("the gate does not let this process pass", "error", err)
	}
	return &System{log: log, stateDir: stateDir, sysfs: "/sys", guard: &watchdog{log: log}, patience: usualPatience, kernelDenies: watch.KernelDenies}
}

// WithConn makes the system use conn for device-mapper. Tests give it a fake kernel.
func (s *System) WithConn(conn *dm.Conn) *System {
	s.devices = &mapper.Mapper{Conn: conn, Log: s.log, Sysfs: s.sysfs, Patience: s.patience.removal}
	return s
}

// Close gives back what was opened, the connection to the guard with it.
func (s *System) Close() error {
	if err := gate.Leave(); err != nil {
		s.log.Debug("the gate still lets this process pass", "error", err)
	}
	if s.guard.Guard != nil {
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
	return survey.Surveyor{Log: s.log, Sysfs: s.sysfs, Mapper: s.mapper, Openers: s.patience.openers, KernelDenies: s.kernelDenies, Gate: gate.Unavailable}
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

// openStore opens the state directory, making it when create is set. Without create,
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

// Names lists the names of the mappings that have a record.
func (s *System) Names() ([]string, error) {
	store, err := s.openStore(false)
	if err != nil || store == nil {
		return nil, err
	}
	defer store.Close()
	return store.Names()
}
