package image

import (
	"fmt"

	"dmloop/extents"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// Problems returns every reason outside the layout itself why length bytes of the
// image from offset cannot be mapped, in the order of the rules. The whole file is
// Problems(0, f.Size). In hints IMAGE stands for the image's path and DEVICE for what its
// file system is mounted from.
func (f Facts) Problems(offset, length extents.Bytes) []extents.Problem {
	var problems []extents.Problem
	add := func(rule extents.Rule, hint, format string, args ...any) {
		problems = append(problems, extents.Problem{Rule: rule, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	if f.Size == 0 || length == 0 {
		add(extents.Empty, "make one with: dmloop create IMAGE SIZE", "the file is empty")
	}
	problems = append(problems, f.unaligned(offset, length)...)
	if reason, hint := f.unsupportedReason(); reason != "" {
		add(extents.UnsupportedFS, hint, "%s", reason)
	}
	f.attributeProblems(add)
	if f.Devices.Count > 1 {
		add(extents.MultiDevice, "move the file to a file system on one device",
			"the %s file system keeps data on %d devices, and an extent does not say on which it lies", f.Filesystem, f.Devices.Count)
	}
	if f.Devices.Unknown != "" {
		add(extents.MultiDevice, "run it where the device can be read (as root, with its node in /dev), or move the file to a file system on one device",
			"cannot tell whether the %s file system keeps data on several devices: %s", f.Filesystem, f.Devices.Unknown)
	}
	if f.Swap.Active {
		add(extents.ActiveSwap, "run: swapoff IMAGE", "the kernel uses the file as swap space (%s in /proc/swaps)", f.Swap.Path)
	}
	if f.Kind() == "ext4" && f.InodeFlags&inode.Extents == 0 {
		hint := "run: chattr +e IMAGE"
		if f.NoExtents {
			hint = "the file system has none, so chattr cannot help: unmount it, run: tune2fs -O extent DEVICE, mount it, and then run: chattr +e IMAGE"
		}
		add(extents.Indirect, hint, "ext4 keeps the file in indirect blocks instead of extents")
	}
	return problems
}

// Unfit reads the attributes of the inode afresh and returns every one that makes the
// image unmappable: somebody may have set them since it was mapped.
func (i *Image) Unfit() ([]extents.Problem, error) {
	st, err := i.statx(unix.STATX_BASIC_STATS)
	if err != nil {
		return nil, err
	}
	facts := Facts{Attributes: st.Attributes & st.Attributes_mask}
	if facts.InodeFlags, err = inode.Flags(i.file); err != nil && !inode.NotSupported(err) {
		return nil, i.wrap(err)
	}
	if facts.XFlags, err = inode.XFlags(i.file); err != nil && !inode.NotSupported(err) {
		return nil, i.wrap(err)
	}
	if facts.InodeFlags&inode.JournalData != 0 {
		facts.DataJournal = JournalAttribute
	}
	var problems []extents.Problem
	facts.attributeProblems(func(rule extents.Rule, hint, format string, args ...any) {
		problems = append(problems, extents.Problem{Rule: rule, Message: fmt.Sprintf(format, args...), Hint: hint})
	})
	return problems, nil
}

// attributeProblems judges the attributes of the inode.
func (f Facts) attributeProblems(add func(rule extents.Rule, hint, format string, args ...any)) {
	has := func(inodeFlag uint32, attribute uint64) bool {
		return f.InodeFlags&inodeFlag != 0 || f.Attributes&attribute != 0
	}
	if has(inode.Encrypt, unix.STATX_ATTR_ENCRYPTED) {
		add(extents.Encrypted, "move the file to a directory without file-system encryption", "the file system encrypts the file")
	}
	if has(inode.Compress, unix.STATX_ATTR_COMPRESSED) {
		add(extents.Compressed, "dmloop provision IMAGE", "the file system may compress the file (chattr +c)")
	}
	if has(inode.Verity, unix.STATX_ATTR_VERITY) {
		add(extents.Verity, "copy the file: fs-verity cannot be taken off", "the file is sealed by fs-verity, which writes behind the file system would break")
	}
	if has(inode.DAX, unix.STATX_ATTR_DAX) || f.XFlags&inode.XDAX != 0 {
		add(extents.DAX, "run: chattr -x IMAGE, or mount the file system with dax=never", "the file is accessed as memory (DAX)")
	}
	if f.DataJournal != "" {
		cause := journalCauses[f.DataJournal]
		add(extents.DataJournal, cause.hint,
			"ext4 writes the file's data through its journal (%s) and would overwrite the mapped blocks later", cause.what)
	}
	if f.XFlags&inode.XRealtime != 0 {
		add(extents.Realtime, "copy the file without the real-time attribute", "the file lies on the real-time device of xfs")
	}
}

// journalCauses describes each cause of data journalling and how to end it.
var journalCauses = map[JournalCause]struct{ what, hint string }{
	JournalAttribute:  {"chattr +j", "run: chattr -j IMAGE"},
	JournalMount:      {"mount option data=journal", "unmount the file system and mount it without data=journal"},
	JournalSuperblock: {"default of the file system", "run: tune2fs -o ^journal_data DEVICE, then unmount and mount the file system"},
}

// unsupportedReason returns why nothing on this file system can be mapped, with a
// hint, or "". This is the one list of file systems that can.
func (f Facts) unsupportedReason() (reason, hint string) {
	move := "move the image to ext4, xfs or f2fs"
	if f.ReadOnly { // a disc, or a live system
		move = "copy the image to ext4, xfs or f2fs, or use it where it is through loop: losetup -r -f --show IMAGE"
	}
	mounted, remedy := f.Mount.refused()
	switch kind := f.Kind(); {
	case kind == "" && knownKinds[f.Filesystem] != 0:
		return fmt.Sprintf("the mount says %s, but the file itself is on another file system (0x%x)", f.Filesystem, f.Magic), move
	case kind == "":
		return fmt.Sprintf("the file system is %s, and only ext4, xfs, f2fs and btrfs can be mapped from", f.Filesystem), move
	case mounted != "":
		return fmt.Sprintf("the %s file system %s", f.Filesystem, mounted), remedy
	case kind == "btrfs":
		// Its device number is anonymous; it has rules of its own (package btrfs).
		return "", ""
	case f.Device.Major == 0:
		return fmt.Sprintf("the %s file system has no block device of its own (device number %v)", f.Filesystem, f.Device), move
	case f.Device != f.Mount.Device:
		return fmt.Sprintf("the file is on device %v but its mount on %v", f.Device, f.Mount.Device), move
	}
	return "", ""
}

// unaligned describes a window that does not begin or end on block borders.
func (f Facts) unaligned(offset, length extents.Bytes) (problems []extents.Problem) {
	limited := offset+length < f.Size
	if rest := offset % f.block(); rest != 0 {
		problems = append(problems, extents.Problem{Rule: extents.SizeUnaligned,
			Message: fmt.Sprintf("the offset %d is not a multiple of the file system's block of %d bytes", offset, f.block()),
			Hint:    fmt.Sprintf("use an offset of %d or %d", offset-rest, offset-rest+f.block())})
		if !limited { // then the whole file counts: what is left of it is the offset's fault
			offset, length = 0, offset+length
		}
	}
	rest := length % f.block()
	if rest == 0 {
		return problems
	}
	p := extents.Problem{Rule: extents.SizeUnaligned, Offset: offset + length - rest, Length: rest,
		Message: fmt.Sprintf("the size %d is not a multiple of the file system's block of %d bytes", length, f.block()),
		Hint:    fmt.Sprintf("run: truncate -s %%%d IMAGE, then: dmloop provision IMAGE", f.block())}
	if limited {
		p.Hint = fmt.Sprintf("use a size limit of %d or %d", length-rest, length-rest+f.block())
		if rest == length {
			p.Hint = fmt.Sprintf("use a size limit of %d", f.block())
		}
	}
	return append(problems, p)
}

// block returns the block size as a divisor: a few file systems report 0.
func (f Facts) block() extents.Bytes { return max(f.BlockSize, 1) }
