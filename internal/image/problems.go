package image

import (
	"fmt"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fstype"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// usual leaves what to do to the rule.
var usual extents.Remedy

// Problems returns every reason outside the layout itself why length bytes of the
// image from offset cannot be mapped, in the order of the rules. The whole file is
// Problems(0, f.Size).
func (f Facts) Problems(offset, length extents.Bytes) []extents.Problem {
	var problems []extents.Problem
	add := func(rule extents.Rule, remedy extents.Remedy, format string, args ...any) {
		problems = append(problems, extents.Problem{Rule: rule, Message: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if f.Size == 0 || length == 0 {
		add(extents.Empty, advice.MakeImage, "the file is empty")
	}
	problems = append(problems, f.Unaligned(f.block(), "the file system's block", offset, length)...)
	if reason, remedy := f.unsupportedReason(); reason != "" {
		add(extents.UnsupportedFS, remedy, "%s", reason)
	}
	f.attributeProblems(add)
	problems = append(problems, f.deviceProblems()...)
	if f.Swap.Active {
		add(extents.ActiveSwap, usual, "the kernel uses the file as swap space (%s in /proc/swaps)", f.Swap.Path)
	}
	if f.Kind() == "ext4" && f.InodeFlags&inode.Extents == 0 {
		remedy := usual
		if f.NoExtents {
			remedy = advice.AddExtents.Of(f.Mount.Source)
		}
		add(extents.Indirect, remedy, "ext4 keeps the file in indirect blocks instead of extents")
	}
	return problems
}

// deviceProblems judges on how many devices the data may lie.
func (f Facts) deviceProblems() (problems []extents.Problem) {
	if f.Devices.Count > 1 {
		problems = append(problems, extents.Problem{Rule: extents.MultiDevice, Message: fmt.Sprintf(
			"the %s file system keeps data on %d devices, and an extent does not say on which it lies", f.Filesystem, f.Devices.Count)})
	}
	if f.Devices.Unknown != "" {
		problems = append(problems, extents.Problem{Rule: extents.MultiDevice, Remedy: advice.ReadDevices, Message: fmt.Sprintf(
			"cannot tell whether the %s file system keeps data on several devices: %s", f.Filesystem, f.Devices.Unknown)})
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
	facts.attributeProblems(func(rule extents.Rule, remedy extents.Remedy, format string, args ...any) {
		problems = append(problems, extents.Problem{Rule: rule, Message: fmt.Sprintf(format, args...), Remedy: remedy})
	})
	return problems, nil
}

// attributeProblems judges the attributes of the inode.
func (f Facts) attributeProblems(add func(rule extents.Rule, remedy extents.Remedy, format string, args ...any)) {
	has := func(inodeFlag uint32, attribute uint64) bool {
		return f.InodeFlags&inodeFlag != 0 || f.Attributes&attribute != 0
	}
	if has(inode.Encrypt, unix.STATX_ATTR_ENCRYPTED) {
		add(extents.Encrypted, usual, "the file system encrypts the file")
	}
	if has(inode.Compress, unix.STATX_ATTR_COMPRESSED) {
		add(extents.Compressed, usual, "the file system may compress the file (chattr +c)")
	}
	if has(inode.Verity, unix.STATX_ATTR_VERITY) {
		add(extents.Verity, usual, "the file is sealed by fs-verity, which writes past the file system would break")
	}
	if has(inode.DAX, unix.STATX_ATTR_DAX) || f.XFlags&inode.XDAX != 0 {
		add(extents.DAX, usual, "the file is accessed as memory (DAX)")
	}
	if f.DataJournal != "" {
		cause := journalCauses[f.DataJournal]
		add(extents.DataJournal, cause.remedy.Of(f.Mount.Source),
			"ext4 writes the file's data through its journal (%s) and would overwrite the mapped blocks later", cause.what)
	}
	if f.XFlags&inode.XRealtime != 0 {
		add(extents.Realtime, usual, "the file lies on the real-time device of xfs")
	}
}

// journalCauses describes each cause of data journalling and how to end it.
var journalCauses = map[JournalCause]struct {
	what   string
	remedy extents.Remedy
}{
	JournalAttribute:  {"chattr +j", advice.ClearJournalFlag},
	JournalMount:      {"mount option data=journal", advice.MountWithoutJournalling},
	JournalSuperblock: {"default of the file system", advice.ClearJournalDefault},
}

// unsupportedReason returns why nothing on this file system can be mapped, and what to
// do, or "". This is the one list of file systems that can.
func (f Facts) unsupportedReason() (reason string, remedy extents.Remedy) {
	move := advice.MoveImage
	if f.ReadOnly { // a disc, or a live system
		move = advice.CopyOrLoop
	}
	mounted, remount := f.Mount.refused()
	switch kind := f.Kind(); {
	case kind == "" && fstype.Of(f.Filesystem).Known():
		return fmt.Sprintf("the mount says %s, but the file itself is on another file system (0x%x)", f.Filesystem, f.Magic), move
	case kind == "":
		return fmt.Sprintf("the file system is %s, and only images on %s can be mapped", f.Filesystem, fstype.Names()), move
	case mounted != "":
		return fmt.Sprintf("the %s file system %s", f.Filesystem, mounted), remount
	case fstype.Of(kind).OwnAddresses: // it has rules of its own (package btrfs)
		return "", usual
	case f.Device.Major == 0:
		return fmt.Sprintf("the %s file system has no block device of its own (device number %v)", f.Filesystem, f.Device), move
	case f.Device != f.Mount.Device:
		return fmt.Sprintf("the file is on device %v but its mount on %v", f.Device, f.Mount.Device), move
	}
	return "", usual
}

// Unaligned describes a window that does not begin or end on borders of blocks of this size,
// which people know as what.
func (f Facts) Unaligned(block extents.Bytes, what string, offset, length extents.Bytes) (problems []extents.Problem) {
	limited := offset+length < f.Size
	if rest := offset % block; rest != 0 {
		problems = append(problems, extents.Problem{Rule: extents.SizeUnaligned,
			Message: fmt.Sprintf("the offset %d is not a multiple of %s of %d bytes", offset, what, block),
			Remedy:  advice.OffsetBetween.At(offset-rest, offset-rest+block)})
		if !limited { // then the whole file counts: what is left of it is the offset's fault
			offset, length = 0, offset+length
		}
	}
	rest := length % block
	if rest == 0 {
		return problems
	}
	p := extents.Problem{Rule: extents.SizeUnaligned, Offset: offset + length - rest, Length: rest,
		Message: fmt.Sprintf("the size %d is not a multiple of %s of %d bytes", length, what, block),
		Remedy:  advice.SizeTo.At(block, 0)}
	if limited {
		p.Remedy = advice.LimitBetween.At(length-rest, length-rest+block)
		if rest == length {
			p.Remedy = advice.LimitOf.At(block, 0)
		}
	}
	return append(problems, p)
}

// block returns the block size as a divisor: a few file systems report 0.
func (f Facts) block() extents.Bytes { return max(f.BlockSize, 1) }
