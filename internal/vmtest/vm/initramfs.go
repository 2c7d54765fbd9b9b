package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// A cpioWriter writes the "newc" archive format that the kernel unpacks into
// its first root file system.
type cpioWriter struct {
	w     io.Writer
	inode int
}

// add writes one entry; mode includes the file type bits.
func (c *cpioWriter) add(name string, mode uint32, data []byte) error {
	c.inode++
	// magic ino mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	head := pad4(append([]byte(header+name), 0))
	for _, part := range [][]byte{head, pad4(data)} {
		if _, err := c.w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// close writes the end mark.
func (c *cpioWriter) close() error { return c.add("TRAILER!!!", 0, nil) }

// pad4 fills b with zeros to a multiple of four bytes.
func pad4(b []byte) []byte {
	if rest := len(b) % 4; rest != 0 {
		b = append(b[:len(b):len(b)], make([]byte, 4-rest)...)
	}
	return b
}

const (
	modeDir  = 0o040755
	modeFile = 0o100644
	modeProg = 0o100755
)

// writeModulesArchive writes an archive with the modules that a guest needs to
// reach the host's files, as /modules/NN-NAME.ko in the order of loading.
func writeModulesArchive(w io.Writer, modulesDir string) error {
	order, err := loadOrder(modulesDir, bootModules)
	if err != nil {
		return err
	}
	arc := &cpioWriter{w: w}
	for _, dir := range []string{"dev", "host", "modules", "upper", "root"} {
		if err := arc.add(dir, modeDir, nil); err != nil {
			return err
		}
	}
	for i, path := range order {
		data, err := readModule(filepath.Join(modulesDir, path))
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(filepath.Base(path), ".xz")
		if err := arc.add(fmt.Sprintf("modules/%02d-%s", i, name), modeFile, data); err != nil {
			return err
		}
	}
	return arc.close()
}

// writeInitramfs joins the kernel's modules archive and one with exe as /init:
// the kernel unpacks archives one after the other.
func writeInitramfs(path, modulesArchive, exe string) error {
	modules, err := os.ReadFile(modulesArchive)
	if err != nil {
		return err
	}
	prog, err := os.ReadFile(exe)
	if err != nil {
		return err
	}
	if err := standsAlone(prog); err != nil {
		return fmt.Errorf("%s cannot be a guest's first program: %w", exe, err)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(modules); err != nil {
		return err
	}
	arc := &cpioWriter{w: f}
	if err := arc.add("init", modeProg, prog); err != nil {
		return err
	}
	if err := arc.close(); err != nil {
		return err
	}
	return f.Close()
}

// standsAlone refuses a program that needs a loader, of which a first root file system
// has none.
func standsAlone(prog []byte) error {
	f, err := elf.NewFile(bytes.NewReader(prog))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("it is not static: build it with CGO_ENABLED=0")
		}
	}
	return nil
}
