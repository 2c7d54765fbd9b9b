//go:build vmtest

package seal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

// The writes that sealing and unsealing cause below a real file system are
// recorded, and the power is cut after each of them, and in the middle: of the
// writes since the last flush some arrive, of those to the image some sectors.
// After each cut the file system is mounted and the image finished.
func TestLongPowerCutBelowFileSystem(t *testing.T) {
	for _, k := range hosts {
		if k.name == "ext4-2k" || k.name == "xfs-1k" {
			continue // nothing that ext4-1k and xfs do not show
		}
		if !vmtest.HasFilesystem(t, k.fstype) {
			continue
		}
		cutBelow(t, k)
	}
}

// The same on what User Mode Linux does not have. NTFS has a journal, which its checker for
// Linux does not read back: ntfs3 does, and what it finds is its own affair.
func TestQemuPowerCutExFAT(t *testing.T) {
	for _, k := range hosts {
		if k.fstype == "exfat" {
			cutBelow(t, k)
		}
	}
}

func cutBelow(t *testing.T, k hostKind) {
	for _, step := range []string{"seal", "unseal"} {
		t.Run(k.name+"/"+step, func(t *testing.T) {
			c := recordChange(t, k, step)
			c.replay(t)
		})
	}
}

// cutPlan is a recorded change and what is needed to replay it.
type cutPlan struct {
	host
	neighbours int    // files beside the image, which have to stay what they are
	pristine   string // the device as it was before the change, never written to
	want       []byte
	log        []logEntry
	place      extents.Layout // where the image lies
}

const recorded = "recorded" // name of the device that records

// recordChange makes a file system with an image on the first disk, and does one
// step on a snapshot of it, of which the writes are recorded on the second.
func recordChange(t *testing.T, k hostKind, step string) cutPlan {
	t.Helper()
	h := host{t: t, fstype: k.fstype}
	disk, logDev := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
	vmtest.Mkfs(t, h.fstype, disk, k.mkfs...)
	if h.bare() { // a small one, whose tables of blocks are checked quickly
		disk = vmtest.DmsetupCreate(t, "small", fmt.Sprintf("0 %d linear %s 0\n", bareSectors, disk))
		vmtest.Mkfs(t, h.fstype, disk, k.mkfs...)
	}
	h.dev, h.dir = disk, vmtest.Mount(t, disk, vmtest.MountOptions(h.fstype)...)
	size := int(9*4096 + h.block)
	c := cutPlan{pristine: disk, want: image(size, 1), neighbours: 2}
	for i := range c.neighbours { // the image lies between them
		h.create(fmt.Sprintf("neighbour%d", i), 3*4096+512, uint64(70+i))
		if i == 0 {
			h.create("image", int64(size), 1)
		}
	}
	f, err := os.OpenFile(filepath.Join(h.dir, "image"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if step == "unseal" {
		r := h.seal(f)
		c.want = image(size, 2)
		h.writeRaw(h.shown(f, r), c.want)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	vmtest.Umount(t, h.dir)

	sectors := vmtest.Sectors(t, disk)
	snap := vmtest.DmsetupCreate(t, "scratch", fmt.Sprintf("0 %d snapshot %s %s N 8\n", sectors, disk, cowStore(t, "scratch")))
	h.dev = vmtest.DmsetupCreate(t, recorded, fmt.Sprintf("0 %d log-writes %s %s\n", sectors, snap, logDev))
	h.forget()
	h.mount()
	if f, err = os.OpenFile(filepath.Join(h.dir, "image"), os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "dmsetup", "message", recorded, "0", "mark", "begin")
	if step == "seal" {
		_, err = Seal(f, h.options(f))
	} else {
		err = Unseal(f, h.bare())
	}
	if err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "dmsetup", "message", recorded, "0", "mark", "end")
	if c.place, err = h.layout(f)(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	vmtest.Umount(t, h.dir)
	vmtest.DmsetupRemove(t, recorded)
	vmtest.DmsetupRemove(t, "scratch")
	c.host, c.log = h, readLog(t, logDev, "end")
	return c
}

// mountOptions keep file systems from discarding what a snapshot cannot.
var mountOptions = map[string]string{"ext4": "nodiscard", "xfs": "nodiscard", "f2fs": "nodiscard", "btrfs": "nodiscard"}

// bareSectors is the size of a file system that has to be checked after every cut.
const bareSectors = 80 << 20 / 512

// mount mounts a file system as a power cut may have left it. Where there is no journal its
// own program puts it in order first, which has to be possible without a question.
func (h host) mount() {
	h.t.Helper()
	switch h.fstype {
	case "vfat":
		if r := vmtest.Run(h.t, "fsck.vfat", "-a", h.dev); r.Code > 1 {
			h.t.Fatalf("fsck.vfat: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
	case "exfat":
		if r := vmtest.Run(h.t, "fsck.exfat", "-y", h.dev); r.Code > 1 {
			h.t.Fatalf("fsck.exfat: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
	}
	options := vmtest.MountOptions(h.fstype)
	if options == nil {
		options = []string{"-o", mountOptions[h.fstype]}
	}
	vmtest.Must(h.t, slices.Concat([]string{"mount"}, options, []string{h.dev, h.dir})...)
}

// forget makes btrfs forget devices of the same file system that it has seen.
func (h host) forget() {
	if h.fstype == "btrfs" {
		vmtest.Must(h.t, "btrfs", "device", "scan", "--forget")
	}
}

// replay tries every cut.
func (c cutPlan) replay(t *testing.T) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	sectors := vmtest.Sectors(t, c.pristine)
	durable := vmtest.DmsetupCreate(t, "durable", fmt.Sprintf("0 %d snapshot %s %s N 8\n", sectors, c.pristine, cowStore(t, "durable")))
	top := fmt.Sprintf("0 %d snapshot %s %s N 8\n", sectors, durable, cowStore(t, "top"))
	under, err := os.OpenFile(durable, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer under.Close()
	points, kinds, begun := 0, map[Kind]int{}, false
	try := func(pending []logEntry, keep func(e, sector int) bool, last bool) {
		points++
		kinds[c.cut(t, top, pending, keep, last, r)]++
	}
	settle := func(done []logEntry) {
		for _, e := range done {
			writeEntry(t, under, e, func(int) bool { return true })
		}
		if err := under.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	var pending []logEntry
	for i, e := range c.log {
		begun = begun || e.mark == "begin"
		if e.flush && len(pending) > 0 {
			if begun {
				c.reorder(pending, r, try)
			}
			settle(pending)
			pending = nil
		}
		if len(e.data) == 0 && i < len(c.log)-1 {
			continue
		}
		pending = append(pending, e)
		if begun {
			try(pending, func(int, int) bool { return true }, i == len(c.log)-1)
		}
		if e.fua {
			// What came before may still be lost when this is there.
			pending = pending[:len(pending)-1]
			settle([]logEntry{e})
		}
	}
	t.Logf("%d writes, %d points: %v", len(c.log), points, kinds)
	if points < 15 {
		t.Errorf("only %d points", points)
	}
}

// reorder tries some of the orders in which writes without a flush may arrive.
func (c cutPlan) reorder(pending []logEntry, r *rand.Rand, try func([]logEntry, func(e, sector int) bool, bool)) {
	for round := range 6 {
		arrived := make([]bool, len(pending))
		for i := range arrived {
			arrived[i] = r.IntN(2) == 0
		}
		torn := round%2 == 1
		try(pending, func(e, _ int) bool {
			if torn && c.holds(pending[e]) {
				return r.IntN(2) == 0
			}
			return arrived[e]
		}, false)
	}
}

// holds tells whether a write goes to the image.
func (c cutPlan) holds(e logEntry) bool {
	for _, x := range c.place.Extents {
		if extents.Bytes(e.at) < x.Physical+x.Length && x.Physical < extents.Bytes(e.at)+extents.Bytes(len(e.data)) {
			return true
		}
	}
	return false
}

// cut mounts the file system as one cut leaves it, finishes the image one way or
// the other, and returns the state that it was in. After the last write the change
// was reported as done, and has to be.
func (c cutPlan) cut(t *testing.T, top string, pending []logEntry, keep func(e, sector int) bool, last bool, r *rand.Rand) Kind {
	t.Helper()
	h := c.host
	h.dev = vmtest.DmsetupCreate(t, "cut", top)
	defer vmtest.DmsetupRemove(t, "cut")
	dev, err := os.OpenFile(h.dev, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range pending {
		writeEntry(t, dev, e, func(s int) bool { return keep(i, s) })
	}
	if err := dev.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	h.forget()
	h.t = t
	h.mount()
	defer vmtest.Umount(t, h.dir)
	path := filepath.Join(h.dir, "image")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := Inspect(f, h.bare())
	if err != nil {
		t.Fatal(err)
	}
	for i := range c.neighbours {
		sameFile(t, filepath.Join(h.dir, fmt.Sprintf("neighbour%d", i)), image(3*4096+512, uint64(70+i)))
	}
	if last && st.Kind == HalfSealed {
		t.Errorf("reported as done, and half-way after a cut: %s", st.Reason)
	}
	if r.IntN(2) == 0 {
		rec, err := Seal(f, h.options(f))
		if err != nil {
			t.Fatalf("%v: %v", st, err)
		}
		if !bytes.Equal(h.raw(h.shown(f, rec)), c.want) {
			t.Fatalf("%+v: sealed with other content", st)
		}
	}
	if err := Unseal(f, h.bare()); err != nil {
		t.Fatalf("%+v: %v", st, err)
	}
	sameFile(t, path, c.want)
	noAttribute(t, path)
	for i := range c.neighbours {
		sameFile(t, filepath.Join(h.dir, fmt.Sprintf("neighbour%d", i)), image(3*4096+512, uint64(70+i)))
	}
	return st.Kind
}
