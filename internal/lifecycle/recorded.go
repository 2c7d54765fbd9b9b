package lifecycle

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"dmloop/internal/image"
	"dmloop/internal/manifest"
)

// errImageGone says that the recorded inode does not exist any more.
var errImageGone = errors.New("the image does not exist any more")

// fileHandle returns the file system's own name of the inode, which stays when a
// folder above it is renamed or the file system is mounted elsewhere. A file system
// that gives none is found by path only.
func fileHandle(img *image.Image) manifest.Handle {
	h, _, err := unix.NameToHandleAt(int(img.File().Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return manifest.Handle{}
	}
	return manifest.Handle{Type: h.Type(), Hex: hex.EncodeToString(h.Bytes())}
}

// openRecorded opens the image of a record: by its path, and when that leads to
// another file or to none, by its handle. It returns errImageGone when the file
// system says that the inode is no more.
func (s *System) openRecorded(ctx context.Context, want manifest.Image) (*image.Image, error) {
	img, err := s.openImage(ctx, want.Path)
	if err == nil {
		var id image.Identity
		if id, err = img.Identity(); err == nil && sameInode(want, id) {
			return img, nil
		}
		img.Close()
		if err == nil {
			err = fmt.Errorf("%s is another file now than the one that was mapped", want.Path)
		}
	}
	byHandle, herr := openHandle(want)
	switch {
	case herr == nil:
		return byHandle, nil
	case errors.Is(herr, errImageGone):
		return nil, herr
	}
	s.log.Debug("the image cannot be opened by its handle", "image", want.Path, "error", herr)
	return nil, err
}

// openHandle opens the inode through any mount of its file system.
func openHandle(want manifest.Image) (*image.Image, error) {
	raw, err := hex.DecodeString(want.Handle.Hex)
	if err != nil || len(raw) == 0 {
		return nil, errors.New("the record has no handle")
	}
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Major != int(want.Major) || i.Minor != int(want.Minor), false
	})
	if err != nil {
		return nil, err
	}
	err = errors.New("its file system is not mounted")
	for _, m := range mounts {
		var img *image.Image
		if img, err = openOn(m.Mountpoint, want, raw); err == nil || errors.Is(err, errImageGone) {
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
		return nil, errImageGone
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
		err = errImageGone // the inode number was given to another file
	}
	if err != nil {
		img.Close()
		return nil, err
	}
	return img, nil
}
