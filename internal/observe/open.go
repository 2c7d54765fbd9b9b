package observe

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/image"
	"dmloop/internal/manifest"
)

// ErrImageGone says that the recorded inode does not exist any more.
var ErrImageGone = errors.New("the image does not exist any more")

// FileHandle returns the file system's own name of the inode, which stays when a
// folder above it is renamed or the file system is mounted elsewhere. A file system
// that gives none is found by path only.
func FileHandle(img *image.Image) manifest.Handle {
	h, _, err := unix.NameToHandleAt(int(img.File().Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return manifest.Handle{}
	}
	return manifest.Handle{Type: h.Type(), Hex: hex.EncodeToString(h.Bytes())}
}

// Open opens the image of a record: with open, when its path still leads to it, and
// else by its handle. No other file that is at the path by now is opened. It returns
// ErrImageGone when the file system says that the inode is no more, and otherwise what
// was wrong with the path.
func Open(want manifest.Image, open func(*image.Found) (*image.Image, error)) (*image.Image, error) {
	img, err := openPath(want, open)
	if err == nil {
		return img, nil
	}
	byHandle, herr := openHandle(want)
	switch {
	case herr == nil:
		return byHandle, nil
	case errors.Is(herr, ErrImageGone):
		return nil, herr
	}
	return nil, err
}

func openPath(want manifest.Image, open func(*image.Found) (*image.Image, error)) (*image.Image, error) {
	other := fmt.Errorf("%s is another file now than the one that was mapped", want.Path)
	found, err := image.Find(want.Path)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	if id := found.Identity(); id.Major != want.Major || id.Minor != want.Minor || id.Inode != want.Inode {
		return nil, other
	}
	img, err := open(found)
	if err != nil {
		return nil, err
	}
	if !Is(img, want) {
		img.Close()
		return nil, other
	}
	return img, nil
}

// Is reports whether img is the image of the record.
func Is(img *image.Image, want manifest.Image) bool {
	id, err := img.Identity()
	return err == nil && sameInode(want, id)
}

// sameInode compares what a rename or remount does not change.
func sameInode(m manifest.Image, id image.Identity) bool {
	return m.Major == id.Major && m.Minor == id.Minor && m.Inode == id.Inode &&
		m.Generation == id.Generation && m.Birth == id.Birth
}

// openHandle opens the inode through any mount of its file system.
func openHandle(want manifest.Image) (*image.Image, error) {
	raw, err := hex.DecodeString(want.Handle.Hex)
	if err != nil || len(raw) == 0 {
		return nil, errors.New("the record has no handle")
	}
	mounts, err := image.MountsOf(dmtable.Device{Major: want.Major, Minor: want.Minor})
	if err != nil {
		return nil, err
	}
	err = errors.New("its file system is not mounted")
	for _, m := range mounts {
		var img *image.Image
		if img, err = openOn(m.Point, want, raw); err == nil || errors.Is(err, ErrImageGone) {
			return img, err
		}
	}
	return nil, err
}

func openOn(mountpoint string, want manifest.Image, handle []byte) (*image.Image, error) {
	dir, err := unix.Open(mountpoint, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(want.Handle.Type, handle), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if errors.Is(err, unix.ESTALE) {
		return nil, ErrImageGone
	}
	if err != nil {
		return nil, err
	}
	img, err := image.Adopt(os.NewFile(uintptr(fd), want.Path))
	if err != nil {
		return nil, err
	}
	id, err := img.Identity()
	if err == nil && !sameInode(want, id) {
		err = ErrImageGone // the inode number was given to another file
	}
	if err != nil {
		img.Close()
		return nil, err
	}
	return img, nil
}
