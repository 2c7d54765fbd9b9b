package seal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dmloop/internal/inode"
)

// IntentSuffix ends the name of the file that holds an intent, where files have no
// attributes: it is in the image's folder, begins with the image's name, and is there only
// while a seal or unseal is under way. A file cannot be made longer in one step there, so
// what was begun has to be known from elsewhere than from its end.
const IntentSuffix = ".dmloop-seal"

// folder opens the image's folder and returns the name that the intent has there.
func (s fileStore) folder() (dir int, name string, err error) {
	path, err := os.Readlink(inode.Link(s.fd()))
	if err != nil {
		return -1, "", err
	}
	dir, err = unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	var own, there unix.Stat_t
	err = unix.Fstat(s.fd(), &own)
	if err == nil {
		err = unix.Fstatat(dir, filepath.Base(path), &there, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil && (own.Dev != there.Dev || own.Ino != there.Ino) {
		err = unix.ESTALE
	}
	if err != nil {
		unix.Close(dir)
		return -1, "", fmt.Errorf("%s: what was begun with it is looked up beside it, and its name does not lead to it: %w", path, err)
	}
	return dir, filepath.Base(path) + IntentSuffix, nil
}

// intent reads the file beside the image. One that is not a whole intent was cut while it
// was written, before anything of the image was changed: it counts as none.
func (s fileStore) intent() ([]byte, error) {
	dir, name, err := s.folder()
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	f, err := openBeside(dir, name, unix.O_RDONLY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, RecordSize+1))
	if err != nil {
		return nil, err
	}
	if r, err := Decode(raw); len(raw) != RecordSize || err != nil || r.Phase == PhaseSealed {
		return nil, nil
	}
	return raw, nil
}

// setIntent writes the file beside the image and has it on the disk when it returns. What
// it replaces is changed in one sector. That an image is sealed is not written down there.
func (s fileStore) setIntent(p []byte) error {
	if r, err := Decode(p); err != nil || r.Phase == PhaseSealed {
		return errors.Join(err, s.dropIntent())
	}
	dir, name, err := s.folder()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	f, err := openBeside(dir, name, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, 0)
	if err == nil {
		err = f.Truncate(int64(len(p)))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// dropIntent removes the file beside the image, if it is there.
func (s fileStore) dropIntent() error {
	dir, name, err := s.folder()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil
	}
	return s.fail("unlink "+name, err)
}

// openBeside opens a regular file in a folder, and nothing else.
func openBeside(dir int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	switch err = unix.Fstat(fd, &st); {
	case err != nil:
		err = &os.PathError{Op: "fstat", Path: name, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = fmt.Errorf("%s: not a regular file", name)
	case st.Nlink != 1: // somebody may have given another file this name
		err = fmt.Errorf("%s: it has other names", name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
