//go:build vmtest

package seal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/swap"
	"dmloop/internal/vmtest"
)

// The kernel takes so many swap files and no more; which error that is, and that
// the image it had no room for is untouched.
func TestSlotsRunOut(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	h := host{t, "ext4", disk, vmtest.Mount(t, disk), 4096}
	claimed := 0
	for ; claimed < 40; claimed++ {
		path := h.create(fmt.Sprintf("image%d", claimed), 1<<20, uint64(claimed))
		f := h.open(path)
		r := h.seal(f)
		room, err := swap.Room()
		if err != nil {
			t.Fatal(err)
		}
		if !room {
			err := swap.Claim(f)
			if !errors.Is(err, swap.ErrNoSlot) || !errors.Is(err, unix.EPERM) {
				t.Errorf("claim without room: %v", err)
			}
			if st, err := Inspect(f, h.bare()); err != nil || st.Kind != Sealed || st.Record != r {
				t.Errorf("%+v, %v", st, err)
			}
			if err := Unseal(f, h.bare()); err != nil {
				t.Error(err)
			}
			sameFile(t, path, image(1<<20, uint64(claimed)))
			break
		}
		h.claim(f)
	}
	t.Logf("%d swap files at once", claimed)
	if claimed < 20 || claimed == 40 {
		t.Errorf("%d swap files at once", claimed)
	}
}

func TestClaimErrors(t *testing.T) {
	eachHost(t, func(t *testing.T, h host) {
		path := h.create("image", 1<<20, 1)
		f := h.open(path)
		h.seal(f)
		if err := swap.Release(f); !errors.Is(err, swap.ErrNotActive) {
			t.Errorf("release of what is not active: %v", err)
		}
		if !h.bare() {
			vmtest.Must(t, "chattr", "+i", path)
			if err := swap.Claim(f); !errors.Is(err, swap.ErrImmutable) {
				t.Errorf("claim of an immutable file: %v", err)
			}
			vmtest.Must(t, "chattr", "-i", path)
		}
		h.claim(f)
		if err := swap.Claim(f); !errors.Is(err, swap.ErrActive) {
			t.Errorf("second claim: %v", err)
		}
		if !h.bare() {
			vmtest.Must(t, "chattr", "+i", path)
			if err := swap.Release(f); !errors.Is(err, swap.ErrImmutable) {
				t.Errorf("release of an immutable file: %v", err)
			}
		}
		if active, err := swap.Active(f); err != nil || !active {
			t.Errorf("then active: %v, %v", active, err)
		}
		// Whoever comes later can open it for reading only.
		late, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer late.Close()
		if active, err := swap.Active(late); err != nil || !active {
			t.Errorf("open for reading, active: %v, %v", active, err)
		}
		if !h.bare() {
			vmtest.Must(t, "chattr", "-i", path)
		}
		if err := swap.Release(f); err != nil {
			t.Fatal(err)
		}
		for _, f := range []*os.File{f, late} {
			if active, err := swap.Active(f); err != nil || active {
				t.Errorf("released and active: %v, %v", active, err)
			}
		}
		plain := h.open(h.create("plain", 1<<20, 2))
		if err := swap.Claim(plain); !errors.Is(err, swap.ErrRefused) || !errors.Is(err, unix.EINVAL) {
			t.Errorf("claim of a plain image: %v", err)
		} else if !strings.Contains(err.Error(), "kernel:") {
			t.Errorf("no reason from the kernel's log: %v", err)
		}
		lost := h.open(h.create("lost", 1<<20, 3))
		h.seal(lost)
		if err := os.Remove(filepath.Join(h.dir, "lost")); err != nil {
			t.Fatal(err)
		}
		if err := swap.Claim(lost); !errors.Is(err, swap.ErrUnlinked) {
			t.Errorf("claim of a file without a name: %v", err)
		}
	})
}

// The proof by a descriptor for reading needs a file beside the image. On a file
// system that is full or read-only, and keeps that from being made, the kernel's list
// and the image's being open for writing have to do, together.
func TestProbe(t *testing.T) {
	eachHost(t, func(t *testing.T, h host) {
		path := h.create("image", 1<<20, 1)
		f := h.open(path)
		h.seal(f)
		ro, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer ro.Close()
		kept := swap.NewProbe(ro)
		defer kept.Close()
		is := func(when string, want bool) {
			t.Helper()
			for name, p := range map[string]*swap.Probe{"kept": kept, "new": swap.NewProbe(ro), "writable": swap.NewProbe(f)} {
				if active, err := p.Active(); err != nil || active != want {
					t.Errorf("%s, %s probe: %v, %v", when, name, active, err)
				}
				if p != kept {
					p.Close()
				}
			}
		}
		is("before the claim", false)
		h.claim(f)
		if h.bare() { // no file without a name, and no flag: it is opened for writing
			is("claimed", true)
			if err := swap.Release(f); err != nil {
				t.Fatal(err)
			}
			is("released", false)
			return
		}
		vmtest.Must(t, "chattr", "+i", path)
		is("claimed", true)
		// A directory in which nothing can be made.
		vmtest.Must(t, "chattr", "+i", h.dir)
		is("claimed, in an immutable directory", true)
		vmtest.Must(t, "chattr", "-i", h.dir, path)
		if err := swap.Release(f); err != nil {
			t.Fatal(err)
		}
		vmtest.Must(t, "chattr", "+i", h.dir)
		if active, err := kept.Active(); err != nil || active { // it has a file from before
			t.Errorf("released: %v, %v", active, err)
		}
		// Open for writing by f, but no swap: without a file to copy to nobody knows.
		if active, err := swap.Active(ro); err == nil || active {
			t.Errorf("released, in an immutable directory: %v, %v", active, err)
		}
		vmtest.Must(t, "chattr", "-i", h.dir)
		is("released", false)
	})
}

// Somebody activates a sealed image by hand, as the swap file that it says it is,
// and the kernel really pages to it: the content is not touched.
func TestPagedTo(t *testing.T) {
	eachHost(t, func(t *testing.T, h host) {
		path := h.create("image", 4<<20+h.block, 1)
		f := h.open(path)
		r := h.seal(f)
		// On a disk that does not rotate, kernels before 6.12 look for room by clusters,
		// which a single page is none of, and rarely find it.
		rotational := "/sys/block/" + filepath.Base(h.dev) + "/queue/rotational"
		if err := os.WriteFile(rotational, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		defer os.WriteFile(rotational, []byte("0"), 0)
		vmtest.Must(t, "swapon", path)
		used := int64(0)
		for range 20 {
			if used = pageOut(t); used > 0 {
				break
			}
		}
		t.Logf("%d bytes of swap used", used)
		if used == 0 {
			t.Error("the kernel did not page out: nothing is shown")
		}
		if !bytes.Equal(h.raw(h.shown(f, r)), image(4<<20+int(h.block), 1)) {
			t.Error("the content has changed")
		}
		vmtest.Must(t, "swapoff", path)
		if err := Unseal(f, h.bare()); err != nil {
			t.Fatal(err)
		}
		sameFile(t, path, image(4<<20+int(h.block), 1))
	})
}

// kept is memory that stays paged out while a test looks at the disk.
var kept [][]byte

// pageOut asks the kernel to page some memory of this process out, and returns
// how much of all swap is in use then.
func pageOut(t *testing.T) int64 {
	t.Helper()
	for _, m := range kept {
		_ = unix.Munmap(m)
	}
	m, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	kept = [][]byte{m}
	for i := range m {
		m[i] = 0xa5
	}
	if err := unix.Madvise(m, unix.MADV_PAGEOUT); err != nil {
		t.Logf("madvise: %v", err)
	}
	all, err := swap.Table()
	if err != nil {
		t.Fatal(err)
	}
	used := int64(0)
	for _, e := range all {
		used += e.Used
	}
	return used
}

// A sealed image is copied to a file system with smaller blocks, where the kernel
// would page into the content. This is found out, and sealing anew helps.
func TestCopiedElsewhere(t *testing.T) {
	var on [2]host
	for i, block := range []int64{4096, 1024} {
		disk := vmtest.Disk(t, i)
		vmtest.Mkfs(t, "ext4", disk, "-b", fmt.Sprint(block))
		on[i] = host{t, "ext4", disk, vmtest.Mount(t, disk), block}
	}
	path := on[0].create("image", 1<<20, 1)
	on[0].seal(on[0].open(path))
	refused := 0
	for i := range 8 {
		h := on[1]
		copied := filepath.Join(h.dir, fmt.Sprintf("copy%d", i))
		vmtest.Must(t, "dd", "if=/dev/zero", "of="+copied+".between", "bs=1024", fmt.Sprintf("count=%d", i%4+1), "conv=fsync", "status=none")
		vmtest.Must(t, "cp", "--sparse=never", path, copied)
		vmtest.Must(t, "sync", copied)
		c := h.open(copied)
		if st, err := Inspect(c, h.bare()); err != nil || st.Kind != Plain || st.Looks == "" {
			t.Fatalf("a copy without the attribute: %+v, %v", st, err)
		}
		if err := Adopt(c); err != nil {
			t.Fatal(err)
		}
		st, err := Inspect(c, h.bare())
		if err != nil || st.Kind != Sealed {
			t.Fatalf("%+v, %v", st, err)
		}
		l, err := h.layout(c)()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := SwapPhysical(l, st.Record); err == nil {
			continue
		}
		refused++
		if err := Unseal(c, h.bare()); err != nil {
			t.Fatal(err)
		}
		h.shown(c, h.seal(c))
		if err := Unseal(c, h.bare()); err != nil {
			t.Fatal(err)
		}
		sameFile(t, copied, image(1<<20, 1))
	}
	t.Logf("%d of 8 copies had to be sealed anew", refused)
	if refused == 0 {
		t.Error("no copy lay on blocks off the page: the test tries nothing")
	}
}
