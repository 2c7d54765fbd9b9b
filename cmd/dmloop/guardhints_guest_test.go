//go:build vmtest

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// What --on-change asks for is done to a device in use, and unmap takes it away
// afterwards.
func TestGuardPolicies(t *testing.T) {
	img := lifeHost(t, "ext4")
	for policy, want := range map[string]string{"suspend": "suspended", "report": "stale", "error": "failed"} {
		mustDmloop(t, "map", "--pin", "none", "--unsafe", "--on-change", policy, img, "vol")
		w := startWriter(t, "/dev/mapper/vol", false)
		if err := os.Truncate(img, imageSize+4096); err != nil {
			t.Fatal(err)
		}
		await(t, want, 10*time.Second, func() bool { return state(t, "STATE") == want })
		if reason := state(t, "REASON"); !strings.Contains(reason, "resized") {
			t.Errorf("%s: the reason is %q", policy, reason)
		}
		info := vmtest.Must(t, "dmsetup", "info", "-c", "--noheadings", "-o", "suspended", "vol")
		if got := strings.TrimSpace(info) == "Suspended"; got != (policy == "suspend") {
			t.Errorf("%s: dmsetup says %s", policy, info)
		}
		if got := strings.Contains(vmtest.Must(t, "dmsetup", "table", "vol"), "linear"); got != (policy != "error") {
			t.Errorf("%s: the table is linear: %t", policy, got)
		}
		select {
		case <-w.failed:
			if policy != "error" {
				t.Errorf("%s: the writer got an error", policy)
			}
		case <-time.After(200 * time.Millisecond):
			if policy == "error" {
				t.Error("the writer got no error")
			}
		}
		for _, command := range []string{"verify", "status"} {
			if r := dmloop(t, command, "vol"); r.Code != 4 {
				t.Errorf("%s: %s: exit code %d", policy, command, r.Code)
			}
		}
		if policy == "suspend" { // the writer waits inside the kernel, and the guard suspends again what is resumed by hand
			mustDmloop(t, "unmap", "--force", "vol")
			w.stop()
		} else {
			w.stop()
			mustDmloop(t, "unmap", "vol")
		}
		if err := os.Truncate(img, imageSize); err != nil {
			t.Fatal(err)
		}
	}
}

// When the kernel drops messages because nobody reads them, everything is checked: here
// by a guard whose timer does not run.
func TestGuardChecksWhenMessagesAreLost(t *testing.T) {
	img := lifeHost(t, "ext4")
	dir, disk := filepath.Dir(img), vmtest.Disks(t)[0]
	dev, err := filepath.EvalSymlinks("/dev/mapper/" + hostName)
	if err != nil {
		t.Fatal(err)
	}
	var removeAlias func()
	for _, c := range []struct {
		source string
		flood  func()
		change func()
		undo   func()
	}{
		{"the inotify queue overflowed", func() {
			for i := range 9000 { // of two messages each; fs.inotify.max_queued_events is 16384
				name := filepath.Join(dir, fmt.Sprintf("f%d", i%2))
				if err := os.WriteFile(name, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				os.Remove(name)
			}
		}, func() {
			if err := os.Truncate(img, imageSize+4096); err != nil {
				t.Fatal(err)
			}
		}, func() {
			if err := os.Truncate(img, imageSize); err != nil {
				t.Fatal(err)
			}
		}},
		{"uevents: no buffer space available", func() {
			f, err := os.OpenFile("/sys/dev/block/"+devNumbers(t, dev)+"/uevent", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for range 12000 { // the socket has room for 4 MiB, at a KiB or so each
				if _, err := f.WriteString("change"); err != nil {
					t.Fatal(err)
				}
			}
		}, func() {
			var elsewhere string
			elsewhere, removeAlias = throughAlias(t, disk)
			reloadHost(t, elsewhere)
		}, func() {
			reloadHost(t, hostTable(disk))
			removeAlias()
		}},
	} {
		if err := os.MkdirAll("/run/dmloop", 0o700); err != nil {
			t.Fatal(err)
		}
		startGuard(t, "--interval", "1h", "--full-interval", "1h")
		mustDmloop(t, "map", "--pin", "none", "--unsafe", img, "vol")
		pid := strconv.Itoa(guardPID())
		vmtest.Must(t, "kill", "-STOP", pid)
		c.flood()
		c.change() // the message about this one does not get through
		vmtest.Must(t, "kill", "-CONT", pid)
		await(t, "the tear-down", 20*time.Second, func() bool { return state(t, "STATE") == "failed" })
		if log := guardLog(); !strings.Contains(log, c.source) {
			t.Errorf("the log does not say %q:\n%s", c.source, log)
		}
		c.undo()
		mustDmloop(t, "unmap", "vol")
		endGuard(t, "TERM")
		os.Remove("/run/dmloop/guard.log")
	}
}

// throughAlias makes a device that shows the disk, and returns the host's table by which
// the image lies on that device: the file system sees no difference.
func throughAlias(t *testing.T, disk string) (table string, remove func()) {
	t.Helper()
	vmtest.Must(t, "dmsetup", "create", "alias", "--table", hostTable(disk))
	return fmt.Sprintf("0 %d linear %s 0\n", hostSectors, devNumbers(t, "/dev/mapper/alias")), func() { vmtest.Must(t, "dmsetup", "remove", "alias") }
}

func reloadHost(t *testing.T, table string) {
	t.Helper()
	if r := vmtest.RunInput(t, table, "dmsetup", "load", hostName); r.Code != 0 {
		t.Fatalf("dmsetup load: %s", r.Stderr)
	}
	vmtest.Must(t, "dmsetup", "resume", "--noudevsync", hostName)
}

// The guard talks to root only, even when the way to its socket is open.
func TestGuardTalksToRootOnly(t *testing.T) {
	img := lifeHost(t, "ext4")
	mustDmloop(t, "map", img, "vol")
	for path, mode := range map[string]os.FileMode{"/run/dmloop": 0o755, "/run/dmloop/guard.sock": 0o666} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %s", path, info.Mode())
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if answer, err := askGuard(0); err != nil || !strings.Contains(answer, `"vol"`) {
		t.Errorf("root gets %q, %v", answer, err)
	}
	const nobody = 65534
	if answer, err := askGuard(nobody); answer != "" || err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("nobody gets %q, %v", answer, err)
	}
	if want := fmt.Sprintf("process %d of user %d may not talk to the guard", os.Getpid(), nobody); !strings.Contains(guardLog(), want) {
		t.Errorf("the log lacks %q:\n%s", want, guardLog())
	}
	if err := os.Chmod("/run/dmloop", 0o700); err != nil {
		t.Fatal(err)
	}
}

// The metrics name images: on a loopback address they are root's, unless asked otherwise.
func TestGuardMetricsAreRoots(t *testing.T) {
	vmtest.RequireGuest(t)
	vmtest.Must(t, "ip", "link", "set", "lo", "up")
	const port = "7777"
	get := func(user string) string {
		script := `exec 3<>/dev/tcp/127.0.0.1/` + port + ` && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 && cat <&3`
		return vmtest.Run(t, "setpriv", "--reuid="+user, "--regid="+user, "--clear-groups", "bash", "-c", script).Stdout
	}
	const is, isNot = "HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden"
	for _, c := range []struct {
		options        []string
		root, stranger string
	}{{nil, is, isNot}, {[]string{"--metrics-public"}, is, is}} {
		startGuard(t, append([]string{"--metrics", "127.0.0.1:" + port}, c.options...)...)
		for user, want := range map[string]string{"0": c.root, "65534": c.stranger} {
			got := get(user)
			if !strings.HasPrefix(got, want) || strings.Contains(got, "dmloop_guard_mappings") != (want == is) {
				t.Errorf("%v: user %s gets %q", c.options, user, got)
			}
		}
		endGuard(t, "TERM")
	}
}

// askGuard asks for the guard's status as another user, which only a thread of its own
// becomes, and returns all that comes back.
func askGuard(uid int) (answer string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			err = errno
			return
		}
		var fd int
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		f := os.NewFile(uintptr(fd), "guard")
		defer f.Close()
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: "/run/dmloop/guard.sock"}); err != nil {
			return
		}
		var conn net.Conn
		if conn, err = net.FileConn(f); err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err = io.WriteString(conn, `{"op":"status"}`+"\n"); err != nil {
			return
		}
		buf := make([]byte, 64<<10)
		var n int
		if n, err = conn.Read(buf); errors.Is(err, io.EOF) {
			err = nil
		}
		answer = string(buf[:n])
	}()
	<-done
	return answer, err
}
