package record

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"dmloop/guard"

	"golang.org/x/sys/unix"
)

func TestSaveLoadDelete(t *testing.T) {
	s, dir := openStore(t)
	m := sample("image")
	save(t, s, m)
	if got, err := s.Load("image"); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("%+v, %v", got, err)
	}
	m.State, m.Reason = guard.Failed, "other"
	save(t, s, m)
	if got, err := s.Load("image"); err != nil || got.State != guard.Failed {
		t.Errorf("%s, %v", got.State, err)
	}
	info, err := os.Stat(filepath.Join(dir, "image"+suffix))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for range 2 { // a missing one is no error
		if err := s.Delete("image"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Load("image"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after Delete: %v", err)
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestHead(t *testing.T) {
	s, dir := openStore(t)
	m := sample("image")
	save(t, s, m)
	head, err := s.Head("image")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Save(head); err == nil {
		t.Error("a record without its layout was saved")
	}
	if got, err := s.Load("image"); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("after that: %+v, %v", got, err)
	}
	head.headOnly, m.Layout, m.Table = false, head.Layout, head.Table
	if len(head.Layout.Extents)+len(head.Table) > 0 || !reflect.DeepEqual(head, m) {
		t.Errorf("got  %+v\nwant %+v", head, m)
	}
	if _, err := s.Head("other"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	path := filepath.Join(dir, "image"+suffix)
	for _, text := range []string{"", "{", "{}", "{}\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Head("image"); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

func TestNamesWithOddCharacters(t *testing.T) {
	s, _ := openStore(t)
	names := []string{`.hidden`, "a" + suffix, `a.new`, `a\x20b`, `..x`, strings.Repeat("n", 88), "#+-.:=@_"}
	for _, n := range names {
		save(t, s, sample(n))
	}
	got, err := s.Names()
	slices.Sort(names)
	if err != nil || !slices.Equal(got, names) {
		t.Errorf("%q, %v", got, err)
	}
	for _, n := range names {
		if m, err := s.Load(n); err != nil || m.Name != n {
			t.Errorf("%s: %v", n, err)
		}
	}
}

// A command killed while it saved leaves a file that is no record, and that the
// next one does not trip over.
func TestLeftoverOfAKilledSave(t *testing.T) {
	s, dir := openStore(t)
	save(t, s, sample("image"))
	plant(t, os.WriteFile(filepath.Join(dir, ".image.new"), []byte("{half"), 0o600))
	if names, err := s.Names(); err != nil || !slices.Equal(names, []string{"image"}) {
		t.Errorf("%q, %v", names, err)
	}
	m := sample("image")
	m.Reason = "new"
	save(t, s, m)
	if got, err := s.Load("image"); err != nil || got.Reason != "new" {
		t.Errorf("%q, %v", got.Reason, err)
	}
	if left := files(t, dir); !slices.Equal(left, []string{"image" + suffix}) {
		t.Errorf("left: %q", left)
	}
}

func plant(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is planted under a record's name is refused, and not followed.
func TestPlantedRecords(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	plant(t, os.WriteFile(outside, encode(t, sample("image")), 0o600))
	for name, put := range map[string]func(path string) error{
		"a symlink outside": func(p string) error { return os.Symlink(outside, p) },
		"a symlink inside": func(p string) error {
			return errors.Join(os.WriteFile(p+".to", encode(t, sample("image")), 0o600), os.Symlink(filepath.Base(p)+".to", p))
		},
		"a FIFO":   func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a folder": func(p string) error { return os.Mkdir(p, 0o700) },
		"too large": func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, sizeCap+1))
		},
		"an empty file":    func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"another's record": func(p string) error { return os.WriteFile(p, encode(t, sample("other")), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := openStore(t)
			save(t, s, sample("other"))
			path := filepath.Join(dir, "image"+suffix)
			plant(t, put(path))
			done := make(chan error, 1)
			go func() { _, err := s.Load("image"); done <- err }()
			select {
			case err := <-done:
				if err == nil || errors.Is(err, ErrNotFound) {
					t.Errorf("Load: %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("Load hangs")
			}
			if name == "a folder" {
				return // rename does not replace it, and says so
			}
			save(t, s, sample("image"))
			if m, err := s.Load("image"); err != nil || m.Name != "image" {
				t.Errorf("after Save: %v", err)
			}
			if b, err := os.ReadFile(outside); err != nil || string(b) != string(encode(t, sample("image"))) {
				t.Errorf("the file outside was written to: %v", err)
			}
		})
	}
}

// A temporary file that is a symlink must not be written through.
func TestPlantedTemporaryFile(t *testing.T) {
	s, dir := openStore(t)
	victim := filepath.Join(t.TempDir(), "victim")
	plant(t, os.WriteFile(victim, []byte("precious"), 0o600))
	plant(t, os.Symlink(victim, filepath.Join(dir, ".image.new")))
	save(t, s, sample("image"))
	if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestFolderMustBeOurs(t *testing.T) {
	base := t.TempDir()
	for name, put := range map[string]func(path string) error{
		"open to the group": func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o750)) },
		"open to all":       func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o777)) },
		"a file":            func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"a symlink":         func(p string) error { return errors.Join(os.Mkdir(p+".to", 0o700), os.Symlink(p+".to", p)) },
		"a loop":            func(p string) error { return os.Symlink(p, p) },
	} {
		path := filepath.Join(base, strings.ReplaceAll(name, " ", "-"))
		plant(t, put(path))
		for _, create := range []bool{true, false} {
			if s, err := Open(path, create); err == nil {
				s.Close()
				t.Errorf("%s was opened (create %v)", name, create)
			}
		}
	}
	if os.Geteuid() == 0 {
		path := filepath.Join(base, "another-owner")
		plant(t, errors.Join(os.Mkdir(path, 0o700), os.Chown(path, 65534, 65534)))
		if s, err := Open(path, true); err == nil {
			s.Close()
			t.Error("a folder of another user was opened")
		}
	}
	if _, err := Open(filepath.Join(base, "none"), false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing folder: %v", err)
	}
	if _, err := Open(filepath.Join(base, "none", "deeper"), true); err == nil {
		t.Error("a folder was made in a missing one")
	}
}

func TestLock(t *testing.T) {
	s, dir := openStore(t)
	unlock, err := s.Lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := other.Lock(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second lock: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		again, err := other.Lock(context.Background())
		if err == nil {
			again()
		}
		got <- err
	}()
	unlock()
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the lock was not passed on")
	}
	if names, err := s.Names(); err != nil || len(names) != 0 {
		t.Errorf("the lock is no record: %q, %v", names, err)
	}
}

// Readers that do not lock see the old record or the new one, never a part of one.
func TestReadersSeeWholeRecords(t *testing.T) {
	s, _ := openStore(t)
	m := sample("image")
	save(t, s, m)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 300 {
			m.Reason = strings.Repeat("x", i*50)
			if err := s.Save(m); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for {
		select {
		case <-done:
			return
		default:
		}
		if _, err := s.Load("image"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSaveHead(t *testing.T) {
	s, dir := openStore(t)
	m := sample("image")
	if err := s.SaveHead(m); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a record: %v", err)
	}
	save(t, s, m)
	m.State, m.Reason = guard.Failed, "a longer reason than there was before"
	if err := s.SaveHead(m); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load("image"); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("whole: %+v, %v", got, err)
	}
	head, err := s.Head("image")
	if err != nil {
		t.Fatal(err)
	}
	head.State, head.Reason = guard.Healthy, ""
	if err := s.SaveHead(head); err != nil {
		t.Fatal(err)
	}
	m.State, m.Reason = guard.Healthy, ""
	if got, err := s.Load("image"); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("head: %+v, %v", got, err)
	}
	other := m
	other.Table = other.Table[:len(other.Table)-1]
	if err := s.SaveHead(other); err == nil {
		t.Error("a record with fewer rows than are stored was saved")
	}
	if got, err := s.Load("image"); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("after that: %+v, %v", got, err)
	}
	if left := files(t, dir); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}

func TestStage(t *testing.T) {
	s, dir := openStore(t)
	m := sample("image")
	for _, commit := range []bool{false, true} {
		staged, err := s.Stage(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load("image"); !errors.Is(err, ErrNotFound) {
			t.Errorf("seen before it was committed: %v", err)
		}
		if !commit {
			if err := staged.Discard(); err != nil || len(files(t, dir)) != 0 {
				t.Errorf("discarded: %v, %q", err, files(t, dir))
			}
			continue
		}
		if err := staged.Commit(); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Load("image"); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v, %v", got, err)
		}
	}
}
