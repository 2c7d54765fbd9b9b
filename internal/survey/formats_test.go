package survey

import (
	"bytes"
	"testing"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/vmtest/partcorpus"
)

// A size that fits no blocks may be the format's: then making the file longer is no help.
func TestFormatRemedy(t *testing.T) {
	file := func(size int, at int, magic string) []byte {
		b := make([]byte, size)
		copy(b[at:], magic)
		return b
	}
	for name, c := range map[string]struct {
		content []byte
		want    extents.Remedy
	}{
		"plain":               {file(1<<20+512, 0, ""), extents.Remedy{}},
		"nothing":             {nil, extents.Remedy{}},
		"a footer alone":      {file(512, 0, "conectix"), advice.ConvertVHD},
		"fixed VHD":           {file(1<<20+512, 1<<20, "conectix"), advice.LeaveFooterOut.At(512, 1<<20)},
		"fixed VHD, odd disk": {file(1<<20+1024, 1<<20+512, "conectix"), advice.ConvertFixedVHD},
		"growing VHD":         {file(4096+512, 0, "conectix"), advice.ConvertVHD},
		"VHDX":                {file(4096+512, 0, "vhdxfile"), advice.ConvertVHDX},
		"qcow2":               {file(4096+512, 0, "QFI\xfb"), advice.ConvertQCOW},
		"VMDK":                {file(4096+512, 0, "KDMV"), advice.ConvertVMDK},
		"android sparse":      {file(4096+512, 0, "\x3a\xff\x26\xed"), advice.ConvertSparse},
		"gzip":                {file(4096+512, 0, "\x1f\x8b"), advice.Gunzip},
		"xz":                  {file(4096+512, 0, "\xfd7zXZ\x00"), advice.Unxz},
		"zstd":                {file(4096+512, 0, "\x28\xb5\x2f\xfd"), advice.Unzstd},
		"VDI":                 {file(4096+512, 64, "\x7f\x10\xda\xbe"), advice.ConvertVDI},
	} {
		got, known := formatRemedy(bytes.NewReader(c.content), extents.Bytes(len(c.content)), 4096)
		if got != c.want || known != (c.want != extents.Remedy{}) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// An offset at which a partition begins is meant as that partition.
func TestPartitionAt(t *testing.T) {
	for _, c := range partcorpus.Cases() {
		for _, want := range []struct {
			image          string
			offset, number int
		}{
			{"mbr", 2048, 1}, {"mbr", 6144, 2}, {"mbr", 6145, 0}, {"mbr", 0, 0}, {"logical", 4160, 5}, {"gpt", 6144, 2},
			{"gpt in blocks of 4096", 8192, 2}, {"nothing", 2048, 0}, {"gpt, header damaged", 2048, 0},
		} {
			if c.Name != want.image {
				continue
			}
			if got := partitionAt(bytes.NewReader(c.Image()), partcorpus.Size, extents.Bytes(want.offset)*512); got != want.number {
				t.Errorf("%s at sector %d: partition %d, want %d", c.Name, want.offset, got, want.number)
			}
		}
	}
	if got := partitionAt(bytes.NewReader(nil), 0, 513); got != 0 {
		t.Errorf("partition %d", got)
	}
}

// Nobody is told to unmount the root file system.
func TestRemedyOfTheRootFileSystem(t *testing.T) {
	for point, want := range map[string]extents.Remedy{
		"/": advice.PersistShim.Of("/"), "/usr": advice.PersistShim.Of("/usr"), "/srv": advice.MountThroughShim.Of("/dev/vda1"),
	} {
		v := &Report{Problems: []extents.Problem{{Rule: extents.MountedDirectly, Remedy: advice.MountThroughShim.Of("/dev/vda1")}}}
		v.Facts.Mount.Point = point
		v.betterRemedies(nil, Options{})
		if got := v.Problems[0].Remedy; got != want {
			t.Errorf("%s: %v, want %v", point, got, want)
		}
	}
}
