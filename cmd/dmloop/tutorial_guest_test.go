//go:build vmtest

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dmloop/internal/vmtest"
)

// The tutorial's commands work in the order in which they stand there.
func TestTutorial(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	srv, mnt, bin := t.TempDir(), t.TempDir(), t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := fmt.Sprintf("#!/bin/sh\n%s=dmloop exec %s \"$@\"\n", roleVariable, self)
	if err := os.WriteFile(filepath.Join(bin, "dmloop"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "mount", disk, srv)
	t.Cleanup(func() {
		endGuard(t, "TERM")
		vmtest.Must(t, "umount", srv)
		expect(t, 0, "shim", "--remove", "srv")
	})
	words := strings.NewReplacer(" /dev/sdb1", " "+disk, " /srv", " "+srv, " /mnt", " "+mnt)
	for _, line := range tutorialLines(t) {
		cmd := exec.Command("sh", "-c", words.Replace(line))
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		t.Logf("%s", line)
	}
	await(t, "the guard's last release", 20*time.Second, func() bool { return mustDmloop(t, "list") == "" })
}
