package boot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/atomicfile"
)

// Dir is where manifests are kept; the initramfs has a copy of it.
const Dir = "/etc/dmloop/boot"

const suffix = ".manifest"

// sizeCap bounds what is read into memory.
const sizeCap = 128 << 20

// Store is a folder of manifests.
type Store struct{ Dir string }

// Save writes a manifest durably: a reader sees the old one or the new one.
func (s Store) Save(m Manifest) error {
	if err := m.check(); err != nil {
		return err
	}
	b, err := Encode(m)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(s.Dir, m.Record.Name+suffix), b, 0o600)
}

// Remove deletes the manifest of the mapping called name.
func (s Store) Remove(name string) error {
	if err := dmtable.CheckName(name); err != nil {
		return err
	}
	return atomicfile.Remove(filepath.Join(s.Dir, name+suffix))
}

// Load reads the manifest of the mapping called name.
func (s Store) Load(name string) (Manifest, error) {
	if err := dmtable.CheckName(name); err != nil {
		return Manifest{}, err
	}
	path := filepath.Join(s.Dir, name+suffix)
	b, err := readRegular(path)
	if err != nil {
		return Manifest{}, err
	}
	m, err := Decode(b)
	if err == nil && m.Record.Name != name {
		err = fmt.Errorf("it is of %s", m.Record.Name)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// Names lists the mappings that have a manifest, sorted.
func (s Store) Names() ([]string, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok && !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > sizeCap {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, sizeCap)
	}
	b := make([]byte, info.Size())
	_, err = io.ReadFull(f, b)
	return b, err
}
