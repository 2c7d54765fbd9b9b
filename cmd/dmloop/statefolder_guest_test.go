//go:build vmtest

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"dmloop/internal/vmtest"
)

// Somebody empties or removes the state directory below a running guard: the guard serves
// again and has its records again, with the modes that they had, and nobody needs a
// second guard.
func TestStateFolderEmptied(t *testing.T) {
	img := lifeHost(t, "ext4")
	mustDmloop(t, "map", img, "vol")
	pid := guardPID()
	record := func() string { return vmtest.Must(t, "tail", "-n", "+2", "/run/dmloop/vol.mapping") } // layout and table
	want := record()
	for _, how := range []string{
		"rm -rf /run/dmloop/* /run/dmloop/.[!.]*", "rm -rf /run/dmloop/*", "rm -rf /run/dmloop", "rm /run/dmloop/guard.sock",
		"rm /run/dmloop/vol.mapping", "mv /run/dmloop /run/dmloop.old; rm -rf /run/dmloop.old",
	} {
		vmtest.Run(t, "sh", "-c", how) // rm fails where the guard has made something again before it is through
		await(t, "the socket and the record after "+how, 10*time.Second, func() bool {
			_, err := os.Stat("/run/dmloop/vol.mapping")
			return err == nil && guardAnswers(t)
		})
		modes := vmtest.Must(t, "stat", "-c", "%a %U", "/run/dmloop", "/run/dmloop/guard.sock", "/run/dmloop/guard.lock", "/run/dmloop/vol.mapping")
		if modes != "700 root\n600 root\n600 root\n600 root\n" {
			t.Errorf("%s: modes\n%s", how, modes)
		}
		if now := record(); now != want {
			t.Errorf("%s: the record became\n%s", how, now)
		}
		if st := state(t, "STATE") + " " + state(t, "GUARD"); st != "healthy 1" {
			t.Errorf("%s: %s", how, st)
		}
		mustDmloop(t, "verify", "vol")
		if now := guardPID(); now != pid {
			t.Errorf("%s: the guard is %d, and was %d", how, now, pid)
		}
		if r := dmloop(t, "guard"); r.Code != 5 {
			t.Errorf("%s: a second guard: exit code %d\n%s", how, r.Code, r.Stderr)
		}
	}
	mustDmloop(t, "unmap", "vol")
	nothingLeft(t, img)
}

// An unmap that comes before the guard has written the record again has it from the
// guard, and what held the image is released.
func TestUnmapWithoutRecord(t *testing.T) {
	img := lifeHost(t, "ext4")
	for range 5 {
		mustDmloop(t, "map", img, "vol")
		vmtest.Must(t, "rm", "/run/dmloop/vol.mapping")
		mustDmloop(t, "unmap", "vol")
		nothingLeft(t, img)
	}
}

// Root who is denied an open by a guard out of reach is not told to be root.
func TestQemuDeniedByGuardOutOfReach(t *testing.T) {
	img := lifeHost(t, "ext4")
	mustDmloop(t, "map", "--gate=fanotify", img, "vol")
	r := elsewhere(t, "check", img)
	if r.Code == 0 || strings.Contains(r.Stdout+r.Stderr, "sudo") || !strings.Contains(r.Stdout+r.Stderr, "guard") {
		t.Errorf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// A full state directory does not keep a mapping: what unmap needs to say there is not
// needed.
func TestUnmapWithFullStateFolder(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "8M")
	vmtest.Must(t, "mkdir", "-p", "-m", "700", "/run/dmloop")
	vmtest.Must(t, "mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", "/run/dmloop")
	t.Cleanup(func() { vmtest.Must(t, "umount", "/run/dmloop") })
	expect(t, 0, "map", "--no-guard", image, "vol")
	if r := vmtest.Run(t, "dd", "if=/dev/zero", "of=/run/dmloop/filler", "bs=4k"); r.Code == 0 {
		t.Fatal("the folder does not become full")
	}
	busy, err := os.Open("/dev/mapper/vol")
	if err != nil {
		t.Fatal(err)
	}
	r := cli("unmap", "vol")
	busy.Close()
	if r.Code != 5 {
		t.Errorf("in use: exit code %d\n%s", r.Code, r.Stderr)
	}
	if r := expect(t, 0, "unmap", "vol"); !strings.Contains(r.Stderr, "full") {
		t.Errorf("%s", r.Stderr)
	}
	nothingLeft(t, image)
}

// Without a guard list itself says that an image was deleted.
func TestListOfADeletedImage(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, xfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.image(t, "image.img", "8M")
			mapIt(t, image, "vol")
			vmtest.Must(t, "chattr", "-i", image)
			vmtest.Must(t, "rm", image)
			for _, other := range []bool{false, true} { // another file takes the name, and perhaps the inode
				if other {
					vmtest.RandomFile(t, image, 8<<20, 1)
				}
				r := cli("list", "vol")
				if strings.Contains(r.Stdout, "healthy") || !strings.Contains(r.Stdout, "stale") {
					t.Errorf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
				}
				if r := cli("status", "vol"); r.Code != 4 {
					t.Errorf("status: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
				}
			}
			vmtest.Must(t, "rm", image)
		})
	}
}

// What the guard suspended and somebody resumes by hand is looked at again, suspended
// again while it is different, and healthy when it is not.
func TestResumedByHand(t *testing.T) {
	img := lifeHost(t, "ext4")
	mustDmloop(t, "map", "--on-change=suspend", img, "vol")
	suspended := func() bool {
		return strings.Contains(vmtest.Must(t, "dmsetup", "info", "-c", "--noheadings", "-o", "suspended", "vol"), "Suspended")
	}
	// Below the image's first sectors, and nothing else's, the host is another for a while.
	var first uint64
	fmt.Sscanf(vmtest.Must(t, "dmsetup", "table", "vol"), "0 %d linear %s %d", new(uint64), new(string), &first)
	same := vmtest.Must(t, "dmsetup", "table", hostName)
	disk := strings.Fields(same)[3]
	other := fmt.Sprintf("0 %d linear %s 0\n%d 8 error\n%d %d linear %s %d\n", first, disk, first, first+8, hostSectors-first-8, disk, first+8)
	host := func(rows string) {
		if r := vmtest.RunInput(t, rows, "dmsetup", "reload", hostName); r.Code != 0 {
			t.Fatal(r.Stderr)
		}
		vmtest.Must(t, "dmsetup", "resume", hostName)
	}
	host(other)
	t.Cleanup(func() { host(same) })
	await(t, "the suspension", 15*time.Second, suspended)
	for range 2 {
		vmtest.Must(t, "dmsetup", "resume", "vol")
		await(t, "the next suspension", 15*time.Second, suspended)
	}
	host(same)
	vmtest.Must(t, "dmsetup", "resume", "vol")
	await(t, "health", 15*time.Second, func() bool { return !suspended() && state(t, "STATE") == "healthy" })
}

// A check of an image that is being provisioned says so, and leaves the work alone: an
// open would end it.
func TestCheckBesideProvision(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.path("image.img")
	vmtest.Must(t, "truncate", "-s", "192M", image)
	work := command(t, "dmloop", "provision", image)
	var out strings.Builder
	work.Stdout, work.Stderr = &out, &out
	if err := work.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- work.Wait() }()
	inode := ":" + strings.TrimSpace(vmtest.Must(t, "stat", "-c", "%i", image)) + " "
	await(t, "the lease", time.Minute, func() bool {
		locks, err := os.ReadFile("/proc/locks")
		return err == nil && strings.Contains(string(locks), "LEASE") && strings.Contains(string(locks), inode)
	})
	pid := fmt.Sprint(work.Process.Pid)
	vmtest.Must(t, "kill", "-STOP", pid)
	if r := cli("check", image); r.Code != 3 || !strings.Contains(r.Stdout, "dmloop provision") {
		t.Errorf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	vmtest.Must(t, "kill", "-CONT", pid)
	if err := <-ended; err != nil {
		t.Errorf("provision: %v\n%s", err, out.String())
	}
	if r := cli("check", image); strings.Contains(r.Stdout, "(hole)") {
		t.Errorf("%s", r.Stdout)
	}
}
