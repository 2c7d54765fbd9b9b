package record

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultDir is where records and the guard's socket live.
const DefaultDir = "/run/dmloop"

// sizeCap bounds what is read into memory: a million extents make about 100 MB.
const sizeCap = 512 << 20

const suffix = ".mapping"

// LockName is the file that Lock locks.
const LockName = ".lock"

// ErrNotFound is wrapped by errors about a name that no record has.
var ErrNotFound = errors.New("no such mapping")

// Store is the folder of records. All access goes through one descriptor of the
// folder, so that a path swapped later changes nothing.
type Store struct {
	root atomic.Pointer[os.Root]
	dir  string
}

// Open opens the store in dir, which must belong to the caller and be closed to
// everybody else. With create it is made, mode 0700, when it is not there; without,
// a missing folder gives an error that wraps fs.ErrNotExist.
func Open(dir string, create bool) (*Store, error) {
	root, err := openRoot(dir, create)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir}
	s.root.Store(root)
	return s, nil
}

// There reports whether the folder that is open is still the one at its path.
func (s *Store) There() bool {
	now, err := os.Stat(s.dir)
	if err != nil {
		return false
	}
	open, err := s.folder().Stat(".")
	return err == nil && os.SameFile(now, open)
}

// Reopen makes the folder again that somebody removed, or opens the one that is at its
// path by now. What others are doing with the old one at this moment fails.
func (s *Store) Reopen() error {
	root, err := openRoot(s.dir, true)
	if err != nil {
		return err
	}
	return s.root.Swap(root).Close()
}

func (s *Store) folder() *os.Root { return s.root.Load() }

func openRoot(dir string, create bool) (*os.Root, error) {
	if create {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("state directory %s is not a directory", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := checkOwner(root, dir); err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

func checkOwner(root *os.Root, dir string) error {
	f, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("state directory %s: %w", dir, err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return fmt.Errorf("state directory %s has owner %d and mode %#o: it must belong to user %d with mode 0700",
			dir, st.Uid, st.Mode&0o7777, os.Geteuid())
	}
	return nil
}

// Close closes the store's descriptor.
func (s *Store) Close() error { return s.folder().Close() }

// Dir returns the folder's path, for messages and the guard's socket.
func (s *Store) Dir() string { return s.dir }

// Lock takes the store's lock, which every command that changes a mapping holds
// from its first to its last step. It waits until ctx ends. The kernel drops the
// lock when the process dies, so a record in a half-way state whose lock is free
// belongs to nobody.
func (s *Store) Lock(ctx context.Context) (unlock func(), err error) {
	f, err := s.folder().OpenFile(LockName, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state lock: %w", err)
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("state lock: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another dmloop command: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Save writes m durably: a reader sees the old record or the new one, whole.
func (s *Store) Save(m Record) error {
	staged, err := s.Stage(m)
	if err != nil {
		return err
	}
	return staged.Commit()
}

// Staged is a record that is written and on the disk, and that no reader sees yet. It
// wants one call of Commit or Discard.
type Staged struct {
	store *Store
	name  string
}

// Stage does the long part of Save.
func (s *Store) Stage(m Record) (*Staged, error) {
	return s.stage(m.Name, func(w *os.File) error { return m.encode(w) })
}

// SaveHead is Save for a record of which only the part without layout and table has
// changed since it was saved, and what Head returned may be saved so: the rest is
// copied as it is stored, which for a hundred thousand extents takes a fraction of the
// time. A stored record of another mapping or with another number of rows is an error.
func (s *Store) SaveHead(m Record) error {
	current, err := s.open(m.Name + suffix)
	if err != nil {
		return fmt.Errorf("record of %s: %w", m.Name, err)
	}
	defer current.Close()
	staged, err := s.stage(m.Name, func(w *os.File) error { return m.replaceHead(w, current) })
	if err != nil {
		return err
	}
	return staged.Commit()
}

func (s *Store) stage(name string, write func(w *os.File) error) (*Staged, error) {
	staged := &Staged{store: s, name: name}
	if err := s.write(staged.temp(), write); err != nil {
		return nil, errors.Join(fmt.Errorf("record of %s: %w", name, err), staged.Discard())
	}
	return staged, nil
}

func (r *Staged) temp() string { return "." + r.name + ".new" }

// Commit makes the record the one that readers see, durably.
func (r *Staged) Commit() error {
	if err := r.store.folder().Rename(r.temp(), r.name+suffix); err != nil {
		return fmt.Errorf("record of %s: %w", r.name, err)
	}
	return r.store.syncDir()
}

// Discard throws the record away.
func (r *Staged) Discard() error { return ignoreMissing(r.store.folder().Remove(r.temp())) }

func (s *Store) write(name string, content func(w *os.File) error) error {
	// A leftover of a killed command is not reused: somebody may hold it open.
	if err := ignoreMissing(s.folder().Remove(name)); err != nil {
		return err
	}
	f, err := s.folder().OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err = content(f); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (s *Store) syncDir() error {
	f, err := s.folder().Open(".")
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	defer f.Close()
	return f.Sync()
}

// Load reads the record of the mapping called name (mangled form). The error
// wraps ErrNotFound when there is none.
func (s *Store) Load(name string) (Record, error) {
	return s.load(name, func(f io.Reader, size int64) (Record, error) {
		b := make([]byte, size)
		if _, err := io.ReadFull(f, b); err != nil {
			return Record{}, err
		}
		return Decode(b)
	})
}

// Head is Load without layout and table, which may be large. What it returns can only
// be saved by SaveHead.
func (s *Store) Head(name string) (Record, error) {
	return s.load(name, func(f io.Reader, _ int64) (Record, error) {
		head, _, err := readHead(f)
		m := head.Record
		m.headOnly = true
		return m, err
	})
}

func (s *Store) load(name string, decode func(f io.Reader, size int64) (Record, error)) (Record, error) {
	m, err := s.read(name+suffix, decode)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	if err == nil && m.Name != name {
		err = fmt.Errorf("it names %q", m.Name)
	}
	if err != nil {
		return Record{}, fmt.Errorf("record of %s: %w", name, err)
	}
	return m, nil
}

// read decodes a record.
func (s *Store) read(name string, decode func(f io.Reader, size int64) (Record, error)) (Record, error) {
	f, err := s.open(name)
	if err != nil {
		return Record{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return Record{}, errors.Join(err, f.Close())
	}
	m, err := decode(f, info.Size())
	return m, errors.Join(err, f.Close())
}

// open opens a record, of which a reader sees one state or the next.
func (s *Store) open(name string) (*os.File, error) {
	for {
		// os.Root follows a link within the folder, whatever flags it is given.
		entry, err := s.folder().Lstat(name)
		if err != nil {
			return nil, err
		}
		if !entry.Mode().IsRegular() || entry.Size() > sizeCap {
			return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", name, sizeCap)
		}
		f, err := s.folder().OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err == nil && os.SameFile(entry, info) {
			return f, nil
		}
		f.Close() // it was saved anew in between
		if err != nil {
			return nil, err
		}
	}
}

// NameOf returns the name of the mapping whose record the file of this name is.
func NameOf(file string) (name string, ok bool) {
	name, ok = strings.CutSuffix(file, suffix)
	return name, ok && name != ""
}

// Names lists the names that have a record, sorted.
func (s *Store) Names() ([]string, error) {
	f, err := s.folder().Open(".")
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	defer f.Close()
	entries, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e, suffix); ok {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names, nil
}

// Delete removes the record of name; a missing one is not an error.
func (s *Store) Delete(name string) error {
	if err := ignoreMissing(s.folder().Remove(name + suffix)); err != nil {
		return fmt.Errorf("record of %s: %w", name, err)
	}
	return s.syncDir()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
