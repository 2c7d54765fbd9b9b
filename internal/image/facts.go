package image

import (
	"fmt"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/fstype"
	"dmloop/internal/inode"
	"dmloop/internal/swap"

	"golang.org/x/sys/unix"
)

// Facts is what the kernel says about an image and its file system, apart from the
// layout: a plain value. Where the kernel does not tell, the field says so; it
// never holds a guess.
type Facts struct {
	Filesystem string         `json:"filesystem"` // type as mountinfo names it, such as "ext4" or "fuse.sshfs"
	Magic      uint32         `json:"magic"`      // f_type of statfs(2)
	BlockSize  extents.Bytes  `json:"blockSize"`  // of the file system
	Size       extents.Bytes  `json:"size"`       // of the file
	Links      uint32         `json:"links"`      // number of hard links
	Owner      uint32         `json:"owner"`      // user id
	Mode       uint32         `json:"mode"`       // permission bits
	Device     dmtable.Device `json:"device"`     // st_dev: the host device, or anonymous (major 0)
	Mount      Mount          `json:"mount"`
	ReadOnly   bool           `json:"readOnly"` // mount or file system is read-only

	InodeFlags uint32 `json:"inodeFlags"` // FS_*_FL of FS_IOC_GETFLAGS; 0 where not supported
	XFlags     uint32 `json:"xflags"`     // FS_XFLAG_* of FS_IOC_FSGETXATTR; 0 where not supported
	Attributes uint64 `json:"attributes"` // STATX_ATTR_*, only bits that the file system knows

	Reflink     bool         `json:"reflink"` // the file system can share blocks between files
	DataJournal JournalCause `json:"dataJournal"`
	Devices     DeviceUse    `json:"devices"`
	Pin         F2FSPin      `json:"pin"`
	Swap        SwapStatus   `json:"swap"`
	NoExtents   bool         `json:"noExtents"` // ext4 without the feature extents, as far as the device may be read
}

// DeviceUse tells on how many devices the file's data may lie without the file telling on
// which. xfs's external log never holds file data, and of its real-time device a file's
// attribute tells.
type DeviceUse struct {
	Count   int    `json:"count"`   // 0 when not known
	Unknown string `json:"unknown"` // why Count is not known
}

// JournalCause is what makes ext4 write a file's data through its journal; empty
// when nothing does.
type JournalCause string

// The causes, by where they are set.
const (
	JournalAttribute  JournalCause = "attribute"  // chattr +j
	JournalMount      JournalCause = "mount"      // mount -o data=journal
	JournalSuperblock JournalCause = "superblock" // tune2fs -o journal_data
)

// SwapStatus reports whether the file is an active swap file, as far as /proc/swaps
// shows: one that was switched on in another mount namespace is not found, but
// then the kernel has the file open and no write lease is granted.
type SwapStatus struct {
	Active bool   `json:"active"`
	Path   string `json:"path"` // as the kernel knows it
}

// F2FSPin is the state of F2FS_IOC_SET_PIN_FILE; zero on other file systems.
type F2FSPin struct {
	Pinned   bool   `json:"pinned"`
	Failures uint32 `json:"failures"` // how often garbage collection found the pinned file in its way; at gc_pin_file_thresh it drops the pin
}

// Immutable reports whether the file has the immutable attribute (chattr +i).
func (f Facts) Immutable() bool {
	return f.InodeFlags&inode.Immutable != 0 || f.Attributes&unix.STATX_ATTR_IMMUTABLE != 0
}

// NoCOW reports whether the file has the no-copy-on-write attribute (chattr +C):
// on btrfs its blocks are rewritten in place, on f2fs it is pinned.
func (f Facts) NoCOW() bool { return f.InodeFlags&inode.NoCOW != 0 }

// Facts reads everything afresh. An error means that a question could not be
// asked that has to be; a file system whose images cannot be mapped is not an error.
func (i *Image) Facts() (Facts, error) {
	facts, err := i.common()
	if err != nil {
		return Facts{}, err
	}
	if err := i.readAttributes(&facts); err != nil {
		return Facts{}, i.wrap(err)
	}
	entry, active, err := swap.Lookup(i.file)
	if err != nil {
		return Facts{}, i.wrap(err)
	}
	if active {
		facts.Swap = SwapStatus{Active: true, Path: entry.Path}
	}
	if err := i.readSpecific(&facts); err != nil {
		return Facts{}, i.wrap(err)
	}
	return facts, nil
}

// common reads what any descriptor tells.
func (i *Image) common() (Facts, error) {
	st, err := i.statx(unix.STATX_BASIC_STATS | unix.STATX_MNT_ID)
	if err != nil {
		return Facts{}, err
	}
	var fs unix.Statfs_t
	_, err = retry(func() (struct{}, error) { return struct{}{}, unix.Fstatfs(i.fd(), &fs) })
	if err != nil {
		return Facts{}, fmt.Errorf("%s: fstatfs: %w", i.Path(), err)
	}
	facts := Facts{
		Magic:      uint32(fs.Type),
		BlockSize:  extents.Bytes(fs.Bsize),
		Size:       extents.Bytes(st.Size),
		Links:      st.Nlink,
		Owner:      st.Uid,
		Mode:       uint32(st.Mode) & 0o7777,
		Device:     dmtable.Device{Major: st.Dev_major, Minor: st.Dev_minor},
		Attributes: st.Attributes & st.Attributes_mask,
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return Facts{}, fmt.Errorf("%s: the kernel does not say on which mount a file is (needs Linux 5.8)", i.Path())
	}
	mount, found, err := readMount(st.Mnt_id)
	if err != nil {
		return Facts{}, i.wrap(err)
	}
	facts.Mount = mount
	facts.Filesystem = mount.Type
	if !found {
		// A mount outside our root directory or mount namespace.
		facts.Filesystem = fmt.Sprintf("file system 0x%x on a mount that is not visible here", facts.Magic)
	}
	facts.ReadOnly = fs.Flags&unix.ST_RDONLY != 0
	if fstype.Of(facts.Kind()).Units {
		facts.BlockSize, err = extents.BlockUnit(i.file)
	}
	return facts, err
}

// readAttributes reads the inode's flags, which the file systems that can be mapped
// from all have.
func (i *Image) readAttributes(facts *Facts) error {
	var err error
	if fstype.Of(facts.Kind()).Bare {
		return nil
	}
	if facts.InodeFlags, err = inode.Flags(i.file); err != nil && (facts.Kind() != "" || !inode.NotSupported(err)) {
		return err
	}
	if facts.XFlags, err = inode.XFlags(i.file); err != nil && (facts.Kind() != "" || !inode.NotSupported(err)) {
		return err
	}
	return nil
}

// readSpecific asks what only this kind of file system answers.
func (i *Image) readSpecific(facts *Facts) error {
	var err error
	switch facts.Kind() {
	case "ext4":
		facts.Devices.Count = 1
		facts.DataJournal, err = ext4DataJournal(*facts)
		facts.NoExtents = facts.InodeFlags&inode.Extents == 0 && ext4LacksExtents(facts.Mount, facts.Device)
	case "xfs":
		// Each file lies as a whole on the mounted device or on the real-time one, as its attribute
		// says, which the kernel does not change once there are extents (xfs_ioctl_setattr_xflags).
		facts.Devices.Count = 1
		facts.Reflink, err = i.xfsReflink()
	case "f2fs":
		facts.Devices = f2fsDevices(facts.Mount, facts.Device)
		facts.Pin, err = i.f2fsPin(facts.NoCOW())
	case "btrfs":
		facts.Reflink = true
		facts.Devices.Count, err = i.btrfsDevices()
	case "vfat", "exfat", "ntfs3":
		facts.Devices.Count = 1
	}
	return err
}

// Kind returns the type of a file system whose rules dmloop knows, or "". The type
// that the mount names must agree with what the file itself says.
func (f Facts) Kind() string {
	if t := fstype.Of(f.Filesystem); t.Known() && t.Magic == f.Magic {
		return t.Name
	}
	return ""
}
