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

	"dmloop/internal/ioctl"
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

// fakeClaim is a claim without a kernel behind it. Calls are noted as words.
type fakeClaim struct {
	t          *testing.T
	f          *os.File
	held       bool
	fail, odd  error // of Take after it has lifted the flag, and of Verify
	calls      []string
	unexpected bool
}

func noClaim(t *testing.T) Claim { return &fakeClaim{t: t, unexpected: true} }

func (c *fakeClaim) call(word string, immutable bool) {
	c.t.Helper()
	c.calls = append(c.calls, word)
	if c.unexpected {
		c.t.Errorf("the swap claim was touched: %s", word)
	} else if i, _, _ := inForce(c.t, c.f, "ext4"); i != immutable {
		c.t.Errorf("%s with the immutable flag %v", word, i)
	}
}

func (c *fakeClaim) Active() (bool, error) { return c.held, nil }

func (c *fakeClaim) Take(lift func() error) error {
	c.call("take", true)
	if err := lift(); err != nil {
		return err
	}
	c.call("lifted", false)
	c.held = c.fail == nil
	return c.fail
}

func (c *fakeClaim) Verify() error {
	c.calls = append(c.calls, "verify")
	return c.odd
}

func (c *fakeClaim) End() error {
	c.call("end", false)
	c.held = false
	return nil
}

func (c *fakeClaim) was(words ...string) {
	c.t.Helper()
	if !slices.Equal(c.calls, words) {
		c.t.Errorf("the claim was asked to %v, want %v", c.calls, words)
	}
	c.calls = nil
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
				if err := UndoFor(f, fstype, "other", nil, noClaim(t)); err != nil {
					t.Error(err)
				}
				if i, _, m := inForce(t, f, fstype); !i || !m {
					t.Error("another mapping's pins were cleared")
				}
				for range 2 { // what is gone is no error
					if err := UndoFor(f, fstype, "x", nil, noClaim(t)); err != nil {
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
			if err := UndoFor(f, "xfs", name, nil, noClaim(t)); err != nil {
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
	if err := UndoFor(f, "xfs", "x", nil, noClaim(t)); err != nil {
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
	if err := UndoFor(f, "xfs", "x", nil, noClaim(t)); err != nil {
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

// A pin that cannot be had leaves what was there before, and nothing else.
func TestSetUndoesWhatItDid(t *testing.T) {
	f := hostFile(t, "ext4")
	broken := errors.New("no slot")
	c := &fakeClaim{t: t, f: f, fail: broken}
	if _, err := Set(f, "ext4", "x", []Kind{Swap, Immutable}, c); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	c.was("take", "lifted")
	if i, _, m := inForce(t, f, "ext4"); i || m {
		t.Errorf("left: immutable %v, marked %v", i, m)
	}

	// The claim of a live mapping was lost, and cannot be had again: its other pin stays.
	c.fail = nil
	if _, err := Set(f, "ext4", "x", []Kind{Swap, Immutable}, c); err != nil {
		t.Fatal(err)
	}
	c.was("take", "lifted")
	c.held, c.fail = false, broken
	if _, err := Set(f, "ext4", "x", []Kind{Swap, Immutable}, c); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	c.was("take", "lifted")
	if m, ok, err := ReadMark(f); err != nil || !ok || m.Name != "x" || len(m.Kinds) != 2 {
		t.Errorf("the mark is %+v, %v", m, err)
	}
	if i, _, _ := inForce(t, f, "ext4"); !i {
		t.Error("the immutable flag that was in force is gone")
	}

	// The same for a pin that somebody set by hand: its mark is as it was, too.
	if err := Undo(f, "ext4", c); err != nil {
		t.Fatal(err)
	}
	c.calls = nil
	if _, err := Set(f, "ext4", "", []Kind{Immutable}, c); err != nil {
		t.Fatal(err)
	}
	if _, err := Set(f, "ext4", "x", []Kind{Swap, Immutable}, c); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	c.was("take", "lifted")
	if m, ok, err := ReadMark(f); err != nil || !ok || m.Name != "" || !slices.Equal(m.Kinds, []Kind{Immutable}) {
		t.Errorf("the mark is %+v, %v", m, err)
	}
	if i, _, _ := inForce(t, f, "ext4"); !i {
		t.Error("the immutable flag of `dmloop pin` is gone")
	}

	// What the kernel holds already is looked at, and the flag stays on meanwhile.
	c.held, c.odd = true, broken
	if _, err := Set(f, "ext4", "x", []Kind{Swap, Immutable}, c); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	c.was("verify")
	if i, _, _ := inForce(t, f, "ext4"); !i {
		t.Error("the immutable flag is gone")
	}
}

// The owner of a file can clear xfs's flag, and by that must not get the immutable flag
// lifted, in which moment he could open the file for writing.
func TestSetAgainWithTheImmutableFlagOn(t *testing.T) {
	f := hostFile(t, "xfs")
	wanted := Wanted("xfs", false)
	if _, err := Set(f, "xfs", "x", wanted, noClaim(t)); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "xfs_io", "-r", "-c", "chattr -f", f.Name())
	if _, nodefrag, _ := inForce(t, f, "xfs"); nodefrag {
		t.Fatal("the flag is still there")
	}
	ioctl.Count()
	before := sets()
	if _, err := Set(f, "xfs", "x", wanted, noClaim(t)); err != nil {
		t.Fatal(err)
	}
	if i, nodefrag, m := inForce(t, f, "xfs"); !i || !nodefrag || !m {
		t.Errorf("immutable %v, nodefrag %v, marked %v", i, nodefrag, m)
	}
	if n := sets() - before; n != 0 {
		t.Errorf("the immutable flag was set or lifted %d times", n)
	}
	if err := Undo(f, "xfs", noClaim(t)); err != nil {
		t.Error(err)
	}
}

// sets counts the calls that set the flags among which the immutable one is.
func sets() (calls int) {
	for _, t := range ioctl.Totals() {
		if t.Request == "FS_IOC_SETFLAGS" {
			calls += t.Calls
		}
	}
	return calls
}

// EndClaim takes the claim away and nothing else.
func TestEndClaim(t *testing.T) {
	f := hostFile(t, "ext4")
	c := &fakeClaim{t: t, f: f}
	if _, err := Set(f, "ext4", "x", []Kind{Swap, Immutable}, c); err != nil {
		t.Fatal(err)
	}
	c.was("take", "lifted")
	if err := EndClaim(f, "ext4", "another", c); err != nil || !c.held {
		t.Errorf("for another mapping: %v, held %v", err, c.held)
	}
	if err := EndClaim(f, "ext4", "x", c); err != nil || c.held {
		t.Errorf("%v, held %v", err, c.held)
	}
	c.was("end")
	if m, ok, err := ReadMark(f); err != nil || !ok || !slices.Equal(m.Kinds, []Kind{Immutable}) {
		t.Errorf("the mark is %+v, %v", m, err)
	}
	if i, _, _ := inForce(t, f, "ext4"); !i {
		t.Error("the immutable flag is gone")
	}
	if err := Undo(f, "ext4", c); err != nil {
		t.Fatal(err)
	}
	c.was()
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
		if Undo(f, "ext4", noClaim(t)) == nil || UndoFor(f, "ext4", "x", nil, noClaim(t)) == nil {
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
	claim := &fakeClaim{t: t, f: f}
	if ours, err := Set(f, "ext4", "x", []Kind{Immutable, Swap}, claim); err != nil || len(ours) != 2 {
		t.Errorf("set %v, %v", ours, err)
	}
	claim.was("take", "lifted")
	if err := Undo(f, "ext4", claim); err != nil {
		t.Error(err)
	}
	claim.was("end")
	if _, err := Set(f, "ext4", "x", []Kind{"glue"}, claim); err == nil {
		t.Error("a pin that there is not was set")
	}
	if i, _, m := inForce(t, f, "ext4"); i || m {
		t.Errorf("left: immutable %v, marked %v", i, m)
	}
}
