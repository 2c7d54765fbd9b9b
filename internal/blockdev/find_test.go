package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dmloop/internal/vmtest/partcorpus"
)

// run runs a program that the tests' packages bring (make deps).
func run(t *testing.T, input string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func sparse(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

const (
	someUUID  = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
	someLabel = "dä 1/x"
)

func TestIdentifyRealFilesystems(t *testing.T) {
	for fstype, mkfs := range map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-F", "-U", someUUID, "-L", someLabel},
		"xfs":   {"mkfs.xfs", "-q", "-f", "-m", "uuid=" + someUUID, "-L", someLabel},
		"f2fs":  {"mkfs.f2fs", "-q", "-f", "-U", someUUID, "-l", someLabel},
		"btrfs": {"mkfs.btrfs", "-q", "-f", "-U", someUUID, "-L", someLabel},
	} {
		path := filepath.Join(t.TempDir(), "fs")
		sparse(t, path, 400<<20)
		run(t, "", append(mkfs, path)...)
		if got, err := (Finder{}).Filesystem(Device{Path: path}); err != nil || got.Type != fstype || got.UUID != someUUID || got.Label != someLabel {
			t.Errorf("%s: %+v, %v", fstype, got, err)
		}
	}
	for name, mkfs := range map[string][]string{
		"vfat":  {"mkfs.vfat", "-F", "32", "-n", "STICK"},
		"fat16": {"mkfs.vfat", "-F", "16", "-n", "STICK"},
		"fat12": {"mkfs.vfat", "-F", "12", "-s", "128"},
		"exfat": {"mkfs.exfat"},
		"ntfs":  {"mkfs.ntfs", "-F", "-Q", "-q"},
	} {
		path := filepath.Join(t.TempDir(), "fs")
		sparse(t, path, 40<<20)
		run(t, "", append(mkfs, path)...)
		want := map[string]string{"vfat": "vfat", "fat16": "vfat", "fat12": "vfat", "exfat": "exfat", "ntfs": "ntfs3"}[name]
		uuid := strings.TrimSpace(run(t, "", "blkid", "-p", "-o", "value", "-s", "UUID", path))
		label := ""
		if slices.Contains(mkfs, "STICK") {
			label = "STICK"
		}
		if got, err := (Finder{}).Filesystem(Device{Path: path}); err != nil || got.Type != want || uuid == "" || got.UUID != uuid || got.Label != label {
			t.Errorf("%s: %+v, %v; blkid says %s", name, got, err, uuid)
		}
	}
	for _, head := range [][]byte{nil, make([]byte, 100), make([]byte, headSize)} {
		if got, ok := identify(head); ok {
			t.Errorf("%d zeros are %+v", len(head), got)
		}
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add([]byte("XFSB"))
	f.Fuzz(func(t *testing.T, head []byte) {
		if fs, ok := identify(head); ok && !slices.Contains([]int{9, 16, 36}, len(fs.UUID)) {
			t.Errorf("%q", fs.UUID)
		}
	})
}

// machine is a sysfs and a dev folder with regular files as disks.
type machine struct {
	Finder
	t      *testing.T
	number int
}

func newMachine(t *testing.T) *machine {
	dir := t.TempDir()
	m := &machine{Finder{filepath.Join(dir, "sys"), filepath.Join(dir, "dev")}, t, 0}
	for _, d := range []string{m.Dev, m.Sys + "/class/block", m.Sys + "/dev/block"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *machine) add(name, parent string, files map[string]string) string {
	m.t.Helper()
	dir := filepath.Join(m.Sys, "devices", parent, name)
	m.number++
	all := map[string]string{"dev": fmt.Sprintf("8:%d\n", m.number), "size": "2048\n"}
	for k, v := range files {
		all[k] = v
	}
	for k, v := range all {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, k)), 0o755); err != nil {
			m.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, k), []byte(v), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
	for _, link := range []string{"class/block/" + name, fmt.Sprintf("dev/block/8:%d", m.number)} {
		if err := os.Symlink(dir, filepath.Join(m.Sys, link)); err != nil {
			m.t.Fatal(err)
		}
	}
	return filepath.Join(m.Dev, name)
}

// ext4 writes the part of a superblock that counts.
func (m *machine) ext4(path, uuidByte string) {
	m.t.Helper()
	head := make([]byte, headSize)
	copy(head[1024+0x38:], "\x53\xef")
	copy(head[1024+0x68:], strings.Repeat(uuidByte, 16))
	if err := os.WriteFile(path, head, 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func TestFindByUUID(t *testing.T) {
	m := newMachine(t)
	m.ext4(m.add("sda", "", nil), "a")
	m.ext4(m.add("sdb", "", map[string]string{"holders/dm-1/x": ""}), "b") // a path of a multipath device
	m.ext4(m.add("dm-1", "", map[string]string{"dm/uuid": "mpath-x\n"}), "b")
	m.ext4(m.add("dm-0", "", map[string]string{"dm/uuid": "DMLOOPSHIM-x\n"}), "a")
	m.ext4(m.add("dm-2", "", map[string]string{"dm/uuid": "part1-DMLOOP-x\n"}), "a")
	m.ext4(m.add("sdc", "", nil), "c")
	m.ext4(m.add("sdd", "", nil), "c")
	m.add("sr0", "", nil)
	m.ext4(m.add("sde", "", map[string]string{"size": "0\n"}), "e")

	tag := func(b string) string {
		return "UUID=" + strings.ToUpper(FormatUUID([16]byte([]byte(strings.Repeat(b, 16)))))
	}
	for source, want := range map[string]string{tag("a"): "sda", tag("b"): "dm-1"} {
		if d, err := m.Find(source); err != nil || d.Name != want || d.Size != 2048 {
			t.Errorf("%s: %+v, %v; want %s", source, d, err, want)
		}
	}
	if _, err := m.Find(tag("c")); err == nil || !strings.Contains(err.Error(), "several devices") {
		t.Errorf("two disks with one UUID: %v", err)
	}
	for _, source := range []string{tag("e"), tag("x"), "PARTUUID=1234", "LABEL=x", "LABEL="} {
		if _, err := m.Find(source); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", source, err)
		}
	}
	if _, err := m.Find("PARTLABEL=x"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown tag: %v", err)
	}
	if _, err := m.Find("/dev/null"); err == nil {
		t.Error("/dev/null is a block device")
	}
	if _, err := m.Find("/nowhere"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing node: %v", err)
	}
}

func TestFindByPartUUID(t *testing.T) {
	for label, want := range map[string]string{
		"label: gpt\nsize=1M, uuid=11111111-2222-3333-4444-555555555555\nsize=1M, uuid=AAAAAAAA-BBBB-CCCC-DDDD-EEEEEEEEEEEE\n": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
		"label: dos\nlabel-id: 0x1234abcd\nsize=1M\nsize=1M\n":                                                                 "1234abcd-02",
	} {
		m := newMachine(t)
		disk := m.add("sda", "", map[string]string{"queue/logical_block_size": "512\n", "size": "32768\n"})
		sparse(t, disk, 16<<20)
		run(t, label, "sfdisk", "-q", disk)
		m.add("sda1", "sda", map[string]string{"partition": "1\n", "start": "2048\n"})
		m.add("sda2", "sda", map[string]string{"partition": "2\n", "start": "4096\n"})
		d, err := m.Find("PARTUUID=" + want)
		if err != nil || d.Name != "sda2" {
			t.Errorf("%s: %+v, %v", want, d, err)
		}
		if id, err := m.PartUUID(Device{Name: "sda"}); err != nil || id != "" {
			t.Errorf("a disk has PARTUUID %q, %v", id, err)
		}
		if d, err := m.ByNumber(d.Number); err != nil || d.Name != "sda2" {
			t.Errorf("by number: %+v, %v", d, err)
		}
	}
}

// The PARTUUID is that of the table which the kernel goes by: a GPT left over below an
// MBR does not count, and neither does what no number of a partition can be.
func TestPartitionUUIDAsTheKernel(t *testing.T) {
	want := map[string]string{
		"mbr": "1234abcd-02", "mbr with a stale gpt": "1234abcd-02", "iso, hybrid with an unprotected gpt": "1234abcd-02", "logical, a loop": "1234abcd-02",
		"gpt": "00112233-4455-6677-8899-aabbccddee02", "gpt, hybrid": "00112233-4455-6677-8899-aabbccddee02", "gpt in blocks of 4096": "00112233-4455-6677-8899-aabbccddee02",
		"nothing": "", "gpt, header damaged": "", "gpt, one beyond the end": "00112233-4455-6677-8899-aabbccddee02", "gpt of 512 on blocks of 4096": "",
	}
	for _, c := range partcorpus.Cases() {
		id, chosen := want[c.Name]
		if !chosen {
			continue
		}
		delete(want, c.Name)
		disk := Disk{ReaderAt: bytes.NewReader(c.Image()), Block: int64(c.Block), Size: partcorpus.Sectors}
		if got, err := partitionUUID(disk, 2); got != id || (err == nil) != (id != "") {
			t.Errorf("%s: %q (%v), want %q", c.Name, got, err, id)
		}
		for _, number := range []int{0, -1, 256} {
			if got, err := partitionUUID(disk, number); err == nil {
				t.Errorf("%s: partition %d is %q", c.Name, number, got)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("not in the corpus: %v", want)
	}
}
