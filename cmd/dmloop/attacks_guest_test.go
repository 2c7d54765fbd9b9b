//go:build vmtest

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

// attack is something that root can do to an image.
type attack struct {
	name string
	fs   string // file systems, with commas; empty is all
	only string // kernels, with commas; empty is all
	// lifted attacks are tried once more after somebody took the immutable flag away.
	lifted bool
	run    func(image string) error
	helper string // the other file that it takes: "donor" or "twin"
	// alone attacks are also tried with the guard stopped or killed.
	alone bool
	// still needs the image's first MiB as it was: the writing job keeps off it.
	still bool
	// older has the image open before it is mapped.
	older bool
	// unpins only takes the pin away, so that there has to be one.
	unpins bool
	// hides takes the path to the image away.
	hides bool
	// below changes the device stack; then nothing of the image's blocks is ours.
	below bool
	// outside makes the mapping write beyond the host file system.
	outside bool
}

// attacks is every line of the matrix, in order.
var attacks = []attack{
	{name: "read", alone: true, run: func(p string) error { return onFile(p, os.O_RDONLY, func(*os.File) error { return nil }) }},
	{name: "write", lifted: true, alone: true, run: func(p string) error {
		return onFile(p, os.O_WRONLY, func(f *os.File) error { _, err := f.WriteAt(make([]byte, 4096), 8192); return err })
	}},
	{name: "append", lifted: true, run: func(p string) error {
		return onFile(p, os.O_WRONLY|os.O_APPEND, func(f *os.File) error { _, err := f.Write(make([]byte, 4096)); return err })
	}},
	{name: "ftruncate down", lifted: true, run: func(p string) error {
		return onFile(p, os.O_WRONLY, func(f *os.File) error { return f.Truncate(1 << 20) })
	}},
	{name: "ftruncate up", lifted: true, run: func(p string) error {
		return onFile(p, os.O_WRONLY, func(f *os.File) error { return f.Truncate(imageSize + 4096) })
	}},
	{name: "truncate(2) down by path", lifted: true, alone: true, run: func(p string) error { return os.Truncate(p, 1<<20) }},
	{name: "truncate(2) up by path", lifted: true, run: func(p string) error { return os.Truncate(p, imageSize+4096) }},
	{name: "ftruncate through an older descriptor", older: true, run: func(p string) error {
		return onFile(p, os.O_RDWR, func(f *os.File) error { awaitTurn(); return f.Truncate(1 << 20) })
	}},
	{name: "reflink through an older descriptor", fs: "xfs", older: true, run: func(p string) error {
		return onFile(p, os.O_RDONLY, func(f *os.File) error {
			return onFile(beside(p, "clone"), os.O_RDWR|os.O_CREATE, func(to *os.File) error {
				awaitTurn()
				return unix.IoctlFileClone(int(to.Fd()), int(f.Fd()))
			})
		})
	}},
	{name: "write through an older memory mapping", older: true, run: writeMapped},
	{name: "open while the flag is off, then ftruncate", alone: true, run: func(p string) error {
		if err := onFile(p, os.O_RDONLY, unpin); err != nil {
			return err
		}
		return onFile(p, os.O_RDWR, func(f *os.File) error {
			if err := onFile(p, os.O_RDONLY, makeImmutable); err != nil {
				return err
			}
			return f.Truncate(1 << 20)
		})
	}},
	{name: "punch hole", lifted: true, alone: true, run: fallocate(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)},
	{name: "zero range", lifted: true, run: fallocate(unix.FALLOC_FL_ZERO_RANGE)},
	{name: "collapse range", lifted: true, run: fallocate(unix.FALLOC_FL_COLLAPSE_RANGE)},
	{name: "insert range", lifted: true, run: fallocate(unix.FALLOC_FL_INSERT_RANGE)},
	{name: "reflink from", fs: "xfs,btrfs", lifted: true, alone: true, run: tool("cp", "--reflink=always", "IMAGE", "DIR/clone")},
	{name: "reflink onto", fs: "xfs,btrfs", lifted: true, helper: "donor", run: tool("xfs_io", "-c", "reflink DIR/donor", "IMAGE")},
	{name: "dedupe, image as source", fs: "xfs,btrfs", lifted: true, alone: true, still: true, helper: "twin",
		run: tool("xfs_io", "-c", "dedupe IMAGE 0 0 1048576", "DIR/twin")},
	{name: "dedupe, image as destination", fs: "xfs,btrfs", lifted: true, still: true, helper: "twin",
		run: tool("xfs_io", "-c", "dedupe DIR/twin 0 0 1048576", "IMAGE")},
	{name: "copy_file_range from", lifted: true, run: func(p string) error { return copyRange(p, beside(p, "copy")) }},
	{name: "copy_file_range onto", lifted: true, helper: "donor", run: func(p string) error { return copyRange(beside(p, "donor"), p) }},
	{name: "rename over", lifted: true, alone: true, helper: "donor", run: func(p string) error { return os.Rename(beside(p, "donor"), p) }},
	{name: "rename away", lifted: true, run: func(p string) error { return os.Rename(p, beside(p, "away")) }},
	{name: "unlink", lifted: true, alone: true, run: os.Remove},
	{name: "hard link", lifted: true, run: func(p string) error { return os.Link(p, beside(p, "link")) }},
	{name: "chattr -i", unpins: true, alone: true, run: func(p string) error { return onFile(p, os.O_RDONLY, unpin) }},
	{name: "file_setattr(2) by path", only: "new", run: fileSetattr},
	{name: "file_setattr(2), then truncate(2)", only: "new", alone: true, run: func(p string) error {
		if err := fileSetattr(p); err != nil {
			return err
		}
		return os.Truncate(p, 1<<20)
	}},
	{name: "e4defrag", fs: "ext4", lifted: true, run: tool("e4defrag", "IMAGE")},
	{name: "EXT4_IOC_MOVE_EXT", fs: "ext4", lifted: true, alone: true, helper: "donor", run: func(p string) error { return moveExt(p, beside(p, "donor")) }},
	{name: "EXT4_IOC_MOVE_EXT, image as donor", fs: "ext4", lifted: true, helper: "donor", run: func(p string) error { return moveExt(beside(p, "donor"), p) }},
	{name: "xfs_fsr", fs: "xfs", lifted: true, run: tool("xfs_fsr", "-v", "IMAGE")},
	{name: "XFS_IOC_SWAPEXT", fs: "xfs", lifted: true, alone: true, helper: "donor", run: tool("xfs_io", "-c", "swapext DIR/donor", "IMAGE")},
	{name: "XFS_IOC_SWAPEXT, image as donor", fs: "xfs", lifted: true, helper: "donor", run: tool("xfs_io", "-c", "swapext IMAGE", "DIR/donor")},
	{name: "XFS_IOC_EXCHANGE_RANGE", fs: "xfs", only: "6.12,new", lifted: true, helper: "donor", run: func(p string) error { return exchangeRange(p, beside(p, "donor")) }},
	{name: "F2FS_IOC_DEFRAGMENT", fs: "f2fs", lifted: true, alone: true, run: f2fsDefragment},
	{name: "f2fs garbage collection", fs: "f2fs", alone: true, run: f2fsCollect},
	{name: "f2fs garbage collection of the image's own blocks", fs: "f2fs", alone: true, run: f2fsCollectImage},
	{name: "f2fs unpin", fs: "f2fs", lifted: true, alone: true, run: f2fsUnpin},
	{name: "remount read-only and back", run: func(p string) error {
		dir := filepath.Dir(p)
		if err := tool("mount", "-o", "remount,ro", dir)(p); err != nil {
			return err
		}
		return tool("mount", "-o", "remount,rw", dir)(p)
	}},
	{name: "umount", run: tool("umount", "DIR")},
	{name: "umount -l", alone: true, hides: true, run: tool("umount", "-l", "DIR")},
	{name: "host device suspended and resumed", run: func(p string) error {
		if err := tool("dmsetup", "suspend", hostName)(p); err != nil {
			return err
		}
		return tool("dmsetup", "resume", "--noudevsync", hostName)(p)
	}},
	{name: "own device reloaded", alone: true, outside: true, run: func(p string) error {
		// Onto a free place of the same disk: beyond the host file system.
		load := fmt.Sprintf("disk=$(dmsetup table vol | awk 'NR==1 {print $4}'); echo 0 %d linear $disk %d | dmsetup load vol", imageSize/512, hostSectors)
		if err := tool("sh", "-c", load)(p); err != nil {
			return err
		}
		return tool("dmsetup", "resume", "--noudevsync", "vol")(p)
	}},
	{name: "own device removed by force", run: tool("dmsetup", "remove", "--force", "--noudevsync", "vol")},
	{name: "host device reloaded elsewhere (as pvmove does)", alone: true, below: true, run: func(p string) error {
		if err := tool("sh", "-c", "dmsetup table "+hostName+" | sed 's/ 0$/ 2048/' | dmsetup load "+hostName)(p); err != nil {
			return err
		}
		return tool("dmsetup", "resume", "--noflush", "--nolockfs", "--noudevsync", hostName)(p)
	}},
}

const (
	imageSize = 4 << 20
	hostName  = "host"
)

// attackMain is the program that attacks: it prints what came of it.
func attackMain(name, image string) {
	name, lift := strings.CutPrefix(name, "lifted: ")
	all := slices.Concat(attacks, sealedAttacks)
	i := slices.IndexFunc(all, func(a attack) bool { return a.name == name })
	var err error
	if lift {
		err = onFile(image, os.O_RDONLY, unpin)
	}
	if err == nil {
		err = all[i].run(image)
	}
	if err != nil {
		fmt.Print(short(err))
		os.Exit(1)
	}
	os.Exit(0)
}

// short returns an errno's name, or the last words of a tool.
func short(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func beside(image, name string) string { return filepath.Join(filepath.Dir(image), name) }

func onFile(path string, flags int, do func(*os.File) error) error {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return do(f)
}

// tool runs a program; IMAGE and DIR stand for the image and its directory.
func tool(words ...string) func(string) error {
	return func(image string) error {
		replace := strings.NewReplacer("IMAGE", image, "DIR", filepath.Dir(image))
		args := make([]string, len(words))
		for i, w := range words {
			args[i] = replace.Replace(w)
		}
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		text := strings.ToLower(string(out))
		if errors.Is(err, exec.ErrNotFound) || strings.Contains(text, `" not found`) { // as xfs_io says of a command
			panic(fmt.Sprintf("%q cannot be tried: %v, %s", args, err, out))
		}
		for _, word := range []string{"not permitted", "cannot", "failed", "busy", "no such", "not supported", "invalid", "text file", "error"} {
			if i := strings.Index(text, word); i >= 0 { // some tools say so and exit with 0
				line, _, _ := strings.Cut(text[i:], "\n")
				return fmt.Errorf("%s: %s", args[0], strings.Trim(line, ". "))
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		return nil
	}
}

func fallocate(mode uint32) func(string) error {
	return func(p string) error {
		return onFile(p, os.O_RDWR, func(f *os.File) error { return unix.Fallocate(int(f.Fd()), mode, 1<<20, 1<<20) })
	}
}

func copyRange(source, destination string) error {
	return onFile(source, os.O_RDONLY, func(from *os.File) error {
		return onFile(destination, os.O_RDWR|os.O_CREATE, func(to *os.File) error {
			_, err := unix.CopyFileRange(int(from.Fd()), nil, int(to.Fd()), nil, 1<<20, 0)
			return err
		})
	})
}

// unpin takes the immutable flag away, as chattr -i does.
func unpin(f *os.File) error {
	return changeFlags(f, func(flags uint32) uint32 { return flags &^ 0x10 })
}

// makeImmutable sets the immutable flag, as chattr +i does.
func makeImmutable(f *os.File) error {
	return changeFlags(f, func(flags uint32) uint32 { return flags | 0x10 })
}

func changeFlags(f *os.File, change func(uint32) uint32) error {
	var flags uint32
	if err := ioctl.Pointer(int(f.Fd()), ioctl.Request{Number: unix.FS_IOC_GETFLAGS, Name: "FS_IOC_GETFLAGS"}, &flags); err != nil {
		return err
	}
	flags = change(flags)
	return ioctl.Pointer(int(f.Fd()), ioctl.Request{Number: unix.FS_IOC_SETFLAGS, Name: "FS_IOC_SETFLAGS"}, &flags)
}

// opened is what an attack says that has the image open before it is mapped.
const opened = "open\n"

// awaitTurn says so, and waits until standard input ends.
func awaitTurn() {
	fmt.Print(opened)
	io.Copy(io.Discard, os.Stdin)
}

// writeMapped keeps nothing of the image but a shared memory mapping, and writes
// through that.
func writeMapped(p string) error {
	var memory []byte
	err := onFile(p, os.O_RDWR, func(f *os.File) (err error) {
		memory, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		return err
	})
	if err != nil {
		return err
	}
	awaitTurn()
	memory[0]++
	return unix.Msync(memory, unix.MS_SYNC)
}

// fileSetattr takes all inode flags away without opening the file (Linux 6.17):
// int file_setattr(int dfd, const char *path, struct file_attr *, size_t, unsigned at_flags).
func fileSetattr(p string) error {
	path, err := unix.BytePtrFromString(p)
	if err != nil {
		return err
	}
	var attr struct {
		xflags                                uint64
		extsize, nextents, projid, cowextsize uint32
	}
	const sysFileSetattr = 469
	at := unix.AT_FDCWD
	_, _, errno := unix.Syscall6(sysFileSetattr, uintptr(at), uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// moveExt exchanges blocks of a file with those of a donor, as e4defrag does:
// struct move_extent { __u32 reserved, donor_fd; __u64 orig_start, donor_start, len, moved_len; }.
func moveExt(original, donor string) error {
	return onFile(original, os.O_RDWR, func(f *os.File) error {
		return onFile(donor, os.O_RDWR, func(donor *os.File) error {
			arg := struct {
				reserved, donor                      uint32
				origStart, donorStart, length, moved uint64
			}{donor: uint32(donor.Fd()), length: 256}
			return ioctl.Pointer(int(f.Fd()), ioctl.Request{Number: 0xc028660f, Name: "EXT4_IOC_MOVE_EXT"}, &arg)
		})
	})
}

// exchangeRange exchanges the first blocks of two files, as xfs does since 6.10 where the
// file system has the feature, which needs a newer mkfs than Debian 12's:
// struct xfs_exchange_range { __s32 file1_fd; __u32 pad; __u64 file1_offset, file2_offset, length, flags; }.
func exchangeRange(one, other string) error {
	return onFile(one, os.O_RDWR, func(f *os.File) error {
		return onFile(other, os.O_RDWR, func(other *os.File) error {
			arg := struct {
				other, pad                             uint32
				otherOffset, ownOffset, length, noFlag uint64
			}{other: uint32(other.Fd()), length: 1 << 20}
			return ioctl.Pointer(int(f.Fd()), ioctl.Request{Number: 0x40285881, Name: "XFS_IOC_EXCHANGE_RANGE"}, &arg)
		})
	})
}

var f2fsPin = ioctl.Request{Number: 0x4004f50d, Name: "F2FS_IOC_SET_PIN_FILE"}

func f2fsUnpin(p string) error {
	return onFile(p, os.O_RDONLY, func(f *os.File) error { var off uint32; return ioctl.Pointer(int(f.Fd()), f2fsPin, &off) })
}

func f2fsDefragment(p string) error {
	return onFile(p, os.O_RDWR, func(f *os.File) error {
		arg := struct{ start, length uint64 }{0, imageSize}
		return ioctl.Pointer(int(f.Fd()), ioctl.Request{Number: 0xc010f508, Name: "F2FS_IOC_DEFRAGMENT"}, &arg)
	})
}

// f2fsCollect forces the garbage collector to run in the foreground, many times.
func f2fsCollect(p string) error {
	return onFile(filepath.Dir(p), os.O_RDONLY, func(dir *os.File) error {
		for range 200 {
			sync := uint32(1)
			err := ioctl.Pointer(int(dir.Fd()), ioctl.Request{Number: 0x4004f506, Name: "F2FS_IOC_GARBAGE_COLLECT"}, &sync)
			if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENODATA) {
				return err
			}
		}
		return nil
	})
}

// f2fsCollectImage makes the garbage collector try to move the image, more often than
// the pin withstands, or for so long as the test waits.
func f2fsCollectImage(p string) error {
	table, err := exec.Command("dmsetup", "table", "vol").Output()
	if err != nil {
		return err
	}
	// struct f2fs_gc_range { __u32 sync; __u64 start, len; }, in blocks of the device.
	type gcRange struct {
		sync, _       uint32
		start, length uint64
	}
	var ranges []gcRange
	for row := range strings.Lines(string(table)) {
		var start, length, at uint64
		var dev string
		if _, err := fmt.Sscanf(row, "%d %d linear %s %d", &start, &length, &dev, &at); err != nil {
			return err
		}
		ranges = append(ranges, gcRange{sync: 1, start: at * 512 / 4096, length: length * 512 / 4096})
	}
	return onFile(filepath.Dir(p), os.O_RDONLY, func(dir *os.File) error {
		end := time.Now().Add(10 * time.Second)
		for n := 0; n < 2200 && time.Now().Before(end); n++ {
			for _, r := range ranges {
				err := ioctl.Pointer(int(dir.Fd()), ioctl.Request{Number: 0x4018f50b, Name: "F2FS_IOC_GARBAGE_COLLECT_RANGE"}, &r)
				if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENODATA) {
					return err
				}
			}
		}
		return nil
	})
}
