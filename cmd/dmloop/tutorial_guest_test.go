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
func TestTutorial(t *testing.T) { asWritten(t, tutorialLines(t)) }

// Whoever has read README's first screen alone maps an image on a machine with one ext4
// partition, with six commands at most.
func TestReadmesFirstScreen(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, start, _ := strings.Cut(string(text), "## Quick start")
	start, _, _ = strings.Cut(start, "To see it work")
	var lines []string
	needed := 0
	for line := range strings.Lines(start) {
		command, is := strings.CutPrefix(line, "    sudo ")
		if !is {
			continue
		}
		command, _, _ = strings.Cut(command, "  #")
		if lines = append(lines, strings.TrimSpace(command)); strings.HasPrefix(command, "dmloop map") {
			needed = len(lines)
		}
	}
	if needed == 0 || needed > 6 {
		t.Errorf("%d commands until an image is mapped", needed)
	}
	asWritten(t, lines)
}

// asWritten runs lines of shell on a machine whose /srv is an ext4 on a disk of its own.
func asWritten(t *testing.T, lines []string) {
	t.Helper()
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
	words := strings.NewReplacer(" /dev/sdb1", " "+disk, " /srv", " "+srv, " /mnt", " "+mnt, " 1G", " 64M")
	for _, line := range lines {
		cmd := exec.Command("sh", "-c", words.Replace(line))
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		t.Logf("%s", line)
	}
	await(t, "the guard's last release", 20*time.Second, func() bool { return mustDmloop(t, "list") == "" })
}
