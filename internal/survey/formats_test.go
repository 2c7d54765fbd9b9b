package survey

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/vmtest/partcorpus"
)

// What an image holds is told by a few bytes at its beginning or its end.
func TestFormatOf(t *testing.T) {
	file := func(size int, at int, magic string) []byte {
		b := make([]byte, size)
		copy(b[at:], magic)
		return b
	}
	for name, c := range map[string]struct {
		content []byte
		want    string
		use     Use
	}{
		"plain":                        {file(1<<20+512, 0, ""), "", Disk},
		"nothing":                      {nil, "", Disk},
		"a few bytes":                  {[]byte("QFI"), "", Disk},
		"a footer alone":               {file(512, 0, "conectix"), "vhd", Packed},
		"fixed VHD":                    {file(1<<20+512, 1<<20, "conectix"), "vhd-fixed", Footer},
		"growing VHD":                  {file(4096+512, 0, "conectix"), "vhd", Packed},
		"VHDX":                         {file(4096+512, 0, "vhdxfile"), "vhdx", Packed},
		"qcow":                         {file(4096, 0, "QFI\xfb\x00\x00\x00\x01"), "qcow", Packed},
		"qcow2":                        {file(4096, 0, "QFI\xfb\x00\x00\x00\x03"), "qcow2", Packed},
		"qcow2 elsewhere":              {file(4096, 1, "QFI\xfb\x00\x00\x00\x03"), "", Disk},
		"VMDK":                         {file(4096+512, 0, "KDMV"), "vmdk", Packed},
		"VMDK of ESX":                  {file(4096, 0, "COWD"), "vmdk", Packed},
		"descriptor of a VMDK":         {[]byte("# Disk DescriptorFile\nversion=1\n"), "vmdk-descriptor", Packed},
		"android sparse":               {file(4096+512, 0, "\x3a\xff\x26\xed"), "android-sparse", Packed},
		"gzip":                         {file(4096+512, 0, "\x1f\x8b\x08"), "gzip", Packed},
		"two bytes as of gzip":         {file(4096, 0, "\x1f\x8b\x00"), "", Disk},
		"xz":                           {file(4096+512, 0, "\xfd7zXZ\x00"), "xz", Packed},
		"zstd":                         {file(4096+512, 0, "\x28\xb5\x2f\xfd"), "zstd", Packed},
		"bzip2":                        {file(4096, 0, "BZh91AY&SY"), "bzip2", Packed},
		"VDI":                          {file(4096+512, 64, "\x7f\x10\xda\xbe"), "vdi", Packed},
		"ISO 9660":                     {file(64<<10, 32769, "CD001"), "iso9660", ReadOnly},
		"ISO 9660 cut":                 {file(32769+4, 32769, "CD00"), "", Disk},
		"ISO 9660 that also is a disk": {file(64<<10, 32769, "CD001\x01"), "iso9660", ReadOnly},
		"squashfs":                     {file(8192, 0, "hsqs"), "squashfs", ReadOnly},
		"Apple's":                      {file(8192+512, 8192, "koly"), "dmg", Packed},
	} {
		if got := FormatOf(bytes.NewReader(c.content), extents.Bytes(len(c.content))); got.Name != c.want || got.Use != c.use {
			t.Errorf("%s: %+v, want %s", name, got, c.want)
		}
	}
}

// What cannot be read is nothing in particular.
func TestFormatOfWhatCannotBeRead(t *testing.T) {
	if got := FormatOf(unreadable{}, 1<<20); got != (Format{}) {
		t.Errorf("%+v", got)
	}
}

type unreadable struct{}

func (unreadable) ReadAt([]byte, int64) (int, error) { return 0, errors.New("no") }

// A size that fits no blocks may be the format's: then making the file longer is no help. What a
// footer leaves may fit.
func TestFormatRemedy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.vhd")
	plain := strings.TrimSuffix(path, ".vhd") + ".img"
	fixed := Format{Name: "vhd-fixed", Use: Footer, Remedy: advice.LeaveFooterOut}
	for _, c := range []struct {
		format Format
		size   extents.Bytes
		want   extents.Remedy
	}{
		{Format{}, 1<<20 + 512, extents.Remedy{}},
		{fixed, 1<<20 + 512, advice.LeaveFooterOut.At(512, 1<<20)},
		{fixed, 1<<20 + 1024, advice.ConvertFixedVHD.Of(plain)},
		{Format{Name: "qcow2", Use: Packed, Remedy: advice.ConvertQCOW}, 5000, advice.ConvertQCOW.Of(plain)},
		{Format{Name: "squashfs", Use: ReadOnly, Remedy: advice.MountReadOnly.Of("squashfs")}, 5000, advice.MountReadOnly.Of("squashfs")},
	} {
		if got := c.format.at(path, c.size, 4096).Remedy; got != c.want {
			t.Errorf("%s of %d bytes: %v, want %v", c.format.Name, c.size, got, c.want)
		}
	}
}

// The plain image gets a name that nothing has: converters overwrite what is there.
func TestPlainName(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"taken.img", "twice", "twice.raw"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"disk.qcow2": "disk.img", "disk.img.gz": "disk.img", "DISK.VHD": "DISK.img", "odd": "odd", "taken.img": "taken.img.raw",
		"taken.img.xz": "taken.img.raw", "taken.vdi": "taken.img.raw", ".gz": ".gz", "twice": "twice.raw.raw",
	} {
		if got := plainName(filepath.Join(dir, name)); got != filepath.Join(dir, want) {
			t.Errorf("%s: %s, want %s", name, got, want)
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
