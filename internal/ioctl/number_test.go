package ioctl

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The numbers that a C compiler makes of the headers of Linux 6.1 for each architecture
// (Debian's linux-libc-dev).
func TestNumbers(t *testing.T) {
	const (
		x32 = 4 // sizeof(long)
		x64 = 8
	)
	type numbers struct {
		getFlags, setFlags, getVersion, getXattr, setXattr, fiemap, setPin, getPin, fsInfo, devInfo, treeSearch, tableLoad, fibmap, unit uint32
	}
	generic64 := numbers{0x80086601, 0x40086602, 0x80087601, 0x801c581f, 0x401c5820, 0xc020660b, 0x4004f50d, 0x8004f50e, 0x8400941f, 0xd000941e, 0xc0709411, 0xc138fd09, 0x1, 0x2}
	generic32 := numbers{0x80046601, 0x40046602, 0x80047601, 0x801c581f, 0x401c5820, 0xc020660b, 0x4004f50d, 0x8004f50e, 0x8400941f, 0xd000941e, 0xc0709411, 0xc138fd09, 0x1, 0x2}
	older64 := numbers{0x40086601, 0x80086602, 0x40087601, 0x401c581f, 0x801c5820, 0xc020660b, 0x8004f50d, 0x4004f50e, 0x4400941f, 0xd000941e, 0xc0709411, 0xc138fd09, 0x20000001, 0x20000002}
	older32 := numbers{0x40046601, 0x80046602, 0x40047601, 0x401c581f, 0x801c5820, 0xc020660b, 0x8004f50d, 0x4004f50e, 0x4400941f, 0xd000941e, 0xc0709411, 0xc138fd09, 0x20000001, 0x20000002}
	for _, c := range []struct {
		arch string
		long uintptr
		want numbers
	}{
		{"amd64", x64, generic64}, {"arm64", x64, generic64}, {"riscv64", x64, generic64}, {"s390x", x64, generic64},
		{"386", x32, generic32}, {"arm", x32, generic32},
		{"mips64le", x64, older64}, {"ppc64le", x64, older64}, {"sparc64", x64, older64}, {"mips", x32, older32},
	} {
		e := encodingOf(c.arch)
		got := numbers{
			getFlags: e.number(e.read, 'f', 1, c.long), setFlags: e.number(e.write, 'f', 2, c.long), getVersion: e.number(e.read, 'v', 1, c.long),
			getXattr: e.number(e.read, 'X', 31, 28), setXattr: e.number(e.write, 'X', 32, 28), fiemap: e.number(e.read|e.write, 'f', 11, 32),
			setPin: e.number(e.write, 0xf5, 13, 4), getPin: e.number(e.read, 0xf5, 14, 4),
			fsInfo: e.number(e.read, 0x94, 31, 1024), devInfo: e.number(e.read|e.write, 0x94, 30, 4096), treeSearch: e.number(e.read|e.write, 0x94, 17, 112),
			tableLoad: e.number(e.read|e.write, 0xfd, 9, 312),
			fibmap:    e.number(e.none, 0, 1, 0), unit: e.number(e.none, 0, 2, 0),
		}
		if got != c.want {
			t.Errorf("%s:\n got %#x\nwant %#x", c.arch, got, c.want)
		}
	}
}

// What x/sys knows of this machine is what is computed for it.
func TestNumbersOfThisMachine(t *testing.T) {
	long := uintptr(8)
	switch runtime.GOARCH {
	case "386", "arm", "mips", "mipsle":
		long = 4
	}
	for _, c := range []struct {
		got  Request
		want uint32
	}{
		{IOR('f', 1, long, "FS_IOC_GETFLAGS"), unix.FS_IOC_GETFLAGS},
		{IOW('f', 2, long, "FS_IOC_SETFLAGS"), unix.FS_IOC_SETFLAGS},
		{IOWR(0xfd, 9, unix.SizeofDmIoctl, "DM_TABLE_LOAD"), unix.DM_TABLE_LOAD},
	} {
		if c.got.Number != c.want {
			t.Errorf("%s: got %#x, want %#x", c.got.Name, c.got.Number, c.want)
		}
	}
}
