//go:build vmtest

package udev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/vmtest"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

func connect(t *testing.T) *dm.Conn {
	t.Helper()
	vmtest.RequireGuest(t)
	c, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// loaded makes a device with a table that waits for its first resume.
func loaded(t *testing.T, c *dm.Conn, name string) dm.Info {
	t.Helper()
	info, err := c.Create(name, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vmtest.DmsetupRemove(t, name) })
	if _, err := c.Load(dm.ByName(name), dmtable.Table{{Length: 8, Target: "zero"}}, false); err != nil {
		t.Fatal(err)
	}
	return info
}

// daemon does what udevd and the rule of dmsetup do: it runs dmsetup udevcomplete
// for every uevent that carries a cookie.
type daemon struct {
	mu     sync.Mutex
	events []string // "action cookie"
}

func startDaemon(t *testing.T) *daemon {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		t.Fatal(err)
	}
	// Recvfrom ends once in a while, to look whether the test is over.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	d := &daemon{}
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 16<<10)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(fd, buf, 0); err == nil {
				d.handle(t, string(buf[:n]))
			}
		}
	})
	t.Cleanup(func() { close(stop); done.Wait(); unix.Close(fd) })
	return d
}

func (d *daemon) handle(t *testing.T, message string) {
	var action, cookie string
	for _, line := range strings.Split(message, "\x00") {
		if v, ok := strings.CutPrefix(line, "ACTION="); ok {
			action = v
		}
		if v, ok := strings.CutPrefix(line, "DM_COOKIE="); ok {
			cookie = v
		}
	}
	if cookie == "" {
		return
	}
	d.mu.Lock()
	d.events = append(d.events, action+" "+cookie)
	d.mu.Unlock()
	time.Sleep(100 * time.Millisecond) // so that not waiting is noticed
	if r := vmtest.Run(t, "dmsetup", "udevcomplete", cookie); r.Code != 0 {
		t.Errorf("dmsetup udevcomplete %s: %s", cookie, r.Stderr)
	}
}

func (d *daemon) seen() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := strings.Join(d.events, ", ")
	d.events = nil
	return seen
}

// withUdev returns this machine's host as if udevd ran.
func withUdev(t *testing.T) Host {
	t.Helper()
	h := running(t)
	local := Local()
	h.Run, h.Proc, h.Dev, h.Sys = local.Run, local.Proc, local.Dev, local.Sys
	// dmsetup too looks for udevd's socket.
	control := filepath.Join(h.Run, "udev", "control")
	write(t, control, "")
	t.Cleanup(func() { remove(t, control) })
	if ok, why := h.Running(); !ok {
		t.Fatal(why)
	}
	return h
}

func noCookies(t *testing.T) {
	t.Helper()
	if r := vmtest.Must(t, "dmsetup", "udevcookies"); strings.Contains(r, "0xd4d") {
		t.Errorf("cookies are left:\n%s", r)
	}
}

// TestCookies waits for the uevents of every request that generates one.
func TestCookies(t *testing.T) {
	c := connect(t)
	h := withUdev(t)
	d := startDaemon(t)
	one, two := loaded(t, c, "one"), loaded(t, c, "two")
	within := func(what string, request func(tx *Transaction) string) {
		t.Helper()
		tx, err := h.Begin(nil)
		if err != nil {
			t.Fatal(err)
		}
		want := request(tx)
		if tx.base == 0 {
			t.Fatalf("%s: nothing would be waited for", what)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second) // a guest on a busy machine is slow
		defer cancel()
		if err := tx.WaitContext(ctx); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := d.seen(); got != want {
			t.Errorf("%s: events %q, want %q", what, got, want)
		}
		noCookies(t)
	}
	check := func(info dm.Info, err error) {
		t.Helper()
		if err != nil || !info.UeventGenerated {
			t.Fatalf("%+v, %v", info, err)
		}
	}
	within("two resumes", func(tx *Transaction) string {
		first, second := tx.Add(), tx.Add()
		check(c.Resume(dm.ByDevice(one.Device), dm.ResumeOptions{EventNr: first}))
		check(c.Resume(dm.ByDevice(two.Device), dm.ResumeOptions{EventNr: second}))
		return fmt.Sprintf("change %d, change %d", first, second)
	})
	within("rename", func(tx *Transaction) string {
		nr := tx.Add()
		check(c.Rename(dm.ByName("two"), "three", nr))
		t.Cleanup(func() { vmtest.DmsetupRemove(t, "three") })
		return fmt.Sprintf("change %d", nr)
	})
	within("resume without effect", func(tx *Transaction) string {
		info, err := c.Resume(dm.ByName("one"), dm.ResumeOptions{EventNr: tx.Add()})
		if err != nil || info.UeventGenerated {
			t.Fatalf("%+v, %v", info, err)
		}
		tx.Done()
		return ""
	})
	within("failure", func(tx *Transaction) string {
		if _, err := c.Remove(dm.ByName("none"), dm.RemoveOptions{EventNr: tx.Add()}); !errors.Is(err, dm.ErrNotFound) {
			t.Fatal(err)
		}
		if err := tx.Fail(); err != nil {
			t.Fatal(err)
		}
		return ""
	})
	within("two removals", func(tx *Transaction) string {
		first, second := tx.Add(), tx.Add()
		check(c.Remove(dm.ByName("one"), dm.RemoveOptions{EventNr: first}))
		check(c.Remove(dm.ByName("three"), dm.RemoveOptions{EventNr: second}))
		return fmt.Sprintf("remove %d, remove %d", first, second)
	})
}

// TestNobodyAnswers checks that a uevent that nobody handles is not waited for
// forever, and leaves no semaphore.
func TestNobodyAnswers(t *testing.T) {
	c := connect(t)
	loaded(t, c, "alone")
	tx, err := withUdev(t).Begin(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resume(dm.ByName("alone"), dm.ResumeOptions{EventNr: tx.Add()}); err != nil {
		t.Fatal(err)
	}
	if r := vmtest.Must(t, "dmsetup", "udevcookies"); !strings.Contains(r, fmt.Sprintf("0xd4d%04x", tx.base)) {
		t.Errorf("dmsetup does not know the cookie %#x:\n%s", tx.base, r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := tx.WaitContext(ctx); !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v", err)
	}
	noCookies(t)
}

// TestLinks makes and removes links and nodes without udev, on devtmpfs and on a
// folder where nobody makes nodes.
func TestLinks(t *testing.T) {
	c := connect(t)
	if ok, _ := Local().Running(); ok {
		t.Fatal("udevd runs in this guest")
	}
	info := loaded(t, c, "linked")
	if _, err := c.Resume(dm.ByName("linked"), dm.ResumeOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, bare := range []bool{false, true} {
		t.Run("bare "+strconv.FormatBool(bare), func(t *testing.T) {
			h := Local()
			if bare {
				h.Dev = t.TempDir()
			}
			path := filepath.Join(h.Dev, "mapper", "linked")
			for range 2 { // the second time it is there already
				if err := h.EnsureLink("linked", info.Device); err != nil {
					t.Fatal(err)
				}
			}
			target, err := os.Readlink(path)
			if want := fmt.Sprintf("../dm-%d", info.Device.Minor); err != nil || target != want {
				t.Errorf("link to %q, %v, want %q", target, err, want)
			}
			if !isNode(path, info.Device, unix.Stat) {
				t.Error("it does not lead to the device")
			}
			stale := dmtable.Device{Major: info.Device.Major, Minor: 4711}
			replace(t, path, "../dm-4711")
			if err := h.EnsureLink("linked", info.Device); err != nil || !isNode(path, info.Device, unix.Stat) {
				t.Errorf("a stale link: %v", err)
			}
			if err := h.EnsureLink("linked", stale); err != nil || !isNode(path, stale, unix.Stat) {
				t.Errorf("another device: %v", err)
			}
			if err := h.Unlink("linked"); err != nil {
				t.Error(err)
			}
			for _, gone := range []string{path, filepath.Join(h.Dev, "dm-4711")} {
				if _, err := os.Lstat(gone); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is left: %v", gone, err)
				}
			}
			for what, make := range map[string]func(path string) error{
				"a foreign link":   func(path string) error { return os.Symlink("/dev/null", path) },
				"a regular file":   func(path string) error { return os.WriteFile(path, nil, 0o600) },
				"another node":     func(path string) error { return unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))) },
				"a character node": func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
			} {
				if err := make(path); err != nil {
					t.Fatal(err)
				}
				before, err := os.Lstat(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := h.EnsureLink("linked", info.Device); err == nil {
					t.Errorf("%s is accepted", what)
				}
				if err := h.Unlink("linked"); err == nil {
					t.Errorf("%s is removed", what)
				}
				if after, err := os.Lstat(path); err != nil || after.Mode() != before.Mode() {
					t.Errorf("%s became %v, %v", what, after, err)
				}
				remove(t, path)
			}
			// A node of the right device, as dmsetup makes it without udev, is fine.
			if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(info.Device.Major, info.Device.Minor))); err != nil {
				t.Fatal(err)
			}
			if err := h.EnsureLink("linked", info.Device); err != nil {
				t.Error(err)
			}
			remove(t, path)
		})
	}
}

func replace(t *testing.T, path, target string) {
	t.Helper()
	remove(t, path)
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}
