package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// tree makes folders, files and links in a new folder, and goes there.
func tree(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	for _, d := range []string{"a/b", "c"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"x", "a/x", "a/b/x", "c/x", "a/b/\xff \n"} {
		if err := os.WriteFile(f, []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	links := map[string]string{
		"link": "x", "up": "a/b/../x", "dir": "a/b", "slash": "x/", "absolute": here + "/c/x", "absdir": here + "/a",
		"chain": "chain1", "chain1": "./chain2", "chain2": "dir/x", "dangling": "nowhere", "loop": "loop",
		"a/back": "../c/x", "a/b/top": "../../dir/../x", "many": strings.Repeat("dir/../../", 30) + "x", "most": strings.Repeat("dir/../../", 45) + "x",
		"root": "/", "proc": "/proc/self/cwd/x",
	}
	for name, to := range links {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
}

// Paths lead where the kernel says.
func TestResolveAsTheKernelDoes(t *testing.T) {
	tree(t)
	f, err := os.Open("a/x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{
		"", ".", "..", "/", "//", "x", "./x", "x/", "x/.", "a//b///x", "a/b/../x", "a/../a/b/../../x", "link", "link/", "up", "slash", "dir", "dir/", "dir/x", "dir/../x",
		"absolute", "absdir/x", "absdir/back", "absdir//b/top", "chain", "dangling", "dangling/x", "loop", "loop/x", "many", "most",
		"nowhere", "nowhere/x", "x/y", "root" + here + "/x", "root/..//" + here + "/a/b/x", here + "/x", "/.." + here + "/link", "proc",
		fmt.Sprintf("/proc/self/fd/%d", f.Fd()), fmt.Sprintf("/dev/fd/%d", f.Fd()), "/proc/self/cwd/a/x", "/proc/self/cwd/dir/", "/proc/self/root" + here + "/x",
		"a/b/\xff \n", strings.Repeat("n", 256), strings.Repeat("a/../", 900) + "x",
	}
	for _, path := range paths {
		want, wantErr := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		got, err := resolve(path)
		switch {
		case wantErr != nil:
			if !errors.Is(err, wantErr) {
				t.Errorf("%.80q: %v, the kernel says %v", path, err, wantErr)
			}
		case err != nil:
			t.Errorf("%.80q: %v", path, err)
		default:
			if a, b := inodeOf(t, got), inodeOf(t, want); a != b {
				t.Errorf("%.80q: inode %v, the kernel opens %v", path, a, b)
			}
		}
		if err == nil {
			unix.Close(got)
		}
		if wantErr == nil {
			unix.Close(want)
		}
	}
}

func inodeOf(t *testing.T, fd int) [2]uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return [2]uint64{st.Dev, st.Ino}
}

// A link that a stranger may have put there is not followed.
func TestTrustedLinks(t *testing.T) {
	const root, alice, bob = 0, 1000, 1001
	for _, tt := range []struct {
		mode              uint32
		dir, link, caller uint32
		want              bool
	}{
		{0o755, root, root, root, true},
		{0o700, alice, alice, root, true},
		{0o700, alice, bob, root, true}, // nobody but alice can have put it there
		{0o1777, root, root, root, true},
		{0o1777, root, alice, root, false},
		{0o777, root, alice, root, false}, // also where the kernel does not look
		{0o775, root, alice, root, false},
		{0o757, root, alice, root, false},
		{0o1777, root, alice, alice, true},
		{0o1777, root, alice, bob, false},
		{0o1777, alice, alice, root, true},
		{0o1777, alice, root, bob, true},
		{0o1777, alice, bob, root, false},
	} {
		dir, link := unix.Stat_t{Mode: unix.S_IFDIR | tt.mode, Uid: tt.dir}, unix.Stat_t{Mode: unix.S_IFLNK | 0o777, Uid: tt.link}
		if got := trusted(dir, link, tt.caller); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// What was found stays what was found, whatever happens to the path.
func TestFoundStays(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"image", "other"} {
		if err := os.WriteFile(name, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found, err := Find("image")
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if err := unix.Renameat2(unix.AT_FDCWD, "image", unix.AT_FDCWD, "other", unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	img, err := found.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	id, err := img.Identity()
	if err != nil {
		t.Fatal(err)
	}
	was := found.Identity()
	if was.Generation = id.Generation; was != id {
		t.Errorf("found %+v, opened %+v", was, id)
	}
	if text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", img.File().Fd())); err != nil || string(text) != "image" {
		t.Errorf("%q, %v", text, err)
	}
	if base := filepath.Base(found.Path()); base != "image" || found.Given() != "image" {
		t.Errorf("%s, %s", found.Path(), found.Given())
	}
}

// No open waits for a lease: its holder is named.
func TestOpenDoesNotWaitForALease(t *testing.T) {
	path := newFile(t, 4096)
	holder, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	if err := inode.SetLease(holder, unix.F_RDLCK); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return // no leases on the file system that the tests run on
		}
		t.Fatal(err)
	}
	img := openImage(t, path)
	_, err = img.OpenForWriting()
	var p *extents.Refusal
	if !errors.As(err, &p) || p.Problems[0].Rule != extents.OpenElsewhere || !strings.Contains(p.Problems[0].Message, fmt.Sprintf("(pid %d, lease)", os.Getpid())) {
		t.Errorf("%v", err)
	}
	if err := inode.SetLease(holder, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	rw, err := img.OpenForWriting()
	if err != nil {
		t.Fatal(err)
	}
	rw.Close()
}

func TestLockHolders(t *testing.T) {
	const text = `1: POSIX  ADVISORY  WRITE 11 fe:00:131 0 EOF
2: LEASE  ACTIVE    READ  12 fe:00:131 0 EOF
2: -> LEASE  ACTIVE    READ  13 fe:00:131 0 EOF
3: LEASE  BREAKING  WRITE 14 fe:10:131 0 EOF
4: LEASE  BREAKING  READ  15 00:2a:131 0 EOF
5: LEASE  BREAKING  READ  0 fe:00:131 0 EOF
6: LEASE  BREAKING  READ  16 fe:00:132 0 EOF
7: DELEG  ACTIVE    READ  17 fe:00:131 0 EOF
8: FLOCK  ADVISORY  WRITE 18 fe:00:131 0 EOF
`
	for _, tt := range []struct {
		major, minor uint32
		want         string
	}{{0xfe, 0, "[12]"}, {0xfe, 0x10, "[14]"}, {0, 0x33, "[15]"}} {
		got := holders(strings.NewReader(text), "LEASE", unix.Statx_t{Dev_major: tt.major, Dev_minor: tt.minor, Ino: 131})
		if fmt.Sprint(got) != tt.want {
			t.Errorf("%d:%d: %v, want %s", tt.major, tt.minor, got, tt.want)
		}
	}
}
