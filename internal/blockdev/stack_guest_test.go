//go:build vmtest

package blockdev_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/vmtest"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

func connect(t *testing.T) *dm.Conn {
	t.Helper()
	vmtest.RequireGuest(t)
	c, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func numbers(t *testing.T, path string) dmtable.Device {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return dmtable.DeviceOf(st.Rdev)
}

func readStack(t *testing.T, c *dm.Conn, path string) blockdev.Stack {
	t.Helper()
	s, problem, err := blockdev.ReadStack("/sys", c, numbers(t, path))
	if err != nil || problem != nil {
		t.Fatalf("%s: %v, %v", path, problem, err)
	}
	return s
}

// TestResolvedSectorsHoldTheData writes through a host device and reads what was
// written from the base devices, at the sectors that Resolve gives, and the other
// way round.
func TestResolvedSectorsHoldTheData(t *testing.T) {
	c := connect(t)
	a, b := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
	hosts := map[string]string{
		"two-disks":     fmt.Sprintf("0 8000 linear %s 40000\n8000 8384 linear %s 64\n", a, b),
		"five-rows":     fmt.Sprintf("0 3000 linear %[1]s 30000\n3000 3000 linear %[2]s 0\n6000 3000 linear %[1]s 0\n9000 6000 striped 2 8 %[1]s 60000 %[2]s 9000\n15000 1500 linear %[2]s 70000\n", a, b),
		"two-stripes":   fmt.Sprintf("0 16384 striped 2 128 %s 0 %s 0\n", a, b),
		"odd-chunk":     fmt.Sprintf("0 14400 striped 2 24 %s 1000 %s 3000\n", a, b),
		"three-stripes": fmt.Sprintf("0 14400 striped 3 24 %[1]s 0 %[2]s 0 %[1]s 50000\n", a, b),
	}
	for name, text := range hosts {
		t.Run(name, func(t *testing.T) {
			path := vmtest.DmsetupCreate(t, name, text)
			s := readStack(t, c, path)
			if printed := vmtest.Must(t, "dmsetup", "table", name); printed != s.HostTable.String() {
				t.Fatalf("table %q, dmsetup says %q", s.HostTable, printed)
			}
			checkBothWays(t, c, s, path, a, b)
		})
	}
}

// checkBothWays maps random pieces of the host device with a table of ours and
// compares the new device with the host device in both directions.
func checkBothWays(t *testing.T, c *dm.Conn, s blockdev.Stack, path string, disks ...string) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(s.HostTable.Size()), 7))
	l := randomPieces(r, extents.Bytes(s.HostTable.Size()))
	segs, problems := s.Resolve(l, 0)
	if problems != nil {
		t.Fatal(problems)
	}
	content := make([]byte, s.HostTable.Size()*sector)
	for i := range content {
		content[i] = byte(r.Uint32())
	}
	write(t, path, content, 0)
	var want []byte
	for _, e := range l.Extents {
		want = append(want, content[e.Physical:e.Physical+e.Length]...)
	}
	byNumber := map[dmtable.Device]string{}
	for _, disk := range disks {
		byNumber[numbers(t, disk)] = disk
	}
	var got []byte
	for _, seg := range segs {
		got = append(got, read(t, byNumber[seg.Device], seg.Start, seg.Length)...)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the base devices do not hold at the resolved sectors what was written through the host device")
	}
	table, err := dmtable.Build(segs)
	if err != nil {
		t.Fatal(err)
	}
	mapped := vmtest.DmsetupCreate(t, "mapped", table.String())
	if got := read(t, mapped, 0, table.Size()); !bytes.Equal(got, want) {
		t.Fatal("the mapped device shows something else")
	}
	for i := range want {
		want[i] ^= byte(i*31) | 1
	}
	write(t, mapped, want, 0)
	for _, e := range l.Extents {
		copy(content[e.Physical:], want[e.Logical:e.Logical+e.Length])
	}
	if got := read(t, path, 0, s.HostTable.Size()); !bytes.Equal(got, content) {
		t.Fatal("the host device does not show what was written through the mapped device, or more was written")
	}
	vmtest.DmsetupRemove(t, "mapped")
}

// randomPieces returns pieces of a device of size sectors that do not overlap, in
// random order.
func randomPieces(r *rand.Rand, size extents.Bytes) extents.Layout {
	var pieces [][2]extents.Bytes
	for at := extents.Bytes(r.IntN(100)); at < size-8; {
		length := min(1+extents.Bytes(r.IntN(600)), size-at)
		pieces = append(pieces, [2]extents.Bytes{at, length})
		at += length + extents.Bytes(r.IntN(300))
	}
	pieces = append(pieces, [2]extents.Bytes{size - 8, 8})
	if n := len(pieces); pieces[n-2][0]+pieces[n-2][1] > size-8 {
		pieces = pieces[:n-1]
	}
	r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	var pairs []extents.Bytes
	for _, p := range pieces {
		pairs = append(pairs, p[0], p[1])
	}
	return layout(pairs...)
}

func write(t *testing.T, path string, data []byte, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// read reads from the device itself: what is cached of it is dropped first.
func read(t *testing.T, path string, start, length dmtable.Sectors) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, length*sector)
	if _, err := f.ReadAt(data, int64(start*sector)); err != nil {
		t.Fatal(err)
	}
	return data
}

// TestStackOfTheKernel reads stacks from the guest's own sysfs.
func TestStackOfTheKernel(t *testing.T) {
	c := connect(t)
	disk := vmtest.Disk(t, 0)
	size := vmtest.Sectors(t, disk)
	shim := vmtest.Shim(t, disk, "shim")
	s := readStack(t, c, shim)
	want := blockdev.Base{Device: numbers(t, disk), Name: strings.TrimPrefix(disk, "/dev/"), Size: dmtable.Sectors(size), LogicalBlock: 512}
	if len(s.Base) != 1 || s.Base[0] != want || s.HostName != "shim" {
		t.Errorf("%+v, want the base %+v", s, want)
	}
	upper := vmtest.DmsetupCreate(t, "upper", fmt.Sprintf("0 1000 linear %s 8\n", shim))
	s = readStack(t, c, upper)
	if len(s.Base) != 1 || s.Base[0].Device != numbers(t, shim) || s.Base[0].Size != dmtable.Sectors(size) {
		t.Errorf("one layer down is the shim, got %+v", s)
	}
	below, err := blockdev.Below("/sys", c, numbers(t, upper))
	if err != nil || len(below) != 2 || below[0] != numbers(t, upper) || below[1] != numbers(t, shim) {
		t.Errorf("Below: %v, %v", below, err)
	}
	readOnly := vmtest.Must(t, "blockdev", "--getro", disk)
	if (strings.TrimSpace(readOnly) == "1") != s.Base[0].ReadOnly {
		t.Errorf("read-only: %s, got %+v", readOnly, s.Base[0])
	}
}

// TestRefusalsOfTheKernel provokes the stacks on which nothing may be mapped.
func TestRefusalsOfTheKernel(t *testing.T) {
	c := connect(t)
	disk := vmtest.Disk(t, 0)
	vmtest.Must(t, "modprobe", "-a", "-q", "dm-mod") // a no-op where it is built in
	refused := func(what, path string, rule extents.Rule, words string) {
		t.Helper()
		s, problem, err := blockdev.ReadStack("/sys", c, numbers(t, path))
		if err != nil || problem == nil || problem.Rule != rule || !strings.Contains(problem.Message, words) {
			t.Errorf("%s: %+v, %+v, %v", what, s, problem, err)
		}
	}
	refused("disk", disk, extents.MountedDirectly, disk)
	zero := vmtest.DmsetupCreate(t, "zero", "0 8192 zero\n")
	refused("zero target", zero, extents.UnresolvableStack, "zero target")
	mixed := vmtest.DmsetupCreate(t, "mixed", fmt.Sprintf("0 8 linear %s 0\n8 8 error\n", disk))
	refused("error target", mixed, extents.UnresolvableStack, "error target (sectors 8-15)")
	shim := vmtest.Shim(t, disk, "shim")
	vmtest.Must(t, "dmsetup", "suspend", "shim")
	refused("suspended", shim, extents.UnresolvableStack, "suspended")
	vmtest.Must(t, "dmsetup", "resume", "shim")
	readStack(t, c, shim)
	vmtest.Must(t, "dmsetup", "load", "shim", "--table", fmt.Sprintf("0 8 linear %s 0", disk))
	refused("second table", shim, extents.UnresolvableStack, "second table")
	vmtest.Must(t, "dmsetup", "clear", "shim")
	readStack(t, c, shim)
	bare := vmtest.Must(t, "dmsetup", "create", "--notable", "bare")
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "bare") })
	info, err := c.Info(dm.ByName("bare"))
	if err != nil {
		t.Fatal(bare, err)
	}
	// Nothing can be mounted from it: it is no block device before its first table.
	if s, problem, err := blockdev.ReadStack("/sys", c, info.Device); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a table: %+v, %v, %v", s, problem, err)
	}
}

// TestPartition uses a host device on a partition: block size and numbers come
// from the right folders.
func TestPartition(t *testing.T) {
	c := connect(t)
	disk := vmtest.Disk(t, 0)
	if r := vmtest.RunInput(t, "label: gpt\nsize=64M\nsize=64M\n", "sfdisk", "-q", disk); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	t.Cleanup(func() { vmtest.Must(t, "sfdisk", "-q", "--delete", disk) })
	vmtest.Must(t, "blockdev", "--rereadpt", disk)
	shim := vmtest.Shim(t, disk+"2", "shim")
	s := readStack(t, c, shim)
	want := blockdev.Base{Device: numbers(t, disk+"2"), Name: strings.TrimPrefix(disk, "/dev/") + "2", Size: 131072, LogicalBlock: 512}
	if len(s.Base) != 1 || s.Base[0] != want {
		t.Errorf("%+v, want the base %+v", s, want)
	}
	_, problem, err := blockdev.ReadStack("/sys", nil, numbers(t, disk+"1"))
	if err != nil || problem == nil || !strings.Contains(problem.Message, disk+"1") {
		t.Errorf("the partition itself: %v, %v", problem, err)
	}
	checkBothWays(t, c, truncated(t, c, disk+"2"), "/dev/mapper/small", disk+"2")
}

// truncated makes a host device of 16384 sectors on a partition.
func truncated(t *testing.T, c *dm.Conn, partition string) blockdev.Stack {
	t.Helper()
	return readStack(t, c, vmtest.DmsetupCreate(t, "small", fmt.Sprintf("0 16384 linear %s 64\n", partition)))
}

// TestLargeBlocks uses a base device with blocks of 4096 bytes.
func TestLargeBlocks(t *testing.T) {
	c := connect(t)
	vmtest.RequireGuest(t)
	file := t.TempDir() + "/disk"
	if err := os.WriteFile(file, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(vmtest.Must(t, "losetup", "--find", "--show", "--sector-size", "4096", file))
	t.Cleanup(func() { vmtest.Must(t, "losetup", "--detach", loop) })
	host := vmtest.DmsetupCreate(t, "host", fmt.Sprintf("0 16384 linear %s 8\n", loop))
	s := readStack(t, c, host)
	if s.LogicalBlock() != 4096 {
		t.Fatalf("%+v", s)
	}
	if segs, problems := s.Resolve(layout(0, 8, 16, 8), 0); len(segs) != 2 || problems != nil {
		t.Errorf("%v, %v", segs, problems)
	}
	_, problems := s.Resolve(layout(0, 8, 17, 7), 0)
	if len(problems) != 1 || problems[0].Rule != extents.NotAligned || problems[0].Offset != 4096 {
		t.Errorf("%v", problems)
	}
	// The kernel agrees that such a table is not to be had.
	r := vmtest.RunInput(t, fmt.Sprintf("0 8 linear %s 8\n8 7 linear %s 25\n", loop, loop), "dmsetup", "create", "odd")
	if r.Code == 0 {
		vmtest.DmsetupRemove(t, "odd")
		t.Error("the kernel takes rows within a block")
	}
}
