//go:build vmtest

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/ioctl"
	"dmloop/internal/vmtest"
)

// provoked is a way to break a rule: a shell script that makes the file f in the
// host's folder, and what dmloop has to say of it.
type provoked struct {
	name   string
	script string
	rule   extents.Rule
	offset extents.Bytes
	length extents.Bytes // -1: any
	code   int           // of map; 3 unless given
	undo   string        // a script to be run afterwards
}

// shell runs a script in a folder.
func shell(t testing.TB, dir, script string) string {
	t.Helper()
	return vmtest.Must(t, "sh", "-ec", "cd \"$0\"; "+script, dir)
}

const (
	kib64     = "head -c 64K /dev/urandom >f; sync f; "
	whole     = extents.Bytes(0)
	anyLength = extents.Bytes(-1)
)

func provoke(t *testing.T, h *host, cases []provoked) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			shell(t, h.dir, c.script)
			defer func() {
				shell(t, h.dir, c.undo+"\nchattr -i f 2>/dev/null || true; rm -rf f")
			}()
			refused(t, h.path("f"), c)
		})
	}
}

// refused proves that check, table, map --dry-run and map refuse an image by the
// rule, say where, and change nothing.
func refused(t *testing.T, image string, c provoked) {
	t.Helper()
	if c.code == 0 {
		c.code = 3
	}
	before := trace(t, image)
	r := expect(t, 3, "check", "--json", image)
	var answer struct {
		Images []struct {
			Mappable bool
			Problems []problemJSON
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil || len(answer.Images) != 1 || answer.Images[0].Mappable {
		t.Fatalf("%v\n%s", err, r.Stdout)
	}
	problems := answer.Images[0].Problems
	i := slices.IndexFunc(problems, func(p problemJSON) bool { return p.Rule == c.rule })
	if i < 0 {
		t.Fatalf("no problem %s: %+v", c.rule, problems)
	}
	p := problems[i]
	if p.Offset != c.offset || c.length != anyLength && p.Length != c.length {
		t.Errorf("at byte %d, length %d; want %d, %d: %s", p.Offset, p.Length, c.offset, c.length, p.Message)
	}
	if p.Message == "" || p.Hint == "" || strings.Contains(p.Hint, "IMAGE") {
		t.Errorf("message %q, hint %q", p.Message, p.Hint)
	}
	for _, args := range [][]string{{"table"}, {"map", "--dry-run"}, {"map", "--no-guard", "--unsafe"}} {
		r := cli(append(args, image)...)
		if r.Code != c.code || !strings.Contains(r.Stderr, "("+string(c.rule)+")") || r.Stdout != "" {
			t.Errorf("%q: exit code %d, want %d\n%s%s", args, r.Code, c.code, r.Stdout, r.Stderr)
		}
	}
	if after := trace(t, image); after != before {
		t.Errorf("the file was\n%s\nand is\n%s", before, after)
	}
	nothingLeft(t)
}

// trace is all of a file that dmloop must not change: content, size, owner, times of
// content and inode, flags, attributes, extents.
func trace(t testing.TB, path string) string {
	t.Helper()
	script := `stat -c '%n %s %a %u:%g %h %Y %Z' "$0"; lsattr -d "$0" 2>&1; getfattr --absolute-names -d -m - "$0" 2>&1
		if [ -f "$0" ]; then sha256sum <"$0"; filefrag -v -b512 "$0" 2>&1 | grep -v delalloc; fi`
	return vmtest.Run(t, "sh", "-c", script, path).Stdout
}

func TestFullRulesOnExt4(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	provoke(t, h, []provoked{
		{"a FIFO", "mkfifo f", extents.NotRegular, whole, 0, 0, ""},
		{"a device", "ln -s " + h.dev + " f", extents.NotRegular, whole, 0, 0, ""},
		{"empty", ">f", extents.Empty, whole, 0, 0, ""},
		{"513 bytes", "head -c 513 /dev/urandom >f; sync f", extents.SizeUnaligned, 0, 513, 0, ""},
		{"64 KiB and 513 bytes", "head -c 66049 /dev/urandom >f; sync f", extents.SizeUnaligned, 65536, 513, 0, ""},
		{"a hole in the middle", kib64 + "fallocate -p -o 16K -l 8K f; sync f", extents.Hole, 16384, 8192, 0, ""},
		{"a hole at the start", kib64 + "fallocate -p -o 0 -l 4K f; sync f", extents.Hole, 0, 4096, 0, ""},
		{"a hole at the end", kib64 + "truncate -s 1M f; sync f", extents.Hole, 65536, 1<<20 - 65536, 0, ""},
		{"all hole", "truncate -s 1M f", extents.Hole, 0, 1 << 20, 0, ""},
		{"unwritten in the middle", kib64 + "fallocate -z -o 32K -l 4K f; sync f", extents.Unwritten, 32768, 4096, 0, ""},
		{"unwritten at the end", kib64 + "fallocate -l 128K f; sync f", extents.Unwritten, 65536, 65536, 0, ""},
		{"chattr +j", kib64 + "chattr +j f", extents.DataJournal, whole, 0, 0, "chattr -j f"},
		{"chattr -e", "touch f; chattr -e f; head -c 64K /dev/urandom >f; sync f", extents.Indirect, whole, 0, 0, ""},
		{"swap in use", kib64 + "chmod 600 f; mkswap -q f; swapon f", extents.ActiveSwap, whole, 0, 5, "swapoff f"},
	})
	t.Run("a damaged seal", func(t *testing.T) {
		image := h.image(t, "f", "1M")
		defer os.Remove(image)
		fill(t, image, 1<<20, 1)
		expect(t, 0, "seal", image)
		f, err := os.OpenFile(image, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		record := make([]byte, 1024) // dmloop's part of the swap header
		if _, err := f.ReadAt(record, 0); err != nil {
			t.Fatal(err)
		}
		at := bytes.LastIndexFunc(record, func(r rune) bool { return r != 0 })
		if _, err := f.WriteAt([]byte{record[at] ^ 1}, int64(at)); err != nil {
			t.Fatal(err)
		}
		f.Close()
		refused(t, image, provoked{rule: extents.SealCorrupt, length: anyLength})
	})
	t.Run("the host's table about to change", func(t *testing.T) {
		shell(t, h.dir, kib64)
		defer os.Remove(h.path("f"))
		vmtest.RunInput(t, vmtest.Must(t, "dmsetup", "table", "host"), "dmsetup", "load", "host")
		refused(t, h.path("f"), provoked{rule: extents.UnresolvableStack})
		vmtest.Must(t, "dmsetup", "clear", "host")
		expect(t, 0, "check", h.path("f"))
	})
	t.Run("too many extents", func(t *testing.T) {
		image := vmtest.FragmentedFile(t, h.dir, "f", 20, 4096)
		defer shell(t, h.dir, "rm f f.neighbour")
		r := expect(t, 3, "check", "--max-extents", "19", image)
		if !strings.Contains(r.Stdout, "20 pieces, more than the limit of 19") || !strings.Contains(r.Stdout, "(too-many-extents)") {
			t.Errorf("%s", r.Stdout)
		}
		expect(t, 3, "map", "--no-guard", "--max-extents", "19", image)
		expect(t, 0, "check", "--max-extents", "20", image)
	})
}

// Somebody has the image open, in all the ways in which one can.
func TestFullOpenElsewhere(t *testing.T) {
	t.Setenv("DMLOOP_LEASE_PATIENCE", "200ms") // those who have it open stay
	h := newHost(t, xfsHost, "shim")
	image := h.image(t, "image.img", "4M")
	for name, c := range map[string]struct{ start, says, end string }{
		"a reader":      {"sleep 1000 <image.img & echo $! >/run/pid", "sleep", "kill $(cat /run/pid)"},
		"a writer":      {"sleep 1000 9>>image.img & echo $! >/run/pid", "sleep", "kill $(cat /run/pid)"},
		"a loop device": {"losetup -f image.img", "/dev/loop", "losetup -D; while [ -n \"$(losetup -n -j image.img)\" ]; do sleep 0.1; done"},
	} {
		t.Run(name, func(t *testing.T) {
			shell(t, h.dir, "exec >/dev/null 2>&1; "+c.start)
			defer shell(t, h.dir, c.end+"; sleep 0.2")
			before := trace(t, image)
			for _, args := range [][]string{{"map", "--no-guard", "--unsafe"}, {"pin"}, {"seal"}, {"provision"}} {
				r := cli(append(args, image)...)
				if r.Code != 5 || !strings.Contains(r.Stderr, "(open-elsewhere)") || !strings.Contains(r.Stderr, c.says) {
					t.Errorf("%q: exit code %d\n%s", args, r.Code, r.Stderr)
				}
			}
			if r := cli("check", image); r.Code != 3 || !strings.Contains(r.Stdout, c.says) {
				t.Errorf("check: exit code %d\n%s", r.Code, r.Stdout)
			}
			if after := trace(t, image); after != before {
				t.Errorf("the file was\n%s\nand is\n%s", before, after)
			}
		})
	}
	nothingLeft(t, image)
	mappable(t, xfsHost, image)
}

// Pages that somebody keeps changing cannot be dropped.
func TestFullDirtyCache(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	pages, err := unix.Mmap(int(f.Fd()), 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for i := 0; ; i += 4096 {
			select {
			case <-stop:
				return
			default:
				pages[i%len(pages)]++
			}
		}
	}()
	seen := false
	for end := time.Now().Add(20 * time.Second); !seen && time.Now().Before(end); {
		r := expect(t, 3, "check", image)
		if !strings.Contains(r.Stdout, "(open-elsewhere)") {
			t.Errorf("%s", r.Stdout)
		}
		seen = strings.Contains(r.Stdout, "(dirty-cache)")
	}
	if !seen {
		t.Error("dirty pages were never seen")
	}
	if r := cli("map", "--no-guard", image); r.Code != 3 && r.Code != 5 {
		t.Errorf("map: exit code %d\n%s", r.Code, r.Stderr)
	}
	close(stop)
	<-stopped
	if err := unix.Munmap(pages); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, image)
}

func TestFullRulesOnXFS(t *testing.T) {
	h := newHost(t, xfsHost, "shim")
	big := "head -c 1M /dev/urandom >f; sync f; "
	provoke(t, h, []provoked{
		{"a clone of all", big + "cp --reflink=always f g; sync f g", extents.Shared, 0, 1 << 20, 0, "rm g"},
		{"a clone of a part", big + "xfs_io -f -c 'reflink f 64k 0 128k' g >/dev/null; sync f g", extents.Shared, 65536, 131072, 0, "rm g"},
		{"a part cloned within", big + "xfs_io -c 'reflink f 0 256k 64k' f >/dev/null; sync f", extents.Shared, 0, 65536, 0, ""},
		{"a hole", big + "fallocate -p -o 128K -l 64K f; sync f", extents.Hole, 131072, 65536, 0, ""},
		{"unwritten", big + "fallocate -o 1M -l 64K f; sync f", extents.Unwritten, 1 << 20, 65536, 0, ""},
		{"3072 bytes", "head -c 3072 /dev/urandom >f; sync f", extents.SizeUnaligned, 0, 3072, 0, ""},
		{"marked for direct access", big + "xfs_io -c 'chattr +x' f", extents.DAX, whole, 0, 0, ""},
	})
	t.Run("prealloc beyond the end is no problem", func(t *testing.T) {
		shell(t, h.dir, big+"fallocate -n -l 8M f; sync f")
		defer os.Remove(h.path("f"))
		mappable(t, xfsHost, h.path("f"))
	})
	t.Run("grade guarded without a guard", func(t *testing.T) {
		image := h.image(t, "f", "1M")
		defer os.Remove(image)
		before := trace(t, image)
		r := expect(t, 3, "map", "--no-guard", image)
		if !strings.Contains(r.Stderr, "(unpinnable)") {
			t.Errorf("%s", r.Stderr)
		}
		r = expect(t, 3, "map", "--no-guard", "--pin=none", image)
		if !strings.Contains(r.Stderr, "(unpinnable)") {
			t.Errorf("%s", r.Stderr)
		}
		nothingLeft(t, image)
		// Pins were set and cleared, so the time of the inode changed; nothing else did.
		if after := trace(t, image); withoutTimes(after) != withoutTimes(before) {
			t.Errorf("the file was\n%s\nand is\n%s", before, after)
		}
	})
}

// withoutTimes drops the line that stat printed.
func withoutTimes(trace string) string { _, rest, _ := strings.Cut(trace, "\n"); return rest }

func TestFullDataJournal(t *testing.T) {
	t.Run("mount option", func(t *testing.T) {
		h := newHost(t, ext4Host, "shim", "-o", "data=journal")
		provoke(t, h, []provoked{{"data=journal", kib64, extents.DataJournal, whole, 0, 0, ""}})
	})
	t.Run("superblock", func(t *testing.T) {
		h := newHost(t, ext4Host, "shim")
		vmtest.Must(t, "umount", h.dir)
		vmtest.Must(t, "tune2fs", "-o", "journal_data", h.dev)
		vmtest.Must(t, "mount", h.dev, h.dir)
		provoke(t, h, []provoked{{"journal_data", kib64, extents.DataJournal, whole, 0, 0, ""}})
	})
}

func TestFullRulesOnF2FS(t *testing.T) {
	h := newHost(t, f2fsHost, "shim")
	provoke(t, h, []provoked{
		{"a hole", kib64 + "truncate -s 128K f; sync f", extents.Hole, 65536, 65536, 0, ""},
		{"somebody's +i", kib64 + "chattr +i f", extents.Unpinnable, whole, 0, 0, ""},
	})
	shell(t, h.dir, kib64)
	if r := cli("check", h.path("f")); vmtest.Kernel(t) == "6.12" || vmtest.Kernel(t) == "new" {
		if r.Code != 3 || !strings.Contains(r.Stdout, "(unpinnable)") {
			t.Errorf("a file that was not pinned first: exit code %d\n%s", r.Code, r.Stdout)
		}
	} else {
		mappable(t, f2fsHost, h.path("f"))
	}
	// What create made was pinned before it had blocks.
	image := h.image(t, "image.img", "4M")
	mappable(t, f2fsHost, image)
	dev := mapIt(t, image, "image")
	wrote := fill(t, dev, 4<<20, 8)
	expect(t, 0, "unmap", "image")
	if got := vmtest.ChecksumFile(t, image); got != wrote {
		t.Error("the file does not hold what was written")
	}
}

// fs-verity and fscrypt, which User Mode Linux has not.
func TestQemuVerityAndEncryption(t *testing.T) {
	h := newHost(t, hostKind{"", "ext4", []string{"-b", "4096", "-O", "verity,encrypt"}}, "shim")
	shell(t, h.dir, kib64)
	f, err := os.Open(h.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	// struct fsverity_enable_arg: version 1, SHA-256 (1), blocks of 4096 bytes.
	arg := [32]uint32{1, 1, 4096}
	err = ioctl.Pointer(int(f.Fd()), ioctl.Request{Number: unix.FS_IOC_ENABLE_VERITY, Name: "FS_IOC_ENABLE_VERITY"}, &arg)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	refused(t, h.path("f"), provoked{rule: extents.Verity})
	shell(t, h.dir, `rm f; mkdir secret
		id=$(head -c 64 /dev/zero | xfs_io -c add_enckey . | sed 's/.* //')
		xfs_io -c "set_encpolicy -v 2 $id" secret
		head -c 64K /dev/urandom >secret/f; sync secret/f`)
	refused(t, filepath.Join(h.dir, "secret", "f"), provoked{rule: extents.Encrypted})
}
