//go:build vmtest

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// A folder is judged before there is an image in it, and create says what stands in the way
// before it writes.
func TestCheckFolder(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	xfsSays := "images here can be mapped (xfs, grade guarded)"
	if vmtest.Kernel(t) == "uml" { // which cannot deny opens
		xfsSays = "images here can be mapped once they are sealed (xfs, grade kernel)"
	}
	for _, c := range []struct {
		fs   string
		shim bool
		code int
		says string
	}{
		{"ext4", true, 0, "images here can be mapped (ext4, grade kernel)"},
		{"xfs", true, 0, xfsSays},
		{"btrfs", true, 0, "images here can be mapped once they are sealed (btrfs, grade kernel)"},
		{"ext4", false, 3, "(mounted-directly)"},
		{"btrfs", false, 3, "(mounted-directly)"},
		{"tmpfs", false, 3, "(unsupported-fs)"},
	} {
		t.Run(c.fs+" "+map[bool]string{true: "on a shim", false: "directly"}[c.shim], func(t *testing.T) {
			dir := ""
			switch device := disk; {
			case c.fs == "tmpfs":
				dir = t.TempDir()
				vmtest.Must(t, "mount", "-t", "tmpfs", "none", dir)
				t.Cleanup(func() { vmtest.Must(t, "umount", dir) })
			default:
				if c.shim {
					device = vmtest.Shim(t, disk, hostName)
				}
				vmtest.Mkfs(t, c.fs, device)
				dir = vmtest.Mount(t, device)
			}
			r := expect(t, c.code, "check", dir)
			if !strings.HasPrefix(r.Stdout, dir+": images here") || !strings.Contains(r.Stdout, c.says) {
				t.Errorf("%s", r.Stdout)
			}
			if c.fs == "tmpfs" {
				return
			}
			// What was said in advance is what is said of an image.
			img := filepath.Join(dir, "image")
			r = expect(t, 0, "create", img, "4M")
			if told := strings.Contains(r.Stderr, "mounted straight from") && strings.Contains(r.Stderr, "hint"); told == c.shim {
				t.Errorf("create says %q", r.Stderr)
			}
			if strings.Contains(c.says, "sealed") {
				expect(t, 0, "seal", img)
			}
			if c.fs != "btrfs" || c.shim {
				expect(t, c.code, "check", img)
			}
		})
	}
}
