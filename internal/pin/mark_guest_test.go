//go:build vmtest

package pin

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// hostFile makes a file with blocks on a new file system.
func hostFile(t *testing.T, fstype string) *os.File {
	t.Helper()
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, fstype, disk)
	path := filepath.Join(vmtest.Mount(t, disk), "f")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if fstype == "f2fs" { // newer kernels pin only files without blocks
		if err := put(f, "f2fs", F2FS, true); err != nil {
			t.Fatal(err)
		}
		if err := put(f, "f2fs", F2FS, false); err != nil {
			t.Fatal(err)
		}
		return f
	}
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return f
}

func setAttribute(t *testing.T, f *os.File, text string) {
	t.Helper()
	if err := unix.Fsetxattr(int(f.Fd()), Attribute, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

// inForce is what others than this package say.
func inForce(t *testing.T, f *os.File, fstype string) (immutable, nodefrag, marked bool) {
	t.Helper()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		t.Fatal(err)
	}
	if fstype == "xfs" {
		xflags, _, _ := strings.Cut(vmtest.Must(t, "xfs_io", "-r", "-c", "lsattr", f.Name()), " ")
		nodefrag = strings.Contains(xflags, "f")
	}
	_, err = unix.Fgetxattr(int(f.Fd()), Attribute, nil)
	return flags&0x10 != 0, nodefrag, err == nil
}

func noClaim(t *testing.T) Claim {
	return func(bool) error { t.Error("the swap claim was touched"); return nil }
}

func TestSetAndUndo(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs", "f2fs"} {
		t.Run(fstype, func(t *testing.T) {
			f := hostFile(t, fstype)
			wanted := Wanted(fstype, false)
			for range 2 { // twice: nothing of the first round is left in the way
				ours, err := Set(f, fstype, "x", wanted, noClaim(t))
				if err != nil || !slices.Equal(ours, wanted) {
					t.Fatalf("set %v, %v", ours, err)
				}
				if again, err := Set(f, fstype, "x", wanted, noClaim(t)); err != nil || !slices.Equal(again, wanted) {
					t.Errorf("set again %v, %v", again, err)
				}
				kinds, err := InForce(f, fstype)
				if err != nil || !slices.Equal(kinds, wanted) {
					t.Errorf("in force %v, %v", kinds, err)
				}
				if i, n, m := inForce(t, f, fstype); !i || n != (fstype == "xfs") || !m {
					t.Errorf("immutable %v, nodefrag %v, marked %v", i, n, m)
				}
				if err := UndoFor(f, fstype, "other", noClaim(t)); err != nil {
					t.Error(err)
				}
				if i, _, m := inForce(t, f, fstype); !i || !m {
					t.Error("another mapping's pins were cleared")
				}
				for range 2 { // what is gone is no error
					if err := UndoFor(f, fstype, "x", noClaim(t)); err != nil {
						t.Error(err)
					}
				}
				if i, n, m := inForce(t, f, fstype); i || n || m {
					t.Errorf("left: immutable %v, nodefrag %v, marked %v", i, n, m)
				}
			}
		})
	}
}

// Whatever a killed command left of the steps of Set, both Undo and Set finish it.
func TestEveryHalfWayState(t *testing.T) {
	f := hostFile(t, "xfs")
	all := []Kind{NoDefrag, Immutable}
	for _, left := range [][]Kind{{}, {NoDefrag}, {NoDefrag, Immutable}, {Immutable}} {
		for _, finish := range []string{"undo", "set", "set for another"} {
			if err := writeMark(f, "xfs", Mark{Name: "x", Kinds: all}); err != nil {
				t.Fatal(err)
			}
			for _, k := range left {
				if err := put(f, "xfs", k, true); err != nil {
					t.Fatal(err)
				}
			}
			name := "x"
			if finish == "set for another" {
				name = "y"
			}
			if finish != "undo" {
				if _, err := Set(f, "xfs", name, all, noClaim(t)); err != nil {
					t.Errorf("%v, %s: %v", left, finish, err)
				}
				if m, _, err := ReadMark(f); err != nil || m.Name != name {
					t.Errorf("%v, %s: the mark names %q, %v", left, finish, m.Name, err)
				}
				if kinds, err := InForce(f, "xfs"); err != nil || !slices.Equal(kinds, all) {
					t.Errorf("%v, %s: in force %v, %v", left, finish, kinds, err)
				}
			}
			if err := UndoFor(f, "xfs", name, noClaim(t)); err != nil {
				t.Errorf("%v, %s: %v", left, finish, err)
			}
			if i, n, m := inForce(t, f, "xfs"); i || n || m {
				t.Fatalf("%v, %s: left: immutable %v, nodefrag %v, marked %v", left, finish, i, n, m)
			}
		}
	}
}

func TestPinsOfOthersStay(t *testing.T) {
	f := hostFile(t, "xfs")
	vmtest.Must(t, "chattr", "+i", f.Name())
	ours, err := Set(f, "xfs", "x", Wanted("xfs", false), noClaim(t))
	if err != nil || len(ours) != 0 {
		t.Errorf("set %v, %v", ours, err)
	}
	if err := UndoFor(f, "xfs", "x", noClaim(t)); err != nil {
		t.Error(err)
	}
	if i, _, m := inForce(t, f, "xfs"); !i || m {
		t.Errorf("immutable %v, marked %v", i, m)
	}
	vmtest.Must(t, "chattr", "-i", f.Name())

	// Pinned by hand with dmloop pin: a mapping borrows that and gives it back.
	if _, err := Set(f, "xfs", "", Wanted("xfs", false), noClaim(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := Set(f, "xfs", "x", Wanted("xfs", false), noClaim(t)); err != nil {
		t.Fatal(err)
	}
	if err := UndoFor(f, "xfs", "x", noClaim(t)); err != nil {
		t.Fatal(err)
	}
	if i, n, m := inForce(t, f, "xfs"); !i || !n || !m {
		t.Errorf("immutable %v, nodefrag %v, marked %v", i, n, m)
	}
	if err := Undo(f, "xfs", noClaim(t)); err != nil {
		t.Fatal(err)
	}
	if i, n, m := inForce(t, f, "xfs"); i || n || m {
		t.Errorf("left: immutable %v, nodefrag %v, marked %v", i, n, m)
	}
}

// A pin that cannot be had leaves nothing of the others.
func TestSetUndoesWhatItDid(t *testing.T) {
	f := hostFile(t, "ext4")
	broken := errors.New("no slot")
	var calls []bool
	claim := func(on bool) error {
		calls = append(calls, on)
		if on {
			return broken
		}
		return nil
	}
	if _, err := Set(f, "ext4", "x", []Kind{Swap, Immutable}, claim); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if !slices.Equal(calls, []bool{true, false}) {
		t.Errorf("the claim was called with %v", calls)
	}
	if i, _, m := inForce(t, f, "ext4"); i || m {
		t.Errorf("left: immutable %v, marked %v", i, m)
	}
}

// A mark that is not understood must stop everything: to undo what it says would
// be a guess, and to ignore it would leave pins for ever.
func TestBadMarks(t *testing.T) {
	f := hostFile(t, "ext4")
	for name, text := range map[string]string{
		"empty":           "",
		"no JSON":         "immutable",
		"half":            `{"version":1,"name":"x"`,
		"a later version": `{"version":2,"name":"x","kinds":["immutable"]}`,
		"no version":      `{"name":"x","kinds":["immutable"]}`,
		"a list":          `[1]`,
		"binary":          "\x00\x01\x02",
		"an unknown kind": `{"version":1,"name":"x","kinds":["immutable","quantum"]}`,
		"long":            `{"version":1,"name":"` + strings.Repeat("x", 3000) + `"`,
	} {
		setAttribute(t, f, text)
		if m, ok, err := ReadMark(f); err == nil {
			t.Errorf("%s: read as %+v, %v", name, m, ok)
		}
		if Undo(f, "ext4", noClaim(t)) == nil || UndoFor(f, "ext4", "x", noClaim(t)) == nil {
			t.Errorf("%s: Undo went on", name)
		}
		if _, err := Set(f, "ext4", "x", []Kind{Immutable}, noClaim(t)); err == nil {
			t.Errorf("%s: Set went on", name)
		}
		if i, _, m := inForce(t, f, "ext4"); i || !m {
			t.Fatalf("%s: immutable %v, marked %v", name, i, m)
		}
	}
}

// The pins are set in the order in which they can be, whatever the order in which they
// are asked for: the kernel takes no immutable file for swap.
func TestSetInOrder(t *testing.T) {
	f := hostFile(t, "ext4")
	calls := 0
	claim := func(bool) error {
		calls++
		if i, _, _ := inForce(t, f, "ext4"); i {
			t.Error("the claim was taken or ended on an immutable file")
		}
		return nil
	}
	if ours, err := Set(f, "ext4", "x", []Kind{Immutable, Swap}, claim); err != nil || len(ours) != 2 || calls != 1 {
		t.Errorf("set %v, %v, %d calls", ours, err, calls)
	}
	if err := Undo(f, "ext4", claim); err != nil || calls != 2 {
		t.Errorf("%v, %d calls", err, calls)
	}
	if _, err := Set(f, "ext4", "x", []Kind{"glue"}, claim); err == nil {
		t.Error("a pin that there is not was set")
	}
	if i, _, m := inForce(t, f, "ext4"); i || m {
		t.Errorf("left: immutable %v, marked %v", i, m)
	}
}
