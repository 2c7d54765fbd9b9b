//go:build vmtest

package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// clearMain is a command of root's that knows nothing of the map at work, as `chattr -i` or
// an unpin with another state directory: as soon as the image is immutable it opens it, for
// which it may have to wait until a lease ends, and clears the flag. It says whether that
// was before the device could be used.
func clearMain(image string) {
	fmt.Println("ready")
	for {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, image, 0, 0, &st); err != nil {
			panic(err)
		}
		if st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0 {
			break
		}
	}
	fd, err := unix.Open(image, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^unix.STATX_ATTR_IMMUTABLE)
	}
	if err != nil {
		panic(err)
	}
	unix.Close(fd)
	if usable("vol") {
		fmt.Println("late")
	} else {
		fmt.Println("in time")
	}
	os.Exit(0)
}

// usable reports whether the device-mapper device of this name has a live table.
func usable(name string) bool {
	names, _ := filepath.Glob("/sys/block/dm-*/dm/name")
	for _, path := range names {
		text, _ := os.ReadFile(path)
		size, _ := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(path)), "size"))
		if strings.TrimSpace(string(text)) == name && strings.TrimSpace(string(size)) != "0" {
			return true
		}
	}
	return false
}

// A pin that somebody clears while the image is being mapped is not one that map says is
// in force: the flags are read again before the device goes live.
func TestPinClearedMeanwhile(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	inTime := 0
	for range 40 {
		cmd := command(t, "clear", image)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := bufio.NewScanner(out)
		said.Scan()
		r := dmloop(t, "map", "--no-guard", image, "vol")
		immutable := strings.Contains(flagsOf(t, image), "i")
		said.Scan()
		when := said.Text()
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		if when == "in time" {
			inTime++
			if r.Code == 0 && !immutable {
				t.Errorf("the image is mapped and can be written to by anybody: %s", vmtest.Must(t, "dmsetup", "table", "vol"))
			}
			if strings.Contains(r.Stderr, "grade unsafe") {
				t.Errorf("map says that no pin can be had: %s", r.Stderr)
			}
			t.Logf("map: exit code %d %s", r.Code, r.Stderr)
		}
		if r.Code == 0 {
			expect(t, 0, "unmap", "vol")
		}
		nothingLeftOf(t, image, "vol")
		if inTime == 5 {
			return
		}
	}
	if inTime == 0 {
		t.Error("the flag was never cleared in time: nothing was shown")
	}
}
