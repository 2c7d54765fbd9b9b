//go:build vmtest

package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// hintOf returns the command after these words in the hint of a failed command.
func hintOf(t *testing.T, r vmtest.Result, before string) string {
	t.Helper()
	_, hint, found := strings.Cut(r.Stdout+r.Stderr, "hint: ")
	_, command, said := strings.Cut(hint, before)
	if !found || !said {
		t.Fatalf("no hint with %q:\n%s%s", before, r.Stdout, r.Stderr)
	}
	command, _, _ = strings.Cut(command, "\n")
	return command
}

// The footer of a fixed VHD stays out of the device by the hint, and stays in the file.
func TestHintOfVHD(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "disk.vhd", "4M")
	shell(t, h.dir, "printf conectix >> disk.vhd; truncate -s 4194816 disk.vhd; sync")
	limit := hintOf(t, expect(t, 3, "check", image), "--sizelimit ")
	for _, command := range []string{"map", "seal"} {
		if r := expect(t, 3, command, image); strings.Contains(r.Stderr, "truncate") || !strings.Contains(r.Stderr, "footer of a fixed VHD") {
			t.Errorf("%s: %s", command, r.Stderr)
		}
	}
	expect(t, 3, "map", image)
	before := vmtest.ChecksumFile(t, image)
	dev := mapIt(t, image, "vhd", "--sizelimit", limit)
	if n := vmtest.Sectors(t, dev); n != 4<<20/512 {
		t.Errorf("%d sectors", n)
	}
	expect(t, 0, "unmap", "vhd")
	if got := vmtest.ChecksumFile(t, image); got != before {
		t.Error("the file changed")
	}
}

// An offset at which a partition begins cannot be mapped where it fits no blocks; the hint
// makes a device of that partition.
func TestHintOfOffsetAtPartition(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "disk.img", "8M")
	if r := vmtest.RunInput(t, "start=63,size=8000\nstart=8064,size=1000\n", "sfdisk", "-q", image); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	vmtest.Must(t, "sync")
	r := expect(t, 3, "map", "--no-guard", "--offset", "32256", "--sizelimit", "4096000", image, "vol")
	if strings.Count(r.Stderr, "partition 1 begins there") != strings.Count(r.Stderr, "hint: ") || strings.Contains(r.Stderr, "use an offset") {
		t.Errorf("%s", r.Stderr)
	}
	args := strings.Fields(hintOf(t, r, ": dmloop "))
	expect(t, 0, append(args, "vol", "--no-guard")...)
	if n := vmtest.Sectors(t, "/dev/mapper/volp1"); n != 8000 {
		t.Errorf("%d sectors", n)
	}
	expect(t, 0, "unmap", "vol")
	nothingLeft(t, image)
}

// What the hint of an image on a read-only device names works there.
func TestHintOfReadOnlyMedium(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	want := fill(t, image, 4<<20, 3)
	vmtest.Must(t, "umount", h.dir)
	vmtest.Must(t, "blockdev", "--setro", h.dev)
	t.Cleanup(func() { vmtest.Must(t, "blockdev", "--setrw", h.dev) })
	vmtest.Must(t, "mount", "-o", "ro", h.dev, h.dir)
	t.Cleanup(func() { vmtest.Must(t, "umount", h.dir); vmtest.Must(t, "mount", h.dev, h.dir) })
	r := expect(t, 3, "map", image)
	if strings.Contains(r.Stderr, "remount") {
		t.Errorf("a read-only device cannot be mounted read-write:\n%s", r.Stderr)
	}
	command, _, _ := strings.Cut(hintOf(t, r, ": dmloop "), ";")
	expect(t, 0, strings.Fields(command)...)
	if got := vmtest.ChecksumFile(t, "/dev/mapper/image"); got != want {
		t.Error("the device shows something else")
	}
	expect(t, 0, "unmap", "image")
}

// chattr +e needs a feature of the file system; the hint says how it gets it.
func TestHintOfIndirectBlocks(t *testing.T) {
	h := newHost(t, hostKind{"ext4", "ext4", []string{"-b", "4096", "-O", "^extent,^64bit"}}, "shim")
	shell(t, h.dir, "dd if=/dev/zero of=image.img bs=1M count=4 status=none; sync")
	image := h.path("image.img")
	r := expect(t, 3, "check", image)
	if !strings.Contains(r.Stdout, "tune2fs -O extent "+h.dev+", mount it, and then run: chattr +e "+image) {
		t.Fatalf("%s", r.Stdout)
	}
	vmtest.Must(t, "umount", h.dir)
	vmtest.Must(t, "tune2fs", "-O", "extent", h.dev)
	vmtest.Must(t, "mount", h.dev, h.dir)
	if r := expect(t, 3, "check", image); hintOf(t, r, "run: ") != "chattr +e "+image {
		t.Errorf("%s", r.Stdout)
	}
	vmtest.Must(t, "chattr", "+e", image)
	vmtest.Must(t, "sync")
	expect(t, 0, "check", image)
}

// f2fs in the mode lfs pins nothing: a rule says so, not a failed ioctl.
func TestHintOfF2FSModeLFS(t *testing.T) {
	h := newHost(t, f2fsHost, "shim", "-o", "mode=lfs")
	shell(t, h.dir, "dd if=/dev/zero of=image.img bs=1M count=4 status=none; sync")
	for _, command := range []string{"check", "map", "pin"} {
		r := expect(t, 3, command, h.path("image.img"))
		if text := r.Stdout + r.Stderr; !strings.Contains(text, "f2fs is mounted with mode=lfs") || !strings.Contains(text, "unpinnable") || strings.Contains(text, "ioctl") {
			t.Errorf("%s: %s", command, text)
		}
	}
}

// What is in use is in use by somebody with a name: device-mapper devices have one that
// people gave them, and what is mounted elsewhere is found.
func TestHintOfUsers(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "8M")
	dev := mapIt(t, image, "image")
	busy := func(want string) {
		t.Helper()
		if r := expect(t, 5, "unmap", "image"); !regexp.MustCompile(want).MatchString(r.Stderr) || strings.Contains(r.Stderr, "dm-") {
			t.Errorf("want %q:\n%s", want, r.Stderr)
		}
	}
	vmtest.DmsetupCreate(t, "on-top", "0 2048 linear "+dev+" 0\n")
	busy("in use by device on-top\n")
	vmtest.DmsetupRemove(t, "on-top")

	loop := strings.TrimSpace(vmtest.Must(t, "losetup", "-f", "--show", dev))
	busy("in use by loop device " + loop + "\n")
	vmtest.Must(t, "losetup", "-d", loop)

	vmtest.Mkfs(t, "ext4", dev)
	dir := t.TempDir()
	elsewhere := inNamespace(t, "mount "+dev+" "+dir)
	busy("in use by mount " + dir + ` in the mount namespace of process \d+ \(sh\)` + "\n")
	elsewhere()

	node, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "mount", dev, dir)
	open, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "umount", "-l", dir)
	node.Close()
	busy("in use by somebody out of sight from here: ")
	open.Close()
	expect(t, 0, "unmap", "image")
}

// A loop device that was made in another mount namespace uses the file all the same.
func TestHintOfLoopElsewhere(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	dir := t.TempDir()
	elsewhere := inNamespace(t, "mount --bind "+h.dir+" "+dir+" && umount "+h.dir+" && losetup /dev/loop7 "+dir+"/image.img")
	if r := expect(t, 5, "map", "--no-guard", image); !strings.Contains(r.Stderr, "/dev/loop7") {
		t.Errorf("%s", r.Stderr)
	}
	vmtest.Must(t, "losetup", "-d", "/dev/loop7")
	elsewhere()
}

// inNamespace has a shell run a line in a mount namespace of its own, and stay there
// until end is called.
func inNamespace(t *testing.T, line string) (end func()) {
	t.Helper()
	cmd := exec.Command("unshare", "-m", "sh", "-ec", line+"\necho ready\nread end")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if text, _ := bufio.NewReader(out).ReadString('\n'); text != "ready\n" {
		t.Fatalf("%s: %q", line, text)
	}
	return func() {
		in.Close()
		_ = cmd.Wait()
	}
}

// list shows where the image is, not where it was.
func TestListAfterRename(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	for _, d := range []string{"one", "two"} {
		if err := os.MkdirAll(h.path("old/"+d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := h.image(t, "old/one/image.img", "4M")
	mapIt(t, image, "image")
	shown := func() string {
		return strings.TrimSpace(expect(t, 0, "list", "--raw", "-n", "-o", "IMAGE").Stdout)
	}
	if got := shown(); got != image {
		t.Errorf("%q, want %q", got, image)
	}
	vmtest.Must(t, "mv", h.path("old"), h.path("new"))
	now := h.path("new/one/image.img")
	if got := shown(); got != now {
		t.Errorf("%q, want %q", got, now)
	}
	// Something else at the old place is another file.
	if err := os.MkdirAll(filepath.Dir(image), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
	if got := shown(); got != now {
		t.Errorf("%q, want %q", got, now)
	}
	expect(t, 0, "unmap", "image")
	nothingLeft(t, now)
}

// Root without a capability hears which one, and not that it should be root.
func TestHintOfCapabilities(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	for _, c := range []struct{ capability, want, command string }{
		{"sys_admin", "CAP_SYS_ADMIN", "map"}, {"sys_admin", "CAP_SYS_ADMIN", "guard"}, {"linux_immutable", "CAP_LINUX_IMMUTABLE", "map"}, {"linux_immutable", "CAP_LINUX_IMMUTABLE", "pin"},
	} {
		args := []string{c.command}
		if c.command != "guard" {
			args = append(args, image)
		}
		if c.command == "map" {
			args = append(args, "--no-guard")
		}
		cmd := command(t, "dmloop", args...)
		drop := exec.Command("setpriv", append([]string{"--bounding-set", "-" + c.capability, "--inh-caps", "-" + c.capability}, cmd.Args...)...)
		drop.Args[5] = cmd.Path
		drop.Env = cmd.Env
		out, err := drop.CombinedOutput()
		if err == nil || drop.ProcessState.ExitCode() != 7 || !strings.Contains(string(out), "hint: this root lacks the capability "+c.want+",") || strings.Contains(string(out), "sudo") {
			t.Errorf("%s without %s: %v\n%s", c.command, c.capability, err, out)
		}
		nothingLeft(t, image)
	}
}

// What a hint calls a file, a shell takes for that file.
func TestShellReadsWords(t *testing.T) {
	for path := range oddPaths {
		got := vmtest.Must(t, "bash", "-c", "LC_ALL=C.UTF-8; printf %s "+shellWord(path))
		if strings.TrimPrefix(got, "./") != path {
			t.Errorf("%q: %q", path, got)
		}
	}
}

// An image of any name is called by it in a hint that works.
func TestHintsOfOddNames(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	for _, name := range []string{"IMAGE", "IMAGE {image}.img", "a 'b'.img", "a\nb.img", "$(touch x).img", "{name}"} {
		path := h.path(name)
		vmtest.Must(t, "truncate", "-s", "1M", path)
		r := expect(t, 3, "map", path, "vol")
		_, hint, _ := strings.Cut(r.Stderr, "hint: dmloop provision ")
		hint, _, _ = strings.Cut(hint, "\n")
		if got := vmtest.Must(t, "bash", "-c", "LC_ALL=C.UTF-8; printf %s "+hint); got != path {
			t.Errorf("%q: %q of %s", path, got, r.Stderr)
		}
	}
}
