//go:build vmtest

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// mountHelpers puts the helpers where mount(8) looks for them.
func mountHelpers(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{mountName, umountName} {
		path := filepath.Join("/sbin", name)
		program := fmt.Sprintf("#!/bin/bash\nexport %s=dmloop\nexec -a %s %s \"$@\"\n", roleVariable, name, self)
		if err := os.WriteFile(path, []byte(program), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path) })
	}
	t.Cleanup(func() { endGuard(t, "TERM") })
}

// mount -t dmloop maps and mounts, umount undoes both, and nothing is left when one fails.
func TestMountHelper(t *testing.T) {
	vmtest.RequireGuest(t)
	mountHelpers(t)
	host := vmtest.Shim(t, vmtest.Disk(t, 0), hostName)
	vmtest.Mkfs(t, "ext4", host)
	dir, mnt, second := vmtest.Mount(t, host), t.TempDir(), t.TempDir()
	img := filepath.Join(dir, "data.img")
	expect(t, 0, "create", img, "64M")
	nothing := func(when string) {
		t.Helper()
		if list := mustDmloop(t, "list"); list != "" {
			t.Fatalf("%s: %s", when, list)
		}
		if flags := vmtest.Must(t, "lsattr", img); strings.Contains(strings.Fields(flags)[0], "i") {
			t.Fatalf("%s: %s", when, flags)
		}
	}
	if r := vmtest.Run(t, "mount", "-t", "dmloop", img, mnt); r.Code == 0 {
		t.Fatal("zeros were mounted")
	}
	nothing("after a mount that failed")
	mustDmloop(t, "map", img)
	vmtest.Must(t, "mkfs.ext4", "-q", "/dev/mapper/data")
	mustDmloop(t, "unmap", "data")
	for range 20 {
		vmtest.Must(t, "mount", "-t", "dmloop", img, mnt)
		vmtest.Must(t, "sh", "-c", "echo hello >"+mnt+"/x")
		if source := strings.TrimSpace(vmtest.Must(t, "findmnt", "-no", "SOURCE,FSTYPE", mnt)); source != "/dev/mapper/data ext4" {
			t.Fatalf("%s", source)
		}
		vmtest.Must(t, "umount", mnt)
	}
	nothing("after 20 cycles")
	// Options, and a mount that is read-only.
	vmtest.Must(t, "mount", "-t", "dmloop", "-o", "ro,name=other,noatime", img, mnt)
	if r := vmtest.Run(t, "sh", "-c", "echo >"+mnt+"/y"); r.Code == 0 {
		t.Error("a read-only mount was written to")
	}
	if listed := mustDmloop(t, "list", "-n", "--raw", "-o", "NAME,RO"); listed != "other 1\n" {
		t.Errorf("%q", listed)
	}
	vmtest.Must(t, "umount", mnt)
	nothing("after a read-only mount")
	// Busy: nothing is undone. Lazily: all of it, later.
	vmtest.Must(t, "mount", "-t", "dmloop", img, mnt)
	held, err := os.Open(filepath.Join(mnt, "x"))
	if err != nil {
		t.Fatal(err)
	}
	if r := vmtest.Run(t, "umount", mnt); r.Code == 0 {
		t.Error("a busy file system was unmounted")
	}
	vmtest.Must(t, "findmnt", mnt)
	vmtest.Must(t, "umount", "-l", mnt)
	held.Close()
	await(t, "the release after a lazy unmount", 20e9, func() bool { return mustDmloop(t, "list") == "" })
	// Mounted twice: the first umount leaves the image mapped.
	vmtest.Must(t, "mount", "-t", "dmloop", img, mnt)
	vmtest.Must(t, "mount", "--bind", mnt, second)
	vmtest.Must(t, "umount", mnt)
	if listed := mustDmloop(t, "list", "-n", "-o", "NAME"); !strings.Contains(listed, "data") {
		t.Errorf("unmapped below a mount: %q", listed)
	}
	vmtest.Must(t, "umount", second)
	mustDmloop(t, "unmap", "data")
	nothing("at last")
	// What was mapped by hand stays mapped.
	mustDmloop(t, "map", img)
	vmtest.Must(t, "mount", "-t", "dmloop", img, mnt)
	vmtest.Must(t, "umount", mnt)
	mustDmloop(t, "unmap", "data")
	// From fstab.
	fstab, err := os.ReadFile("/etc/fstab")
	if err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf("%s %s dmloop defaults,nofail 0 0\n", img, mnt)
	if err := os.WriteFile("/etc/fstab", []byte(line), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile("/etc/fstab", fstab, 0o644) //nolint:errcheck // of a guest
	vmtest.Must(t, "mount", "-a")
	vmtest.Must(t, "findmnt", mnt)
	vmtest.Must(t, "umount", mnt)
	nothing("after fstab")
}
