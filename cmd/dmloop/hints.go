package main

import (
	"strconv"
	"strings"
	"sync"

	"dmloop/extents"
	"dmloop/internal/advice"
)

// hints are the words for all that can be done. In them {image} stands for the image's
// path and {name} for the remedy's name, both quoted for a shell, {text} for the name as
// it is, {low} and {high} for its numbers.
var hints = sync.OnceValue(func() map[extents.Remedy]string {
	return map[extents.Remedy]string{
		// About files and their attributes.
		advice.MakeImage:               "make one with: dmloop create {image} SIZE",
		advice.CreateOne:               "give the path of an image file: dmloop create makes one",
		advice.FollowedLink:            "if the file that it leads to is the one you mean, give that file's own path: readlink -f {image}",
		advice.OffsetBetween:           "use an offset of {low} or {high}",
		advice.SizeTo:                  "run: truncate -s %{low} {image}, then: dmloop provision {image}",
		advice.LimitBetween:            "use a size limit of {low} or {high}",
		advice.LimitOf:                 "use a size limit of {low}",
		advice.SizeOf:                  "use a size of {low}",
		advice.MapPartitions:           "partition {low} begins there: map the whole image with its partitions: dmloop map --partscan {image}",
		advice.LeaveFooterOut:          "its last {low} bytes are the footer of a fixed VHD: leave them out with --sizelimit {high}",
		advice.ConvertFixedVHD:         "its last bytes are the footer of a fixed VHD, and the rest is not a whole number of blocks either: " + convert("vpc"),
		advice.ConvertVHD:              convert("vpc"),
		advice.ConvertVHDX:             convert("vhdx"),
		advice.ConvertQCOW:             convert("qcow2"),
		advice.ConvertQCOW1:            convert("qcow"),
		advice.ConvertVMDK:             convert("vmdk"),
		advice.ConvertVDI:              convert("vdi"),
		advice.ConvertDMG:              convert("dmg"),
		advice.ConvertSparse:           "make a plain image of it: simg2img {image} {name} && dmloop provision {name}",
		advice.Gunzip:                  "unpack it: gzip -dc {image} >{name} && dmloop provision {name}",
		advice.Unxz:                    "unpack it: xz -dc {image} >{name} && dmloop provision {name}",
		advice.Unzstd:                  "unpack it: zstd -dc {image} >{name} && dmloop provision {name}",
		advice.Bunzip:                  "unpack it: bzip2 -dc {image} >{name} && dmloop provision {name}",
		advice.MountReadOnly:           "map it read-only: dmloop map --read-only {image} NAME, then: mount -t {name} -o ro /dev/mapper/NAME DIRECTORY",
		advice.ClearFolderFlag:         "run: chattr -j {name}",
		advice.ClearFolderDAX:          "run: chattr -x {name}, or mount the file system with dax=never",
		advice.ClearFolderRealtime:     "run: xfs_io -c 'chattr -t' {name}",
		advice.ClearJournalFlag:        "run: chattr -j {image}",
		advice.MountWithoutJournalling: "unmount the file system and mount it without data=journal",
		advice.ClearJournalDefault:     "run: tune2fs -o ^journal_data {name}, then unmount and mount the file system",
		advice.AddExtents:              "the file system does not use extents, so chattr cannot help: unmount it, run: tune2fs -O extent {name}, mount it, and then run: chattr +e {image}",
		advice.ClearCompression:        "chattr -c {image}, then `dmloop provision {image}`",
		advice.CopyInOnePiece:          "copy it to a place where it has fewer extents, not on a striped device",
		advice.CloseAndProvision:       "close it there and run again: dmloop provision {image}",
		advice.UnpinF2FS:               "unpin the file and try again: f2fs_io pinfile unset {image} (f2fs-tools 1.16)",
		advice.ClearFlag:               "run: chattr -i {image}",
		advice.ClearOthersFlag:         "somebody else set the flag: chattr -i {image}",
		advice.ClearPins:               "clear the pins first: dmloop unpin {image}",
		advice.ClearEitherPin:          "dmloop unpin clears a pin that dmloop set; chattr -i one that was set by hand",
		advice.Unpin:                   "run: dmloop unpin {image}",
		advice.MakeAnew:                "make the file again: dmloop create",

		// About file systems and their mounts.
		advice.MoveImage:          "move the image to ext4, xfs or f2fs",
		advice.MoveToSealable:     "move the image to ext4, xfs, f2fs or btrfs",
		advice.CopyImage:          "copy the file to ext4, xfs or f2fs",
		advice.CreateElsewhere:    "create the image on ext4, xfs or f2fs",
		advice.CopyOrLoop:         "copy the image to ext4, xfs or f2fs, or use it where it is through loop: losetup -r -f --show {image}",
		advice.MountWithoutOption: "unmount it, and mount it without that option",
		advice.EnableCheckpoint:   "run: mount -o remount,checkpoint=enable {name}",
		advice.CheckAndMount:      "unmount it, check it with fsck, and mount it again",
		advice.ReadDevices:        "run it where the device can be read (as root, with its node in /dev), or move the file to a file system on one device",
		advice.OneDevice:          "keep the image on a file system with one device",
		advice.RemountWritable:    "mount it read-write: mount -o remount,rw {name}",
		advice.MakeWritable:       "mount the file system read-write (mount -o remount,rw), or copy the image to one that is",
		advice.MakeHostWritable:   "mount the file system read-write: mount -o remount,rw MOUNTPOINT",
		advice.MapReadOnly:        "nothing can move its blocks while the device stays read-only: dmloop map --read-only --pin=none --no-guard --unsafe {image}; or copy the image",
		advice.MountWithoutLFS:    "unmount it and mount it without mode=lfs; a zoned disk has no other mode: move the image to another disk",
		advice.PinFirst:           "make the image with dmloop create, which pins it first, or seal it: dmloop seal {image}",
		advice.OtherMount:         "map the image through another mount of its file system",
		advice.Thaw:               "wait until that is over, or thaw it: fsfreeze --unfreeze {name}",
		advice.WaitForBalance:     "wait until it is done: btrfs balance status MOUNTPOINT",

		// About who uses the file.
		advice.AskScanner:     "have the scanner leave the image alone, or wait until it is done with it",
		advice.SeeLease:       "try again, or see who it is: lslocks, fuser -v {image}",
		advice.AwaitProvision: "wait until it is done and try again",
		advice.SeeReaders:     "try again; if it stays so, see who reads the file: fuser -v {image}",
		advice.SeeOpeners:     "see who it is: fuser -v {image}",
		advice.SeeWriters:     "see who writes to the image, and what it holds: dmloop check {image}",
		advice.SeeWriter:      "see who writes to the image",
		advice.StopWriters:    "stop what writes to the image, and look at it: dmloop check {image}",
		advice.SeeSwapon:      "see who runs swapon, and run: swapoff {image}",
		advice.SeeSwapoff:     "see who runs swapoff, and map it again",
		advice.SeeChattr:      "see who runs chattr, or dmloop unpin with another state directory, and map it again",
		advice.MapByItsPath:   "map it in a mount namespace in which its path leads to it",
		advice.RootsAlone:     "run: chown root {image} && chmod 600 {image}",
		advice.ChownRoot:      "run: chown root {image}",
		advice.Chmod600:       "run: chmod 600 {image}",

		// About devices below the file system.
		advice.LargerBlocks:     "copy the image to a file system whose blocks are as large as the device's",
		advice.UnmapOther:       "unmap the other one first: dmloop unmap {name}",
		advice.TryDeviceAgain:   "something is changing the device; try again",
		advice.UnmapInner:       "unmap that one first",
		advice.RemoveDevice:     "see: dmsetup table {name}; remove it first: dmsetup remove {name}",
		advice.UnmapElsewhere:   "it was mapped where this command sees no record of it (in a container or a chroot, or with another state directory): unmap it there, or here: dmloop unmap {name}",
		advice.MountThroughShim: "mount it through device-mapper instead: umount {name} && dmloop shim {name} host && mount /dev/mapper/host DIRECTORY; or keep images on an LVM logical volume; or use loop instead: losetup --direct-io=on --find --show {image}",
		advice.PersistShim:      "it cannot be unmounted now, so have it mounted from a shim from the next boot on: dmloop shim --persist {name}; or keep images on an LVM logical volume; or use loop instead: losetup --direct-io=on --find --show {image}",
		advice.ShimOnTop:        "put a shim on top and mount the file system from it: umount {name} && dmloop shim {name} host && mount /dev/mapper/host DIRECTORY",
		advice.ResumeChanged:    "try again when the change is done, or end it: dmsetup resume {name}",
		advice.ClearTable:       "try again when the change is done, or drop it: dmsetup clear {name}",
		advice.ResumeDevice:     "resume it and try again: dmsetup resume {name}",
		advice.SeeTable:         "see: dmsetup table {name}",
		advice.UseShim:          "use that shim: mount /dev/mapper/{name}; or take it down first: umount /dev/mapper/{name} && dmloop shim --remove {name}",
		advice.ShimOnDevice:     "put the shim on /dev/mapper/{name}, or remove that device first: dmsetup ls --tree; dmsetup remove {name}",
		advice.UnmountForShim:   "unmount it first, then make the shim and mount /dev/mapper/{name} instead",
		advice.RemoveShim:       "dmloop shim --remove {name}",
		advice.UnmountShim:      "unmap the images on its file system and unmount that first",
		advice.ShimTheHost:      "mount the host file system from a shim: dmloop shim --help",

		// About seals and the kernel's claim.
		advice.Seal:              "dmloop seal {image}",
		advice.SealOrUnsafe:      "seal the image (dmloop seal), or accept the risk with --unsafe",
		advice.UseGuard:          "leave out --no-guard, seal the image (dmloop seal), or accept the risk with --no-guard --unsafe",
		advice.UsePins:           "use --pin=auto, seal the image (dmloop seal), or accept the risk with --unsafe",
		advice.UnmapOrSwapoff:    "unmap it first, or swapoff(8) it when nothing maps it",
		advice.SealAnew:          "the blocks lie elsewhere than when the image was sealed: unseal it and seal it again",
		advice.AdoptCopy:         "if it is a copy that lost its attribute, or was sealed before there was one, run: dmloop seal --adopt {image}",
		advice.AdoptOrSeal:       "if dmloop sealed it: dmloop seal --adopt {image}; otherwise: dmloop seal {image}",
		advice.AdoptOrPlain:      "if dmloop sealed it, mark it and try again: dmloop seal --adopt {image}; otherwise it is a plain image",
		advice.FinishSeal:        "nothing is lost: `dmloop seal` finishes it, `dmloop unseal` makes the image plain",
		advice.SealForThisKernel: "dmloop unseal {image}, and dmloop seal {image} for the pages of this kernel",
		advice.DropMarkOrRestore: "if another image was written to this file, run: setfattr -x {name} {image}; otherwise restore page 0 from a backup",
		advice.DropMark:          "the file has the size of the plain image: if it is in order as it is, run: setfattr -x {name} {image}",
		advice.SmallerBlocks:     "keep the image on a file system with blocks no larger than a page",
		advice.LongerFiles:       "keep it on exFAT, or make it no larger than {low} bytes",
		advice.GrowBare:          "unseal it (dmloop unseal --pin=swap {image}), make it longer (truncate -s +SIZE {image}), and seal it again, which writes every byte: dmloop seal {image}",
		advice.SayPinSwap:        "if dmloop sealed it, say so each time: --pin=swap, or pin=swap in dmlooptab",
		advice.SealSaid:          "have every byte written once: dmloop seal --pin=swap {image}",
		advice.MountForRoot:      "mount the file system for root alone: umount {name} && mount -o uid=0,gid=0,umask=077 DEVICE {name}",
		advice.CopyToNew:         "the image begins in pieces smaller than a page: copy it to a new one made by `dmloop create`",
		advice.FreeSwapPlace:     "unmap another sealed image, or swapoff a swap area: swapon --show",
		advice.ReadAnew:          "have it read again: echo 2 > /proc/sys/vm/drop_caches, or mount the file system again",
		advice.SeeKernelLog:      "see: dmesg",
		advice.FreeMemory:        "free some memory and try again",

		// About names, mappings and records.
		advice.NameMapping:   "give another one: dmloop map IMAGE NAME",
		advice.NameShim:      "give another one: dmloop shim DEVICE NAME",
		advice.ShorterName:   "a name has at most 88 bytes, since the uuid holds it",
		advice.SeeStatus:     "see: dmloop status {name}",
		advice.SeeList:       "see: dmloop list",
		advice.Unmap:         "dmloop unmap {name}",
		advice.MapAgain:      "unmap it and map it again",
		advice.UnmapAndCheck: "unmap it and look at the image: dmloop check {name}",
		advice.UnmountCopy:   "unmount the copy, if it is on one; to name the mapping itself: dmloop status {name}",
		advice.RemoveByHand:  "by hand: see what the device is (dmsetup table), remove it (dmsetup remove), and then the record (dmloop unmap --forget NAME) from {text}",
		advice.StopUsers:     "stop the users; the guard or the next dmloop command releases the image then",
		advice.ReleaseLater:  "it stays listed; the guard or the next dmloop command tries again; if that cannot help any more: dmloop unmap --forget {name}",
		advice.DeferOrForce:  "stop the users, or use --deferred (remove at last close) or --force (let their I/O fail)",
		advice.SeeLockHolder: "see what it waits for: ps -o pid,stat,wchan:32,args {low}; state D is a frozen file system, or a device that does not answer",
		advice.SeeFrozen:     "see whether a file system is frozen (fsfreeze), or a device suspended or lost; the next command finishes or undoes what this one left",
		advice.UnmapToGrow:   "unmap it first, and map it again afterwards: dmloop unmap {name} && dmloop grow {image} SIZE && dmloop map {image} {name}",
		advice.MapWhole:      "unmap it, and map it again with another size limit or none: dmloop unmap {name}",
		advice.CopyToGrow:    "make a longer one and copy the content into it: dmloop create NEW SIZE && dd if={image} of=NEW bs=4M conv=notrunc",
		advice.CopyToShrink:  "make what is inside smaller with its own tool first, then copy it into a new image: dmloop create NEW SIZE",
		advice.MapToResize:   "map it first: dmloop map {image}",

		// About the guard.
		advice.KillGuard:       "if it hangs, kill it; the mappings stay, and the next map starts another one",
		advice.ReachGuard:      "it may watch the mappings of another state directory, as in a container; or its own was emptied, and it makes its socket again within seconds: try again; see: pgrep -a dmloop",
		advice.MapWithoutGuard: "map with --no-guard",
		advice.GateAuto:        "leave out --gate, and the next best is used",
		advice.AddParameter:    "boot with this kernel parameter: {text}; or leave out --gate, and the next best is used",
		advice.ClearGate:       "see what it guards: dmloop gate; remove it: dmloop gate --clear",
		advice.SeeGuardHelp:    "see dmloop guard --help; with grade kernel, --no-guard does without one",

		// About the caller and the kernel.
		advice.Sudo:              "run the command with sudo",
		advice.LeaveNamespace:    "root inside a user namespace, as in a rootless container, is not root of the machine: run the command outside",
		advice.AddCapability:     "this root lacks the capability {text}, as in a container or in a unit with CapabilityBoundingSet=: add it, or run the command outside",
		advice.SeeSecurityModule: "{text} is there, so something else refuses it: a security module (SELinux, AppArmor), a seccomp filter, the device rules of a container, or for a file a program that watches opens (an on-access scanner, another guard); see dmesg and the audit log",
		advice.LoadDeviceMapper:  "load it (modprobe dm_mod), or use a kernel with CONFIG_BLK_DEV_DM",

		// About partition tables.
		advice.NoPartScan:   "map it without --partscan",
		advice.UseKpartx:    "map it without --partscan, and have kpartx make its partitions if it knows that kind",
		advice.UseLdmtool:   "map it without --partscan; ldmtool makes devices of its volumes",
		advice.OtherSectors: "losetup --sector-size {low} -P shows its partitions; or partition it again in sectors of {high} bytes",

		// About booting.
		advice.FewerExtents:     "make the image with fewer extents (dmloop create, on a file system with more free space in one piece), or boot with an initramfs: dmloop boot save",
		advice.UpdateInitramfs:  "make sure that this rebuilds every initramfs: {text} (on Debian update_initramfs=yes in /etc/initramfs-tools/update-initramfs.conf, and room in /boot), then run this again; --revert undoes what has been done",
		advice.RemoveKernel:     "build one for it, or remove that kernel; --revert undoes what has been done",
		advice.NameShimOption:   "give another one with --name",
		advice.MountableFS:      "a shim is of use only to a file system whose images can be mapped",
		advice.UniqueUUID:       "give each file system a UUID of its own (tune2fs -U, xfs_admin -U)",
		advice.GiveMountPoint:   "give the directory where the file system is mounted, such as /",
		advice.KeepImagesOn:     "keep images on ext4, xfs or f2fs",
		advice.CheckImage:       "see whether an image there can be mapped as it is: dmloop check IMAGE",
		advice.RepairFirst:      "repair it first",
		advice.MountFromShim:    "mount it from /dev/mapper/{name}, or remove that line first",
		advice.WriteFstab:       "add one, so that it is mounted at boot",
		advice.ChangeRoot:       "change the boot loader's root= to root=UUID={text} first",
		advice.InstallInitramfs: "install one, and the package dmloop-initramfs",
		advice.FallBack:         "boot with dmloop.fallback=loop, or repair it from the shell",
		advice.GoOnOrRevert:     "run the same command again to go on, or with --revert to go back",
		advice.SeeBootList:      "see: dmloop boot list",
		advice.SeeTabManual:     "see dmlooptab(5)",
		advice.Usage:            "usage: {text}",
		advice.DidYouMean:       "did you mean: {text}?",
		advice.SeeHelp:          "see dmloop --help",
	}
})

// convert has qemu-img make a plain image, which may come out with holes.
func convert(format string) string {
	return "make a plain image of it: qemu-img convert -f " + format + " -O raw {image} {name} && dmloop provision {name}"
}

// usualHints are the words for a rule of which the one who found it broken says nothing more.
var usualHints = sync.OnceValue(func() map[extents.Rule]string {
	return map[extents.Rule]string{
		extents.NotRegular:     hints()[advice.CreateOne],
		extents.Hole:           "dmloop provision {image}",
		extents.Unwritten:      "dmloop provision {image}",
		extents.Delalloc:       "run: sync {image}, then: dmloop provision {image}",
		extents.Unknown:        "copy the file with: cp --reflink=never --sparse=never",
		extents.Shared:         "dmloop provision {image}",
		extents.Encoded:        "switch compression off for the file and rewrite it: dmloop provision {image}",
		extents.Encrypted:      "move the file to a directory without file-system encryption",
		extents.Inline:         "the file is too small to have blocks of its own: make it larger",
		extents.Tail:           "rewrite the file with tail packing switched off",
		extents.NotAligned:     "copy the file with: cp --reflink=never --sparse=never",
		extents.Compressed:     "dmloop provision {image}",
		extents.Verity:         "copy the file: fs-verity cannot be taken off",
		extents.DAX:            "run: chattr -x {image}, or mount the file system with dax=never",
		extents.Realtime:       "copy the file without the real-time attribute",
		extents.MultiDevice:    "move the file to a file system on one device",
		extents.OutOfRange:     "the device is smaller than its file system believes: see dmsetup table, and check the file system before anything is written",
		extents.Unstable:       "stop what is changing the file (a defragmenter, a garbage collector, a copy) and try again",
		extents.DirtyCache:     "stop the programs that use the file (fuser -v {image})",
		extents.OpenElsewhere:  "close it there: see fuser -v {image}, losetup -j {image}",
		extents.ActiveSwap:     "run: swapoff {image}",
		extents.SealCorrupt:    "do not write to it: copy it first, and then restore the damaged part from a backup (docs/sealed-format.md)",
		extents.Unproven:       hints()[advice.Seal],
		extents.BtrfsCOW:       "make a new image with `dmloop create`, and copy the content; chattr +C works on an empty file only",
		extents.BtrfsProfile:   "btrfs balance start -dconvert=single MOUNTPOINT",
		extents.Indirect:       "run: chattr +e {image}",
		extents.TooManyExtents: "copy the file to where free space is in one piece, or raise the limit with --max-extents (up to 1048576)",
	}
})

// hint returns what to do, in words, or "". image is what the user called the image.
func hint(image string, r extents.Remedy) string {
	return strings.NewReplacer("{image}", shellWord(image), "{name}", shellWord(r.Name), "{text}", r.Name,
		"{low}", strconv.FormatInt(int64(r.Low), 10), "{high}", strconv.FormatInt(int64(r.High), 10)).Replace(hints()[extents.Remedy{Way: r.Way}])
}

// problemHint is hint for a broken rule, which may have a usual one.
func problemHint(image string, p extents.Problem) string {
	if p.Remedy == (extents.Remedy{}) {
		return strings.ReplaceAll(usualHints()[p.Rule], "{image}", shellWord(image))
	}
	return hint(image, p.Remedy)
}

// shellWord quotes a path or name for a command line that people copy: whatever it holds,
// a shell sees one word.
func shellWord(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+=:,@", r)
	}
	if strings.HasPrefix(path, "-") {
		path = "./" + path
	}
	switch {
	case path != "" && !strings.ContainsFunc(path, func(r rune) bool { return !plain(r) }):
		return path
	case printable(path) != path: // which would not be printed as it is
		return "$'" + printable(strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(path)) + "'"
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
