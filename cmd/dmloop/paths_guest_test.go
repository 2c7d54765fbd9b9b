//go:build vmtest

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/swap"
	"dmloop/internal/vmtest"
)

const stranger = 1000 // a user without rights

func init() {
	switch os.Getenv(roleVariable) {
	case "exchange":
		asStranger()
		exchangeForEver(os.Args[1], os.Args[2])
	case "lease":
		asStranger()
		holdLease(os.Args[1])
	}
}

// asStranger makes this process one of a user without rights.
func asStranger() {
	for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(stranger), syscall.Setuid(stranger)} {
		if err != nil {
			panic(err)
		}
	}
}

// exchangeForEver exchanges two names until it is killed, with pauses of any length up
// to those of a whole command. While one of them is pinned that fails.
func exchangeForEver(a, b string) {
	for {
		if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil && !errors.Is(err, unix.EPERM) {
			panic(err)
		}
		time.Sleep(time.Duration(rand.ExpFloat64() * float64(200*time.Microsecond)))
	}
}

// holdLease takes a read lease on a file and keeps it until the kernel takes it away or
// the process is killed.
func holdLease(path string) {
	f, err := os.Open(path)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	}
	if err != nil {
		panic(err)
	}
	fmt.Println("held")
	for {
		time.Sleep(time.Hour)
	}
}

// begin starts a role of the test program, which is killed at the test's end. With
// first set it waits for the first line of its output.
func begin(t *testing.T, first bool, role string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := command(t, role, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if first {
		if _, err := out.Read(make([]byte, 100)); err != nil {
			t.Fatalf("%s: %v", role, err)
		}
	}
	return cmd
}

// inode is all that somebody who changes a file leaves a trace in.
func inode(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	st.Atim = unix.Timespec{}
	return fmt.Sprintf("%+v", st)
}

// A user who exchanges his image and a link to another one, quickly, has nothing done to
// that other one, which is live.
func TestExchangedPath(t *testing.T) {
	for _, c := range []struct {
		name  string
		seal  bool
		guard bool
	}{{"plain", false, false}, {"sealed", true, false}, {"plain with a guard", false, true}} {
		t.Run(c.name, func(t *testing.T) { exchangedPath(t, c.seal, c.guard) })
	}
}

func exchangedPath(t *testing.T, sealed, guarded bool) {
	h := newHost(t, ext4Host, "shim")
	live, name := h.image(t, "live.img", "1M"), "live"
	if sealed {
		mustDmloop(t, "seal", live)
	}
	flags := []string{"map", "--no-guard", live, name}
	if guarded {
		flags = []string{"map", live, name}
	}
	mustDmloop(t, flags...)
	home := filepath.Join(filepath.Dir(live), "home")
	own, link, kept := filepath.Join(home, "x.img"), filepath.Join(home, "link"), filepath.Join(filepath.Dir(live), "kept")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "cp", h.image(t, "own.img", "1M"), own)
	if err := os.Link(own, kept); err != nil { // where the test finds it whatever its name is
		t.Fatal(err)
	}
	if err := os.Symlink("../live.img", link); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "chown", "-hR", fmt.Sprint(stranger), home)

	before, table := inode(t, live), vmtest.Must(t, "dmsetup", "table", name)
	attacker := begin(t, false, "exchange", own, link)
	commands := [][]string{{"unpin", own}, {"pin", own}, {"seal", own}, {"unseal", own}, {"map", "--no-guard", own, "own"},
		{"map", "--no-guard", "--seal", own, "own"}, {"provision", own}, {"unpin", own}}
	hit, missed := 0, 0
	for round := range setting(t, "DMLOOP_EXCHANGES", 60) {
		args := commands[rand.IntN(len(commands))]
		time.Sleep(time.Duration(rand.Int64N(int64(2 * time.Millisecond))))
		r := cli(args...)
		switch {
		case r.Code == 0:
			hit++
		case strings.Contains(r.Stderr, "mapped already as "+name):
			missed++
		}
		if now := inode(t, live); now != before {
			t.Fatalf("round %d: dmloop %s changed the other image (exit code %d, %s)\nbefore %s\nnow    %s", round, strings.Join(args, " "), r.Code, r.Stderr, before, now)
		}
		if args[0] == "map" && r.Code == 0 {
			expect(t, 0, "unmap", "own")
		}
		expect(t, 0, "unpin", kept)
	}
	if now := vmtest.Must(t, "dmsetup", "table", name); now != table {
		t.Errorf("the other image's device has another table now: %s", now)
	}
	if hit == 0 || missed == 0 {
		t.Errorf("the own image was reached %d times and the other %d times: the attack was none", hit, missed)
	}
	attacker.Process.Kill()
	attacker.Wait()
	mustDmloop(t, "unmap", name)
	endGuard(t, "TERM")
}

// A link that a stranger can have put there is not followed, wherever in the path it is.
func TestStrangersLinks(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	dir := filepath.Dir(image)
	shared := filepath.Join(dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shared, 0o1777); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"file": image, "folder": dir, "root": image} {
		if err := os.Symlink(to, filepath.Join(shared, link)); err != nil {
			t.Fatal(err)
		}
		if link != "root" {
			vmtest.Must(t, "chown", "-h", fmt.Sprint(stranger), filepath.Join(shared, link))
		}
	}
	before := inode(t, image)
	for _, path := range []string{filepath.Join(shared, "file"), filepath.Join(shared, "folder/image.img")} {
		for _, verb := range []string{"check", "map", "pin", "unpin", "seal", "unseal", "provision", "extents"} {
			r := expect(t, 3, verb, path)
			if said := r.Stdout + r.Stderr; !strings.Contains(said, "is not followed: it belongs to user 1000") || !strings.Contains(said, "readlink -f "+path) {
				t.Errorf("%s %s: %s", verb, path, said)
			}
		}
	}
	if now := inode(t, image); now != before {
		t.Errorf("the image was changed:\nbefore %s\nnow    %s", before, now)
	}
	expect(t, 0, "check", filepath.Join(shared, "root"))
	mustDmloop(t, "pin", filepath.Join(shared, "root"))
	mustDmloop(t, "unpin", image)
}

// A lease of the image's owner holds up nobody: the command that meets it ends at once
// and says whose it is.
func TestStrangersLease(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image, sealed := h.image(t, "image.img", "1M"), h.image(t, "sealed.img", "1M")
	mustDmloop(t, "seal", sealed)
	patience := 20 * time.Second // the kernel takes a lease away after 45
	for _, path := range []string{image, sealed} {
		vmtest.Must(t, "chown", fmt.Sprint(stranger), path)
		holder := begin(t, true, "lease", path)
		whose := fmt.Sprintf("(pid %d, ", holder.Process.Pid)
		for _, verb := range []string{"seal", "unseal", "provision", "map", "pin"} {
			start, code := time.Now(), 5
			if path == sealed && (verb == "map" || verb == "pin") {
				code = 3 // and it is not root's alone, which does not pass by itself
			}
			r := expect(t, code, verb, path)
			if took := time.Since(start); took > patience {
				t.Errorf("%s %s took %s", verb, path, took)
			}
			if !strings.Contains(r.Stderr, whose) || !strings.Contains(r.Stderr, "open-elsewhere") {
				t.Errorf("%s %s: %s", verb, path, r.Stderr)
			}
		}
		// The claim by itself, as the guard takes it again.
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := swap.Claim(f); err == nil || !strings.Contains(err.Error(), "lease") || time.Since(start) > patience {
			t.Errorf("a claim: %v after %s", err, time.Since(start))
		}
		f.Close()
		holder.Process.Kill()
		holder.Wait()
	}
}
