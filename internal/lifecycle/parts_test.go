package lifecycle

import (
	"encoding/binary"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/blockdev"
	"dmloop/internal/manifest"
)

const partsSize = 8 << 20

// partsJob is a map of a device of partsSize bytes with these logical blocks.
func partsJob(block extents.Bytes) *mapJob {
	return &mapJob{System: NewSystem("", slog.New(slog.DiscardHandler)), m: manifest.Manifest{Size: partsSize},
		survey: &Survey{Stack: blockdev.Stack{Base: []blockdev.Base{{LogicalBlock: block}}}}}
}

// disk makes a file of partsSize bytes that change has written to.
func disk(t *testing.T, change func(f *os.File)) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(partsSize); err != nil {
		t.Fatal(err)
	}
	change(f)
	return f.Name()
}

// putMBR writes an MBR with one partition.
func putMBR(t *testing.T, f *os.File, kind byte, start, count uint32) {
	t.Helper()
	b := make([]byte, 512)
	b[446+4], b[510], b[511] = kind, 0x55, 0xaa
	binary.LittleEndian.PutUint32(b[446+8:], start)
	binary.LittleEndian.PutUint32(b[446+12:], count)
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

// putGPT writes a GPT with one partition, and has change make other headers of it.
func putGPT(t *testing.T, f *os.File, block int, start, end uint64, change func(header []byte)) {
	t.Helper()
	table := &gpt.Table{LogicalSectorSize: block, PhysicalSectorSize: block, ProtectiveMBR: true,
		Partitions: []*gpt.Partition{{Index: 1, Start: start, End: end, Type: gpt.LinuxFilesystem}}}
	w, err := file.New(f, false).Writable()
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Write(w, partsSize); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{int64(block), partsSize - int64(block)} {
		header := make([]byte, 92)
		if _, err := f.ReadAt(header, at); err != nil {
			t.Fatal(err)
		}
		change(header)
		clear(header[16:20])
		binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header))
		if _, err := f.WriteAt(header, at); err != nil {
			t.Fatal(err)
		}
	}
}

// Both kinds of tables count in logical blocks, as the kernel and kpartx take them.
func TestPartitionsCountInBlocks(t *testing.T) {
	for _, block := range []extents.Bytes{512, 4096} {
		n := dmtable.Sectors(block / dmtable.SectorSize)
		for name, path := range map[string]string{
			"MBR": disk(t, func(f *os.File) { putMBR(t, f, 0x83, 256, 512) }),
			"GPT": disk(t, func(f *os.File) { putGPT(t, f, int(block), 256, 767, func([]byte) {}) }),
		} {
			got, err := partsJob(block).readPartitions(path)
			want := []area{{1, 256 * n, 512 * n}}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s in blocks of %d: %v (%v), want %v", name, block, got, err, want)
			}
		}
	}
}

// What an image says of itself may be a stranger's: a table that no disk has is refused.
func TestPartitionsOfAStranger(t *testing.T) {
	entries := func(count, length uint32) func([]byte) {
		return func(header []byte) {
			binary.LittleEndian.PutUint32(header[80:], count)
			binary.LittleEndian.PutUint32(header[84:], length)
		}
	}
	for name, c := range map[string]struct {
		put  func(f *os.File)
		want string
	}{
		"more entries than can be counted": {func(f *os.File) { putGPT(t, f, 512, 256, 767, entries(1<<32-1, 1<<32-1)) }, "claims"},
		"more entries than memory":         {func(f *os.File) { putGPT(t, f, 512, 256, 767, entries(1<<31, 128)) }, "claims"},
		"entries of no size":               {func(f *os.File) { putGPT(t, f, 512, 256, 767, entries(128, 0)) }, "claims"},
		"only the copy claims too many": {func(f *os.File) {
			putGPT(t, f, 512, 256, 767, entries(1<<31, 128))
			if _, err := f.WriteAt(make([]byte, 512), 512); err != nil {
				t.Fatal(err)
			}
		}, "claims"},
		"behind the end":         {func(f *os.File) { putMBR(t, f, 0x83, 256, partsSize/512-255) }, "partition 1 has"},
		"on the table":           {func(f *os.File) { putMBR(t, f, 0x83, 0, 512) }, "partition 1 has"},
		"a place that overflows": {func(f *os.File) { putGPT(t, f, 512, 1<<55+256, 1<<55+767, func([]byte) {}) }, "partition 1 has"},
		"a GPT that is damaged":  {func(f *os.File) { putMBR(t, f, 0xee, 1, partsSize/512-1) }, "damaged"},
	} {
		got, err := partsJob(512).readPartitions(disk(t, c.put))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v (%v), want an error with %q", name, got, err, c.want)
		}
	}
	if got, err := partsJob(512).readPartitions(disk(t, func(*os.File) {})); err != nil || len(got) != 0 {
		t.Errorf("of a disk without a table: %v, %v", got, err)
	}
}
