//go:build vmtest

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// announced returns what the kernel's events tell udev of each device-mapper device
// that comes up while do runs: dmsetup's own reading of the flags, by name.
func announced(t *testing.T, names []string, do func()) map[string]string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	do()
	found := map[string]string{}
	var came []string
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what came: %s", strings.Join(came, "\n"))
		}
	})
	buf := make([]byte, 16<<10)
	await(t, "the events", 30*time.Second, func() bool {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return len(found) == len(names)
		}
		values := map[string]string{}
		for _, line := range strings.Split(string(buf[:n]), "\x00") {
			if key, value, ok := strings.Cut(line, "="); ok {
				values[key] = value
			}
		}
		text, _ := os.ReadFile("/sys" + values["DEVPATH"] + "/dm/name")
		name := strings.TrimSpace(string(text))
		came = append(came, fmt.Sprintf("%q (%q)", buf[:n], name))
		for _, wanted := range names {
			if name == wanted && values["DM_COOKIE"] != "" {
				found[name] = vmtest.Must(t, "dmsetup", "udevflags", values["DM_COOKIE"])
			}
		}
		return false
	})
	return found
}

// Udev is told that a mapping's links come last and, when asked, that it may use what
// lies inside; the same of its partitions. A shim stands for its disk.
func TestUdevIsTold(t *testing.T) {
	const low, use = "DM_UDEV_LOW_PRIORITY_FLAG='1'", "DM_SUBSYSTEM_UDEV_FLAG0='1'"
	disk := smallDisk(t, 0)
	told := announced(t, []string{"host"}, func() { mustDmloop(t, "shim", disk, "host") })
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "host") })
	if strings.Contains(told["host"], low) {
		t.Errorf("a shim: %s", told["host"])
	}
	vmtest.Mkfs(t, "ext4", "/dev/mapper/host")
	img := filepath.Join(vmtest.Mount(t, "/dev/mapper/host"), "image")
	vmtest.RandomFile(t, img, 16<<20, 1)
	if r := vmtest.RunInput(t, "label: gpt\nsize=4M\n", "sfdisk", "-q", img); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	vmtest.Must(t, "sync", img)
	for rules, asked := range map[string]bool{"": false, "links": false, "all": true} {
		args := []string{"map", "--no-guard", "--partscan", img, "vol"}
		if rules != "" {
			args = append(args, "--udev-rules="+rules)
		}
		told := announced(t, []string{"vol", "volp1"}, func() { mustDmloop(t, args...) })
		for name, flags := range told {
			if !strings.Contains(flags, low) || strings.Contains(flags, use) != asked {
				t.Errorf("--udev-rules=%s: of %s is told %s", rules, name, flags)
			}
		}
		mustDmloop(t, "unmap", "vol")
	}
	if r := dmloop(t, "map", "--udev-rules=some", img, "vol"); r.Code != 2 || !strings.Contains(r.Stderr, "links or all") {
		t.Errorf("exit code %d, %s", r.Code, r.Stderr)
	}
}
