package hostfiles

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// WriteTo leaves the output in dir. The folder is the generator's own and begins
// empty; a file or link that is there already is not touched, and is not an error, as
// another line may have asked for the same.
func (o Output) WriteTo(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(o.Files)) {
		errs = append(errs, writeFile(root, name, o.Files[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(o.Links)) {
		err := root.MkdirAll(filepath.Dir(name), 0o755)
		if err == nil {
			err = root.Symlink(o.Links[name], name)
		}
		errs = append(errs, ignoreExisting(err))
	}
	return errors.Join(errs...)
}

func writeFile(root *os.Root, name, text string) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return ignoreExisting(err)
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func ignoreExisting(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}
