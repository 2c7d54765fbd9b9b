//go:build vmtest

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// elsewhere runs a command that sees another state directory, as in a container or chroot.
func elsewhere(t testing.TB, args ...string) vmtest.Result {
	t.Helper()
	var out, errOut bytes.Buffer
	code := runWith(context.Background(), &cliEnv{stdout: &out, stderr: &errOut, stateDir: t.TempDir() + "/state"}, args)
	return vmtest.Result{Stdout: out.String(), Stderr: errOut.String(), Code: code}
}

// flagsOf returns the attributes of a file as lsattr shows them.
func flagsOf(t testing.TB, image string) string {
	t.Helper()
	flags, _, _ := strings.Cut(vmtest.Must(t, "lsattr", "-d", image), " ")
	return flags
}

// An image that is mapped where this command has no record of it keeps its pins, its
// claim and every byte: the kernel is asked, and the device named.
func TestMappedElsewhere(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "sealed"}[sealed], func(t *testing.T) {
			h := newHost(t, ext4Host, "shim")
			image := h.image(t, "image.img", "8M")
			fill(t, image, 8<<20, 1)
			if sealed {
				expect(t, 0, "seal", image)
			}
			dev := mapIt(t, image, "vol")
			sum, flags, swaps := vmtest.ChecksumFile(t, dev), flagsOf(t, image), vmtest.Must(t, "cat", "/proc/swaps")
			unharmed := func(what string) {
				t.Helper()
				if now := flagsOf(t, image); now != flags {
					t.Errorf("%s: flags %s became %s", what, flags, now)
				}
				if now := vmtest.Must(t, "cat", "/proc/swaps"); now != swaps {
					t.Errorf("%s: swap areas\n%sbecame\n%s", what, swaps, now)
				}
				if now := vmtest.ChecksumFile(t, dev); now != sum {
					t.Errorf("%s: the device shows something else", what)
				}
			}
			for _, args := range [][]string{{"unpin"}, {"pin"}, {"seal"}, {"unseal"}, {"map", "--no-guard"}} {
				r := elsewhere(t, append(args, image)...)
				if r.Code != 5 || !strings.Contains(r.Stderr, " vol") {
					t.Errorf("%s: exit code %d\n%s", args[0], r.Code, r.Stderr)
				}
				unharmed(args[0])
			}
			if r := elsewhere(t, "grow", image, "+1M"); r.Code != 5 || !strings.Contains(r.Stderr, " vol") {
				t.Errorf("grow: exit code %d\n%s", r.Code, r.Stderr)
			}
			unharmed("grow")
			// Somebody has lifted the flag by hand: then only the kernel's list is left.
			if !sealed {
				vmtest.Must(t, "chattr", "-i", image)
				flags = flagsOf(t, image)
				for _, args := range [][]string{{"provision"}, {"seal"}, {"unseal"}, {"unpin"}, {"pin"}} {
					r := elsewhere(t, append(args, image)...)
					if r.Code != 5 || !strings.Contains(r.Stderr, " vol") || !strings.Contains(r.Stderr, "dmloop unmap vol") {
						t.Errorf("%s without the flag: exit code %d\n%s", args[0], r.Code, r.Stderr)
					}
					unharmed(args[0] + " without the flag")
				}
				vmtest.Must(t, "chattr", "+i", image)
			}
			// A neighbour is free, and a table that lies on the image counts while it waits.
			neighbour := h.image(t, "neighbour.img", "4M")
			for _, args := range [][]string{{"pin"}, {"unpin"}, {"seal"}, {"unseal"}, {"provision"}} {
				if r := elsewhere(t, append(args, neighbour)...); r.Code != 0 {
					t.Errorf("%s of the neighbour: exit code %d\n%s", args[0], r.Code, r.Stderr)
				}
			}
			table := vmtest.Must(t, "dmsetup", "table", "vol")
			expect(t, 0, "unmap", "vol")
			expect(t, 0, "pin", image)
			flags = flagsOf(t, image)
			vmtest.Must(t, "dmsetup", "create", "copy", "--notable")
			t.Cleanup(func() { vmtest.Run(t, "dmsetup", "remove", "copy") })
			if r := vmtest.RunInput(t, table, "dmsetup", "load", "copy"); r.Code != 0 {
				t.Fatal(r.Stderr)
			}
			for _, state := range []string{"loaded", "live"} {
				for _, args := range [][]string{{"unpin"}, {"pin"}, {"map", "--no-guard"}} {
					if r := cli(append(args, image)...); r.Code != 5 || !strings.Contains(r.Stderr, "copy") {
						t.Errorf("%s with a copy %s: exit code %d\n%s", args[0], state, r.Code, r.Stderr)
					}
				}
				vmtest.Must(t, "dmsetup", "resume", "copy")
			}
			if now := flagsOf(t, image); now != flags {
				t.Errorf("flags %s became %s", flags, now)
			}
			f, err := os.Open("/dev/mapper/copy")
			if err != nil {
				t.Fatal(err)
			}
			sleeper := exec.Command("sleep", "600")
			sleeper.ExtraFiles = []*os.File{f}
			if err := sleeper.Start(); err != nil {
				t.Fatal(err)
			}
			f.Close()
			if r := cli("unpin", image); !strings.Contains(r.Stderr, "sleep") {
				t.Errorf("who has it open: %s", r.Stderr)
			}
			sleeper.Process.Kill()
			sleeper.Wait()
			vmtest.Must(t, "dmsetup", "remove", "copy")
			expect(t, 0, "unpin", image)
			nothingLeft(t, image)
		})
	}
}

// An unmap releases no pin while a device that somebody made by hand lies on the image.
func TestUnmapBelowForeignDevice(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "8M")
	mapIt(t, image, "vol")
	vmtest.DmsetupCreate(t, "copy", vmtest.Must(t, "dmsetup", "table", "vol"))
	flags := flagsOf(t, image)
	if r := cli("unmap", "vol"); r.Code != 5 || !strings.Contains(r.Stderr, "copy") {
		t.Errorf("exit code %d\n%s", r.Code, r.Stderr)
	}
	if now := flagsOf(t, image); now != flags {
		t.Errorf("flags %s became %s", flags, now)
	}
	if r := expect(t, 0, "list", "vol"); !strings.Contains(r.Stdout, "healthy") {
		t.Errorf("%s", r.Stdout)
	}
	vmtest.DmsetupRemove(t, "copy")
	expect(t, 0, "unmap", "vol")
	nothingLeft(t, image)
}
