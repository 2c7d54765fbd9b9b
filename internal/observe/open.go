package observe

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"dmloop/internal/image"
	"dmloop/internal/inode"
	"dmloop/internal/record"
)

// ErrImageGone says that the recorded inode does not exist any more.
var ErrImageGone = errors.New("the image does not exist any more")

// ErrSeemsGone says that the file system under the recorded device number knows no such
// inode, and that nobody can tell whether it is the image's file system. That is enough
// to stop a mapping, and not to give up what pins the image.
var ErrSeemsGone = errors.New("the image seems not to exist any more")

// FileHandle returns the file system's own name of the inode, which stays when a
// folder above it is renamed or the file system is mounted elsewhere. A file system
// that gives none is found by path only.
func FileHandle(img *image.Image) record.Handle {
	h, _, err := unix.NameToHandleAt(int(img.File().Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return record.Handle{}
	}
	return record.Handle{Type: h.Type(), Hex: hex.EncodeToString(h.Bytes())}
}

// FolderHandle is FileHandle of the folder that the image is in.
func FolderHandle(img *image.Image) record.Handle {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Dir(img.Path()), 0)
	if err != nil {
		return record.Handle{}
	}
	return record.Handle{Type: h.Type(), Hex: hex.EncodeToString(h.Bytes())}
}

// PathNow returns the path that the opened image of a record has now, or that of the
// record where it is not known. The kernel does not know it of a file that was opened by
// its handle, and always knows the path of a folder.
func PathNow(img *image.Image, want record.Image) string {
	if path := img.PathNow(); path != "" {
		return path
	}
	id, err := img.Identity()
	if err != nil || want.Folder.Hex == "" {
		return want.Path
	}
	mounts, err := image.MountsOf(id.Device())
	if err != nil {
		return want.Path
	}
	for _, m := range mounts {
		fd, err := openFolder(m.Point, want.Folder)
		if err != nil {
			continue
		}
		folder, err := os.Readlink(inode.Link(fd))
		unix.Close(fd)
		if path := filepath.Join(folder, filepath.Base(want.Path)); err == nil && img.IsAt(path) {
			return path
		}
	}
	return want.Path
}

// openFolder opens the folder that a handle names on the file system that is mounted
// there, as a place only.
func openFolder(mountpoint string, h record.Handle) (fd int, err error) {
	raw, err := hex.DecodeString(h.Hex)
	if err != nil {
		return -1, err
	}
	dir, err := unix.Open(mountpoint, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.OpenByHandleAt(dir, unix.NewFileHandle(h.Type, raw), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
}

// Open opens the image of a record: with open, when its path still leads to it, and
// else by its handle. No other file that is at the path by now is opened. It returns
// ErrImageGone only when the image's own file system says that the inode is gone, and
// otherwise what was wrong with the path.
func Open(want record.Image, open func(*image.Found) (*image.Image, error)) (*image.Image, error) {
	img, err := openPath(want, open)
	if err == nil {
		return img, nil
	}
	byHandle, herr := openHandle(want)
	switch {
	case herr == nil:
		return byHandle, nil
	case heldNowhere(want):
		return nil, letGo{want}
	case errors.Is(herr, ErrImageGone):
		return nil, herr
	}
	if _, missing := os.Stat(want.Path); missing != nil || errors.Is(err, errOther) {
		return nil, fmt.Errorf("%w, and %w", err, herr)
	}
	return nil, err
}

func openPath(want record.Image, open func(*image.Found) (*image.Image, error)) (*image.Image, error) {
	found, err := image.Find(want.Path)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	id := found.Identity()
	if same, _ := Same(want, id, PlaceOf(id)); same == Other {
		return nil, fmt.Errorf("%s %w", want.Path, errOther)
	}
	img, err := open(found)
	if err != nil {
		return nil, err
	}
	if err := isImage(want, img); err != nil {
		img.Close()
		return nil, err
	}
	return img, nil
}

// Is reports whether img is the image of the record.
func Is(img *image.Image, want record.Image) bool { return isImage(want, img) == nil }

var errOther = errors.New("is another file now than the one that was mapped")

// isImage returns nil for the image of the record.
func isImage(want record.Image, img *image.Image) error {
	id, err := img.Identity()
	if err != nil {
		return err
	}
	same, why := Same(want, id, placeOf(img.File(), id.Device(), want.Filesystem))
	if handle := FileHandle(img); same != Other && want.Handle.Hex != "" && handle.Hex != "" && handle != want.Handle {
		same = Other // inode numbers are those of a subvolume on btrfs
	}
	switch same {
	case TheSame:
		return nil
	case Untold:
		return fmt.Errorf("cannot tell whether %s is the file that was mapped: %w", want.Path, why)
	}
	return fmt.Errorf("%s %w", want.Path, errOther)
}

// openHandle opens the inode through any mount of its file system.
func openHandle(want record.Image) (*image.Image, error) {
	raw, err := hex.DecodeString(want.Handle.Hex)
	if err != nil || len(raw) == 0 {
		return nil, errors.New("the record has no handle")
	}
	mounts, err := image.Mounts()
	if err != nil {
		return nil, err
	}
	// The mounts of the recorded number come first: where its file system is there, no
	// other is asked.
	slices.SortStableFunc(mounts, func(a, b image.Mount) int {
		return cmp.Compare(elsewhere(a, want), elsewhere(b, want))
	})
	var gone, failed error
	for _, m := range mounts {
		if m.Type != want.Filesystem {
			continue
		}
		img, err := openOn(m, want, raw)
		switch {
		case err == nil:
			return img, nil
		case errors.Is(err, ErrImageGone):
			gone = err
		case !errors.Is(err, errElsewhere):
			failed = err
		}
	}
	switch {
	case gone != nil:
		return nil, gone
	case failed != nil:
		return nil, failed
	case want.FSUUID != "":
		return nil, fmt.Errorf("its file system (UUID %s) is not mounted", want.FSUUID)
	}
	return nil, fmt.Errorf("its file system (device %s) is not mounted", want.Device())
}

// elsewhere is 0 for a mount of the recorded device number, and otherwise 1.
func elsewhere(m image.Mount, want record.Image) int {
	if m.Device == want.Device() {
		return 0
	}
	return 1
}

// errElsewhere says that a mount is not of the image's file system.
var errElsewhere = errors.New("another file system")

// openOn opens the inode through one mount.
func openOn(m image.Mount, want record.Image, handle []byte) (*image.Image, error) {
	if want.FSUUID == "" && m.Device != want.Device() {
		return nil, errElsewhere
	}
	root, err := openRoot(m)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	gone := ErrImageGone
	if want.FSUUID != "" {
		untold, err := ofFilesystem(m, root, want)
		if err != nil {
			return nil, err
		}
		if untold != nil {
			gone = fmt.Errorf("%w: %w", ErrSeemsGone, untold)
		}
	}
	fd, err := unix.OpenByHandleAt(int(root.Fd()), unix.NewFileHandle(want.Handle.Type, handle), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if errors.Is(err, unix.ESTALE) {
		return nil, gone
	}
	if err != nil {
		return nil, os.NewSyscallError("open_by_handle_at", err)
	}
	img, err := image.Adopt(os.NewFile(uintptr(fd), want.Path))
	if err != nil {
		return nil, err
	}
	if err = isImage(want, img); errors.Is(err, errOther) {
		err = gone // the inode number was given to another file
	}
	if err != nil {
		img.Close()
		return nil, err
	}
	return img, nil
}

// openRoot opens the root directory of a mount, which another may hide.
func openRoot(m image.Mount) (*os.File, error) {
	fd, err := unix.Open(m.Point, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: m.Point, Err: err}
	}
	root := os.NewFile(uintptr(fd), m.Point)
	var st unix.Statx_t
	err = os.NewSyscallError("statx", unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st))
	if err == nil && (st.Mask&unix.STATX_MNT_ID == 0 || st.Mnt_id != m.ID) {
		err = fmt.Errorf("%w is mounted over %s", errElsewhere, m.Point)
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

// ofFilesystem returns nil for a mount of the recorded file system, by its UUID. A guard in its
// unit, say, may not read block devices: then the device number has to do, and untold says
// why.
func ofFilesystem(m image.Mount, root *os.File, want record.Image) (untold, err error) {
	uuid, err := uuidOf(root, want.Filesystem)
	switch {
	case err == nil && uuid != want.FSUUID:
		return nil, errElsewhere
	case err != nil:
		untold = fmt.Errorf("the UUID of the file system on %s cannot be read: %w", m.Point, err)
		if m.Device != want.Device() {
			return nil, untold
		}
		return untold, nil
	case m.Device == want.Device():
		return nil, nil
	}
	switch same, why := placeOf(root, m.Device, want.Filesystem).Moved(want); same {
	case Other:
		return nil, errElsewhere
	case Untold:
		return nil, fmt.Errorf("cannot tell whether %s is the file that was mapped: %w", want.Path, why)
	}
	return nil, nil
}
