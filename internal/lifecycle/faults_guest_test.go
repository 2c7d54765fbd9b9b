//go:build vmtest

package lifecycle

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/backing"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/gate"
	"dmloop/internal/ioctl"
	"dmloop/internal/pin"
	"dmloop/internal/vmtest"
)

func TestMain(m *testing.M) {
	gate.Off = true // whose steps are not these tests'
	vmtest.Main(m)
}

// faulty is the real device-mapper, of which single requests fail.
type faulty struct {
	control *os.File
	calls   int
	from    int // first request that fails; 0 for none
	sticky  bool
	errno   unix.Errno
	did     bool // carry the request out, and then say that it failed
	op      string
}

func openFaulty(t *testing.T) *faulty {
	t.Helper()
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	return &faulty{control: control}
}

func (f *faulty) exchange(req ioctl.Request, buf []byte) error {
	f.calls++
	fail := f.from > 0 && (f.calls == f.from || f.sticky && f.calls > f.from)
	if f.calls == f.from {
		f.op = req.Name
	}
	if fail && !f.did {
		return &ioctl.Error{Request: req.Name, Err: f.errno}
	}
	err := ioctl.Buffer(int(f.control.Fd()), req, buf)
	if fail && err == nil {
		return &ioctl.Error{Request: req.Name, Err: f.errno}
	}
	return err
}

// next prepares the failure of the nth request, and returns the System of a command.
func (f *faulty) next(dir string, n int) *System {
	f.calls, f.from, f.op = 0, n, ""
	return NewSystem(dir, slog.New(slog.NewTextHandler(io.Discard, nil))).WithConn(dm.NewConn(f.exchange))
}

// scene is an image on a host, and the state directory.
type scene struct{ dir, image string }

func newScene(t *testing.T, fstype string, seal bool) scene {
	t.Helper()
	disk := vmtest.Disk(t, 0)
	host := vmtest.Shim(t, disk, "host")
	vmtest.Mkfs(t, fstype, host)
	s := scene{dir: filepath.Join("/run", "faults"), image: filepath.Join(vmtest.Mount(t, host), "image.img")}
	if err := backing.Create(context.Background(), s.image, 4<<20, backing.Options{}); err != nil {
		t.Fatal(err)
	}
	if seal {
		if err := NewSystem(s.dir, slog.Default()).Seal(context.Background(), s.image, false); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	return s
}

// left lists what is there of a mapping, by what the kernel says.
func (s scene) left(t *testing.T) string {
	t.Helper()
	var found []string
	uuids, _ := filepath.Glob("/sys/block/dm-*/dm/uuid")
	for _, path := range uuids {
		if b, _ := os.ReadFile(path); strings.HasPrefix(string(b), "DMLOOP-") {
			found = append(found, "a device")
		}
	}
	if links, _ := filepath.Glob("/dev/mapper/image*"); len(links) > 0 {
		found = append(found, "a link")
	}
	f, err := os.Open(s.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS); err != nil || flags&0x10 != 0 {
		found = append(found, "the immutable flag")
	}
	if _, err := unix.Fgetxattr(int(f.Fd()), pin.Attribute, nil); err == nil {
		found = append(found, "the mark")
	}
	if b, _ := os.ReadFile("/proc/swaps"); strings.Contains(string(b), s.image) {
		found = append(found, "the swap claim")
	}
	if records, _ := filepath.Glob(s.dir + "/*.mapping"); len(records) > 0 {
		found = append(found, "the record")
	}
	if rest, _ := filepath.Glob(s.dir + "/.*.new"); len(rest) > 0 {
		found = append(found, "half a record")
	}
	return strings.Join(found, ", ")
}

// Every request of map is made to fail in turn, once: nothing remains. When all the
// later ones fail too, what remains has a record, and the next command clears it.
func TestFullMapWhenTheNthRequestFails(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name, fstype string
		seal, sticky bool
		did          bool
		errno        unix.Errno
	}{
		{"once", "ext4", false, false, false, unix.EIO},
		{"once, out of memory", "xfs", false, false, false, unix.ENOMEM},
		{"once, though it was done", "ext4", false, false, true, unix.EIO},
		{"once, sealed", "ext4", true, false, false, unix.EIO},
		{"from there on", "ext4", false, true, false, unix.EIO},
		{"from there on, sealed", "xfs", true, true, false, unix.EIO},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t, c.fstype, c.seal)
			f := openFaulty(t)
			f.errno, f.sticky, f.did = c.errno, c.sticky, c.did
			o := MapOptions{NoGuard: true, Unsafe: true}
			sum := vmtest.ChecksumFile(t, s.image)
			failed := 0
			for n := 1; ; n++ {
				_, err := f.next(s.dir, n).Map(ctx, s.image, o)
				if f.op == "" { // there are fewer requests
					if err != nil {
						t.Fatalf("map without a failure: %v", err)
					}
					break
				}
				failed++
				if err == nil {
					// Only a request after the mapping is complete may fail unseen.
					if uerr := f.next(s.dir, 0).Unmap(ctx, s.image, UnmapOptions{}); uerr != nil {
						t.Errorf("request %d (%s) failed unseen, and unmap says %v", n, f.op, uerr)
					}
				} else if c.sticky {
					if left := s.left(t); left != "" && !strings.Contains(left, "record") {
						t.Errorf("request %d (%s) and all after it failed: left without a record: %s", n, f.op, left)
					}
					if _, err := f.next(s.dir, 0).Map(ctx, s.image, o); err != nil {
						t.Errorf("request %d: the next map: %v", n, err)
					}
					if err := f.next(s.dir, 0).Unmap(ctx, s.image, UnmapOptions{}); err != nil {
						t.Errorf("request %d: the unmap after it: %v", n, err)
					}
				}
				if left := s.left(t); left != "" {
					t.Fatalf("request %d (%s) failed (%v): left: %s", n, f.op, err, left)
				}
			}
			if err := f.next(s.dir, 0).Unmap(ctx, s.image, UnmapOptions{}); err != nil {
				t.Error(err)
			}
			if left := s.left(t); left != "" {
				t.Errorf("left in the end: %s", left)
			}
			if vmtest.ChecksumFile(t, s.image) != sum {
				t.Error("the image changed")
			}
			t.Logf("%d requests failed in turn", failed)
			if failed < 5 {
				t.Errorf("only %d requests failed", failed)
			}
		})
	}
}

// The same for unmap: it may fail, but then it is listed, and the next one succeeds.
func TestFullUnmapWhenTheNthRealRequestFails(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name   string
		seal   bool
		sticky bool
		did    bool
		open   bool
		o      UnmapOptions
	}{
		{"once", false, false, false, false, UnmapOptions{}},
		{"once, though it was done", false, false, true, false, UnmapOptions{}},
		{"from there on", true, true, false, false, UnmapOptions{}},
		{"deferred", false, false, false, true, UnmapOptions{Deferred: true}},
		{"forced", false, false, false, true, UnmapOptions{Force: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t, "ext4", c.seal)
			f := openFaulty(t)
			f.errno, f.did = unix.EIO, c.did
			failed := 0
			for n := 1; ; n++ {
				f.sticky = false
				if _, err := f.next(s.dir, 0).Map(ctx, s.image, MapOptions{NoGuard: true, Unsafe: true}); err != nil {
					t.Fatal(err)
				}
				var user *os.File
				if c.open {
					var err error
					if user, err = os.Open("/dev/mapper/image"); err != nil {
						t.Fatal(err)
					}
				}
				f.sticky = c.sticky
				err := f.next(s.dir, n).Unmap(ctx, s.image, c.o)
				op := f.op
				if left := s.left(t); left != "" && !strings.Contains(left, "record") {
					t.Errorf("request %d (%s) failed: left without a record: %s", n, op, left)
				}
				user.Close() // of nil is no harm
				if err != nil || c.open {
					again := f.next(s.dir, 0).Unmap(ctx, s.image, UnmapOptions{})
					if again != nil && fault.ClassOf(again) != fault.NotFound {
						t.Errorf("request %d (%s): %v; the next unmap: %v", n, op, err, again)
					}
				}
				if left := s.left(t); left != "" {
					t.Fatalf("request %d (%s) failed (%v): left: %s", n, op, err, left)
				}
				if op == "" {
					break
				}
				failed++
			}
			t.Logf("%d requests failed in turn", failed)
			if failed < 3 {
				t.Errorf("only %d requests failed", failed)
			}
		})
	}
}

// An interrupted map leaves nothing, whenever it is interrupted.
func TestFullMapInterrupted(t *testing.T) {
	s := newScene(t, "ext4", false)
	f := openFaulty(t)
	for n, interrupted := 1, true; interrupted; n++ {
		ctx, cancel := context.WithCancel(context.Background())
		sys := f.next(s.dir, 0)
		interrupted = false
		conn := dm.NewConn(func(req ioctl.Request, buf []byte) error {
			if f.calls == n-1 {
				interrupted = true
				cancel()
			}
			return f.exchange(req, buf)
		})
		_, err := sys.WithConn(conn).Map(ctx, s.image, MapOptions{NoGuard: true})
		cancel()
		if err == nil { // too late to be seen
			if err := f.next(s.dir, 0).Unmap(context.Background(), s.image, UnmapOptions{}); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, context.Canceled) && err.Error() != s.image+": interrupted" {
			t.Errorf("request %d: %v", n, err)
		}
		if left := s.left(t); left != "" {
			t.Fatalf("interrupted at request %d: left: %s", n, left)
		}
		if !interrupted && n < 8 {
			t.Errorf("only %d requests", n)
		}
	}
}
