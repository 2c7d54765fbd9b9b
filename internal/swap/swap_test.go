package swap

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestErrorContract(t *testing.T) {
	e := &Error{Op: "swapon", Path: "/srv/img", Kind: ErrNoSlot, Errno: unix.EPERM, Reason: "swapon: full"}
	if !errors.Is(e, ErrNoSlot) || !errors.Is(e, unix.EPERM) || errors.Is(e, ErrActive) {
		t.Error("errors.Is")
	}
	for _, part := range []string{"swapon", "/srv/img", "no room", "swapon: full", unix.EPERM.Error()} {
		if !strings.Contains(e.Error(), part) {
			t.Errorf("%q lacks %q", e.Error(), part)
		}
	}
	plain := &Error{Op: "swapoff", Path: "/srv/img", Errno: unix.EINTR}
	if !errors.Is(plain, unix.EINTR) || strings.Contains(plain.Error(), "<nil>") {
		t.Errorf("%q", plain.Error())
	}
}

// A file that is no swap file is not active, and the probe changes nothing of it.
func TestActiveOfPlainFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int64{0, 1, 4096, 1 << 30} {
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if active, err := Active(f); err != nil || active {
			t.Errorf("%d bytes: %v, %v", size, active, err)
		}
		if st, err := f.Stat(); err != nil || st.Size() != size {
			t.Errorf("%d bytes: now %v, %v", size, st.Size(), err)
		}
	}
	ro, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if active, err := Active(ro); err != nil || active {
		t.Errorf("open for reading only: %v, %v", active, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if e, found, err := Lookup(f); found || err != nil {
		t.Errorf("found %+v, %v", e, err)
	}
}
