package blockdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"

	"dmloop/dmtable"
	"dmloop/internal/vmtest/partcorpus"
)

func diskOf(image []byte, block int) Disk {
	return Disk{ReaderAt: bytes.NewReader(image), Block: int64(block), Size: dmtable.Sectors(len(image) / 512)}
}

func text(t PartitionTable) string {
	var all []string
	for _, p := range t.Partitions {
		all = append(all, fmt.Sprintf("%d:%d+%d", p.Number, p.Start, p.Length))
	}
	return strings.Join(all, " ")
}

// The corpus says what the kernel makes of each image; a guest test asks it.
func TestCorpus(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range partcorpus.Cases() {
		if seen[c.Name] {
			t.Errorf("%s: twice", c.Name)
		}
		seen[c.Name] = true
		got, err := ReadPartitions(diskOf(c.Image(), c.Block))
		var refused *Refusal
		switch {
		case c.Refuse != "":
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.Refuse) || len(got.Partitions) != 0 {
				t.Errorf("%s: %v (%v), want a refusal with %q", c.Name, got, err, c.Refuse)
			}
		case err != nil || text(got) != strings.Trim(c.Shown(), "-"):
			t.Errorf("%s: %s (%v), want %s", c.Name, text(got), err, c.Shown())
		}
	}
	if len(seen) < 40 {
		t.Errorf("%d images", len(seen))
	}
}

func find(t *testing.T, name string) partcorpus.Case {
	t.Helper()
	for _, c := range partcorpus.Cases() {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no image %q", name)
	return partcorpus.Case{}
}

// With the kernel parameter "gpt" a GPT needs no protection, and its copy counts.
func TestForcedGPT(t *testing.T) {
	for name, want := range map[string]string{
		"gpt, no signature of the mbr":     "1:2048+4096",
		"gpt, only the copy and no mbr":    "1:2048+4096",
		"gpt, header damaged":              "1:2048+4096",
		"mbr with the stale copy of a gpt": "1:2048+8192 2:10240+4096",
		"mbr":                              "1:2048+4096 2:6144+8192",
		"nothing":                          "",
	} {
		c := find(t, name)
		d := diskOf(c.Image(), c.Block)
		d.ForceGPT = true
		if got, err := ReadPartitions(d); err != nil || text(got) != want {
			t.Errorf("%s: %s (%v), want %s", name, text(got), err, want)
		}
	}
	for line, want := range map[string]bool{"root=/dev/vda gpt quiet\n": true, "gptx=1 root=gpt": false, "": false} {
		if forcesGPT(line) != want {
			t.Errorf("%q: %t", line, !want)
		}
	}
}

// What the kernel leaves out or cuts off is said.
func TestNotes(t *testing.T) {
	for name, want := range map[string]string{
		"mbr, begins beyond the end": "partition 1 begins beyond the end",
		"mbr, ends beyond the end":   "partition 1 goes on for 1048576 bytes beyond the end",
		"logical, beyond the end":    "the chain of logical partitions goes on beyond the end",
		"bsd in an mbr":              "partition 1 is of type 0xa5",
	} {
		c := find(t, name)
		if got, err := ReadPartitions(diskOf(c.Image(), c.Block)); err != nil || !strings.Contains(strings.Join(got.Notes, "\n"), want) {
			t.Errorf("%s: %q (%v), want %q", name, got.Notes, err, want)
		}
	}
}

func TestUUID(t *testing.T) {
	for name, want := range map[string]string{
		"mbr": "1234abcd-02", "gpt": "00112233-4455-6677-8899-aabbccddee02", "mbr with a stale gpt": "1234abcd-02",
		"logical, a loop": "1234abcd-02", "gpt, hybrid": "00112233-4455-6677-8899-aabbccddee02", "gpt, header damaged": "", "nothing": "",
	} {
		c := find(t, name)
		if got, _ := ReadPartitions(diskOf(c.Image(), c.Block)); got.UUID(2) != want {
			t.Errorf("%s: %q, want %q", name, got.UUID(2), want)
		}
	}
}

// Whatever stands on a disk: no partition leaves it, numbers count up, nothing hangs.
func FuzzRead(f *testing.F) {
	for i, c := range partcorpus.Cases() {
		f.Add(bytes.TrimRight(c.Image()[:34*512], "\x00"), uint32(partcorpus.Sectors), c.Block == 4096, i%2 == 0, i%3 == 0)
	}
	f.Fuzz(func(t *testing.T, begin []byte, size uint32, large, forced, mend bool) {
		image := make([]byte, 40*512)
		copy(image, begin)
		d := diskOf(image, 512)
		d.Size, d.ForceGPT = dmtable.Sectors(size), forced
		if large {
			d.Block, d.Size = 4096, d.Size/8*8
		}
		if mend {
			mendGPT(image[d.Block:], image[2*d.Block:])
		}
		got, err := ReadPartitions(d)
		if err != nil && len(got.Partitions) > 0 {
			t.Errorf("partitions and %v", err)
		}
		last := 0
		for _, p := range got.Partitions {
			if p.Number <= last || p.Number > mostPartitions || p.Length == 0 || p.Start >= d.Size || p.Length > d.Size-p.Start || int64(p.Start)%d.perBlock() != 0 || int64(p.Length)%d.perBlock() != 0 {
				t.Errorf("partition %+v after %d on %d sectors", p, last, d.Size)
			}
			last = p.Number
		}
	})
}

// mendGPT gives a GPT the checksums that make the reader look further.
func mendGPT(header, entries []byte) {
	if count := uint64(binary.LittleEndian.Uint32(header[80:])) * gptEntrySize; count <= uint64(len(entries)) {
		binary.LittleEndian.PutUint32(header[88:], crc32.ChecksumIEEE(entries[:count]))
	}
	clear(header[16:20])
	if size := binary.LittleEndian.Uint32(header[12:]); uint64(size) <= uint64(len(header)) {
		binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header[:size]))
	}
}
