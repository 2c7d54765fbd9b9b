//go:build vmtest

package seal

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/swap"
	"dmloop/internal/vmtest"
)

// Images of many sizes are sealed, held, changed behind the file system's back,
// and made plain again; blkid, getfattr and the file itself say whether it holds.
func TestSealHoldUnseal(t *testing.T) {
	eachHost(t, func(t *testing.T, h host) {
		neighbour := h.create("neighbour", 3<<20, 99)
		page := int64(os.Getpagesize())
		for i, size := range []int64{2*page + h.block, h.block, page, 4 << 20, 4<<20 + h.block, 1<<20 + 3*h.block} {
			path := h.create(fmt.Sprintf("image%d", i), size, uint64(i))
			was := image(int(size), uint64(i))
			f := h.open(path)
			r := h.seal(f)
			if out := vmtest.Must(t, "blkid", "-p", path); !strings.Contains(out, `TYPE="swap"`) || !strings.Contains(out, `LABEL="dmloop"`) {
				t.Errorf("blkid: %s", out)
			}
			if h.bare() {
				noAttribute(t, path)
			} else if mark := vmtest.Must(t, "getfattr", "--absolute-names", "--only-values", "-n", Attribute, path); mark != string(r.Encode()) {
				t.Errorf("the mark is %q", mark)
			}
			if st, err := os.Stat(path); err != nil || st.Size() != int64(r.Size()) || st.Size()%page != 0 {
				t.Errorf("size %d, %v, want %d", st.Size(), err, r.Size())
			}
			h.claim(f)
			if e, found, err := swap.Lookup(f); err != nil || !found || e.Path != path || e.Size != page {
				t.Errorf("/proc/swaps: %+v, %v, %v", e, found, err)
			}
			// f2fs may have moved blocks: the layout of now.
			content := h.shown(f, r)
			if !bytes.Equal(h.raw(content), was) {
				t.Fatalf("%d bytes: the device shows something else", size)
			}
			if err := Unseal(f, h.bare()); err == nil || !strings.Contains(err.Error(), "active") {
				t.Errorf("unseal while held: %v", err)
			}
			now := image(int(size), uint64(i)+50)
			h.writeRaw(content, now)
			if err := swap.Release(f); err != nil {
				t.Fatal(err)
			}
			if err := Scrub(f, r); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(h.raw(h.shown(f, r)), now) {
				t.Fatalf("%d bytes: scrubbing changed the content", size)
			}
			if err := Unseal(f, h.bare()); err != nil {
				t.Fatal(err)
			}
			sameFile(t, path, now)
			noAttribute(t, path)
			if l, err := h.layout(f)(); err != nil || len(l.Problems(512, 0)) > 0 {
				t.Errorf("unsealed: %v, %v", err, l.Problems(512, 0))
			}
		}
		sameFile(t, neighbour, image(3<<20, 99))
	})
}

// movers are what would move or share the blocks of a file that is not held. Some
// succeed and leave a held one out.
var movers = map[string][]string{
	"ext4": {"e4defrag IMAGE"},
	"xfs":  {"xfs_fsr IMAGE"},
	"btrfs": {
		"btrfs filesystem defragment -f IMAGE", "btrfs balance start --full-balance DIR",
		"btrfs subvolume snapshot DIR DIR/snapshot", "btrfs filesystem resize 1800M DIR",
	},
}

// stores tries a store to memory and reports whether it worked: SIGBUS is no.
func stores(m []byte) (ok bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	m[0]++
	return true
}

// The kernel refuses to change a held image, older descriptors and mappings too.
func TestHeldIsHeld(t *testing.T) {
	eachHost(t, func(t *testing.T, h host) {
		path := h.create("image", 1<<20, 1)
		f, old := h.open(path), h.open(path)
		memory, err := unix.Mmap(int(old.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(memory)
		memory[70000]++ // a page that is dirty already, and as it was
		memory[70000]--
		r := h.seal(f)
		h.claim(f)
		for _, at := range []int{70000, 300000} {
			if stores(memory[at : at+1]) {
				t.Errorf("an older mapping of memory writes at %d", at)
			}
		}
		before := h.shown(f, r)
		if _, err := old.WriteAt([]byte("x"), 70000); err == nil {
			t.Error("an older descriptor writes")
		}
		if err := old.Truncate(8192); err == nil {
			t.Error("an older descriptor cuts")
		}
		for mode := range uint32(7) {
			if err := unix.Fallocate(int(old.Fd()), mode, 65536, 65536); err == nil {
				t.Errorf("fallocate mode %d works", mode)
			}
		}
		if err := os.Remove(path); err == nil {
			t.Error("it can be removed")
		}
		if err := os.Rename(path, path+"2"); err == nil {
			t.Error("it can be renamed")
		}
		if h.fstype == "xfs" || h.fstype == "btrfs" {
			if r := vmtest.Run(t, "cp", "--reflink=always", path, path+".clone"); r.Code == 0 {
				t.Error("it can be cloned")
			}
			os.Remove(path + ".clone")
		}
		for _, mover := range movers[h.fstype] {
			cmd := strings.Fields(strings.NewReplacer("IMAGE", path, "DIR", h.dir).Replace(mover))
			t.Logf("%s: exit code %d", mover, vmtest.Run(t, cmd...).Code)
		}
		// A held file can be made longer, and that does no harm.
		if err := old.Truncate(int64(r.Size()) + 1<<20); err == nil {
			if err := swap.Release(f); err != nil {
				t.Fatal(err)
			}
			if again := h.seal(f); again != r {
				t.Errorf("record %+v, was %+v", again, r)
			}
		}
		if after := h.shown(f, r); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("moved: %v, was %v", after, before)
		}
		if !bytes.Equal(h.raw(before), image(1<<20, 1)) {
			t.Error("the content has changed")
		}
	})
}

// An image in thousands of pieces of a block each costs no more than another.
func TestManyExtents(t *testing.T) {
	eachHost(t, func(t *testing.T, h host) {
		if h.fstype == "f2fs" || h.fstype == "exfat" || h.block == 2048 {
			return // f2fs sorts blocks as it writes them, exFAT has no fallocate
		}
		const n = 5000
		if h.fstype == "vfat" {
			h.block = 2048 // a cluster
		}
		if h.fstype == "btrfs" {
			vmtest.Must(t, "chattr", "+C", h.dir) // for the files that are made there
		}
		path := vmtest.FragmentedFile(t, h.dir, "image", n, h.block)
		was := fileContent(t, path)
		f := h.open(path)
		r, err := Seal(f, h.options(f))
		if h.block < int64(os.Getpagesize()) {
			// No page of it is whole on the disk: there is no slot for the kernel.
			var refused *extents.Refusal
			if err == nil || !strings.Contains(err.Error(), "unpinnable") {
				t.Fatalf("sealed: %+v, %v, %v", r, err, refused)
			}
			sameFile(t, path, was)
			noAttribute(t, path)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		h.claim(f)
		if !bytes.Equal(h.raw(h.shown(f, r)), was) {
			t.Fatal("the device shows something else")
		}
		if err := swap.Release(f); err != nil {
			t.Fatal(err)
		}
		if err := Unseal(f, h.bare()); err != nil {
			t.Fatal(err)
		}
		sameFile(t, path, was)
	})
}

// What cannot be sealed is refused, and is then what it was.
func TestNoSpace(t *testing.T) {
	eachHost(t, func(t *testing.T, h host) {
		path := h.create("image", 1<<20, 1)
		f := h.open(path)
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		fill := h.open(h.create("fill", 4096, 2))
		taken := int64(4096)
		for step := int64(st.Bfree) * st.Bsize; step >= 1024; step /= 2 {
			for {
				end, err := fill.Seek(0, io.SeekEnd)
				if err != nil {
					t.Fatal(err)
				}
				mode := uint32(0)
				if h.fstype == "vfat" { // else it writes zeros
					mode, end = unix.FALLOC_FL_KEEP_SIZE, taken
				}
				if unix.Fallocate(int(fill.Fd()), mode, end, step) != nil {
					break
				}
				taken = end + step
			}
		}
		r, err := Seal(f, h.options(f))
		if err == nil { // kept in reserve for root, or in a hole of our own
			t.Logf("there was still room: %+v", r)
			err = Unseal(f, h.bare())
			if err != nil {
				t.Fatal(err)
			}
		} else if !strings.Contains(err.Error(), "no space") {
			t.Errorf("%v", err)
		}
		sameFile(t, path, image(1<<20, 1))
		noAttribute(t, path)
	})
}
