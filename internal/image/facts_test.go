package image

import (
	"encoding/binary"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

const mountText = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
41 22 7:0 / /mnt/with\040blank rw,noatime shared:7 master:2 - ext4 /dev/loop0 rw,data=journal
42 22 7:0 /sub /mnt/bind ro,relatime - ext4 /dev/loop0 rw,data=journal
43 22 7:1 / /mnt/x rw,relatime - xfs /dev/mapper/a-b rw,attr2,inode64,logdev=/dev/sdb,rtdev=/dev/sdc,noquota
44 22 0:40 / /mnt/f rw - fuse.sshfs host:/dir rw,user_id=0
`

func TestFindMount(t *testing.T) {
	tests := map[uint64]Mount{
		41: {41, "ext4", "/dev/loop0", dmtable.Device{Major: 7}, "/", "/mnt/with blank", []string{"rw", "noatime"}, []string{"rw", "data=journal"}},
		42: {42, "ext4", "/dev/loop0", dmtable.Device{Major: 7}, "/sub", "/mnt/bind", []string{"ro", "relatime"}, []string{"rw", "data=journal"}},
		44: {44, "fuse.sshfs", "host:/dir", dmtable.Device{Minor: 40}, "/", "/mnt/f", []string{"rw"}, []string{"rw", "user_id=0"}},
	}
	mounts, err := parseMounts(mountText)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range tests {
		if got, found := findMount(mounts, id); !found || !reflect.DeepEqual(got, want) {
			t.Errorf("mount %d: %+v, %v, want %+v", id, got, found, want)
		}
	}
	if got, found := findMount(mounts, 4); found {
		t.Errorf("mount 4: %+v", got)
	}
	xfs, _ := findMount(mounts, 43)
	if xfs.superValue("rtdev") != "/dev/sdc" || xfs.superValue("logdev") != "/dev/sdb" || xfs.superValue("attr2") != "" {
		t.Errorf("xfs: %+v", xfs)
	}
	if _, err := parseMounts("garbage\n"); err == nil {
		t.Error("garbage was read as mountinfo")
	}
}

func TestHasLine(t *testing.T) {
	const options = "rw\ndata=ordered\nmb_optimize_scan=1\n"
	for line, want := range map[string]bool{"data=ordered": true, "data=journal": false, "data": false, "rw": true, "": false} {
		if got, err := hasLine(strings.NewReader(options), line); err != nil || got != want {
			t.Errorf("hasLine(%q) = %v, %v", line, got, err)
		}
	}
}

func TestParseF2FSDevices(t *testing.T) {
	super := func(paths ...string) []byte {
		buf := make([]byte, f2fsSuperSize)
		binary.LittleEndian.PutUint32(buf, unix.F2FS_SUPER_MAGIC)
		for i, path := range paths {
			copy(buf[f2fsDevsOffset+i*f2fsDevSize:], path)
		}
		return buf
	}
	tests := []struct {
		super []byte
		want  int
	}{{super(), 1}, {super("/dev/sda"), 1}, {super("/dev/sda", "/dev/sdb"), 2}, {super("1", "2", "3", "4", "5", "6", "7", "8"), 8}}
	for _, tt := range tests {
		if got, err := parseF2FSDevices(tt.super); err != nil || got != tt.want {
			t.Errorf("got %d devices, %v, want %d", got, err, tt.want)
		}
	}
	for name, bad := range map[string][]byte{"short": super()[:f2fsSuperSize-1], "empty": nil, "no magic": make([]byte, f2fsSuperSize)} {
		if got, err := parseF2FSDevices(bad); err == nil {
			t.Errorf("%s: got %d devices, want an error", name, got)
		}
	}
}

// goodFacts are those of a file that can be mapped.
func goodFacts() Facts {
	dev := dmtable.Device{Major: 253, Minor: 1}
	return Facts{
		Filesystem: "ext4", Magic: unix.EXT4_SUPER_MAGIC, BlockSize: 4096, Size: 1 << 20, Links: 1,
		Device: dev, Mount: Mount{Type: "ext4", Device: dev}, InodeFlags: inode.Extents, Devices: DeviceUse{Count: 1},
	}
}

func TestFactsProblems(t *testing.T) {
	tests := []struct {
		name   string
		change func(f *Facts)
		want   []extents.Rule
	}{
		{"good", func(*Facts) {}, nil},
		{"two links", func(f *Facts) { f.Links = 2 }, nil},
		{"empty", func(f *Facts) { f.Size = 0 }, []extents.Rule{extents.Empty}},
		{"unaligned", func(f *Facts) { f.Size++ }, []extents.Rule{extents.SizeUnaligned}},
		{"one sector", func(f *Facts) { f.Size = 512 }, []extents.Rule{extents.SizeUnaligned}},
		{"block size 0", func(f *Facts) { f.BlockSize, f.Filesystem = 0, "odd" }, []extents.Rule{extents.UnsupportedFS}},
		{"ext3", func(f *Facts) { f.Filesystem = "ext3" }, []extents.Rule{extents.UnsupportedFS}},
		{"a mount that lies", func(f *Facts) { f.Magic = unix.TMPFS_MAGIC }, []extents.Rule{extents.UnsupportedFS}},
		{"overlay", func(f *Facts) { f.Filesystem, f.Magic = "overlay", unix.OVERLAYFS_SUPER_MAGIC }, []extents.Rule{extents.UnsupportedFS}},
		{"no device", func(f *Facts) { f.Device.Major = 0 }, []extents.Rule{extents.UnsupportedFS}},
		{"no recovery", func(f *Facts) { f.Mount.SuperOptions = []string{"ro", "norecovery"} }, []extents.Rule{extents.UnsupportedFS}},
		{"no recovery on f2fs", func(f *Facts) {
			f.Filesystem, f.Magic, f.Mount.SuperOptions = "f2fs", unix.F2FS_SUPER_MAGIC, []string{"ro", "disable_roll_forward"}
		}, []extents.Rule{extents.UnsupportedFS}},
		{"f2fs without checkpoints", func(f *Facts) {
			f.Filesystem, f.Magic, f.Mount.SuperOptions = "f2fs", unix.F2FS_SUPER_MAGIC, []string{"rw", "fsync_mode=posix", "checkpoint=disable:0"}
		}, []extents.Rule{extents.UnsupportedFS}},
		{"f2fs with checkpoints by a thread", func(f *Facts) {
			f.Filesystem, f.Magic, f.Mount.SuperOptions = "f2fs", unix.F2FS_SUPER_MAGIC, []string{"rw", "checkpoint_merge", "nobarrier"}
		}, nil},
		{"ext4 that has stopped", func(f *Facts) { f.Mount.SuperOptions = []string{"rw", "emergency_ro"} }, []extents.Rule{extents.UnsupportedFS}},
		{"ext4 with harmless options", func(f *Facts) {
			f.Mount.SuperOptions = []string{"rw", "data=writeback", "nobarrier", "discard", "nodelalloc", "journal_async_commit"}
		}, nil},
		{"btrfs in need of rescue", func(f *Facts) {
			f.Filesystem, f.Magic, f.Mount.SuperOptions = "btrfs", unix.BTRFS_SUPER_MAGIC, []string{"ro", "rescue=nologreplay:ignorebadroots"}
		}, []extents.Rule{extents.UnsupportedFS}},
		{"ntfs3 by force", func(f *Facts) {
			f.Filesystem, f.Magic, f.Mount.Type, f.Mount.SuperOptions = "ntfs3", 0x7366746e, "ntfs3", []string{"rw", "force"}
		}, []extents.Rule{extents.UnsupportedFS}},
		{"vfat", func(f *Facts) {
			f.Filesystem, f.Magic, f.Mount.Type, f.BlockSize = "vfat", unix.MSDOS_SUPER_MAGIC, "vfat", 512
		}, nil},
		{"another device", func(f *Facts) { f.Device.Minor = 7 }, []extents.Rule{extents.UnsupportedFS}},
		{"encrypted", func(f *Facts) { f.InodeFlags |= inode.Encrypt }, []extents.Rule{extents.Encrypted}},
		{"encrypted by statx", func(f *Facts) { f.Attributes |= unix.STATX_ATTR_ENCRYPTED }, []extents.Rule{extents.Encrypted}},
		{"compressed", func(f *Facts) { f.InodeFlags |= inode.Compress }, []extents.Rule{extents.Compressed}},
		{"verity", func(f *Facts) { f.Attributes |= unix.STATX_ATTR_VERITY }, []extents.Rule{extents.Verity}},
		{"dax", func(f *Facts) { f.Attributes |= unix.STATX_ATTR_DAX }, []extents.Rule{extents.DAX}},
		{"dax wanted", func(f *Facts) { f.XFlags |= inode.XDAX }, []extents.Rule{extents.DAX}},
		{"data journal", func(f *Facts) { f.DataJournal = JournalMount }, []extents.Rule{extents.DataJournal}},
		{"data journal for a new reason", func(f *Facts) { f.DataJournal = "moon" }, []extents.Rule{extents.DataJournal}},
		{"realtime", func(f *Facts) { f.XFlags |= inode.XRealtime }, []extents.Rule{extents.Realtime}},
		{"two devices", func(f *Facts) { f.Devices.Count = 2 }, []extents.Rule{extents.MultiDevice}},
		{"who knows how many", func(f *Facts) { f.Devices = DeviceUse{Unknown: "permission denied"} }, []extents.Rule{extents.MultiDevice}},
		{"swap", func(f *Facts) { f.Swap = SwapStatus{true, "/swap"} }, []extents.Rule{extents.ActiveSwap}},
		{"indirect", func(f *Facts) { f.InodeFlags = 0 }, []extents.Rule{extents.Indirect}},
		{"several", func(f *Facts) { f.Size, f.InodeFlags = 1000, inode.Verity }, []extents.Rule{extents.SizeUnaligned, extents.Verity, extents.Indirect}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			facts := goodFacts()
			tt.change(&facts)
			var got []extents.Rule
			for _, p := range facts.Problems(0, facts.Size) {
				got = append(got, p.Rule)
				if p.Message == "" {
					t.Errorf("%s has no message", p.Rule)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestUnalignedWindow(t *testing.T) {
	type place struct{ offset, length extents.Bytes }
	tests := []struct {
		offset, length, size extents.Bytes
		want                 []place
	}{
		{0, 1 << 20, 1 << 20, nil},
		{4096, 8192, 1 << 20, nil},
		{512, 8192, 1 << 20, []place{{}}},
		{512, 1<<20 - 512, 1 << 20, []place{{}}},
		{4096, 5000, 1 << 20, []place{{8192, 904}}},
		{0, 513, 1 << 20, []place{{0, 513}}},
		{4097, 100, 1 << 20, []place{{}, {4097, 100}}},
		{512, 1<<20 - 412, 1<<20 + 100, []place{{}, {1 << 20, 100}}},
	}
	for _, tt := range tests {
		facts := goodFacts()
		facts.Size = tt.size
		var got []place
		for _, p := range facts.Problems(tt.offset, tt.length) {
			if p.Rule != extents.SizeUnaligned {
				t.Errorf("window %d+%d: %+v", tt.offset, tt.length, p)
			}
			got = append(got, place{p.Offset, p.Length})
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("window %d+%d of %d: got %v, want %v", tt.offset, tt.length, tt.size, got, tt.want)
		}
	}
}

func TestFactsSurviveJSON(t *testing.T) {
	facts := goodFacts()
	facts.DataJournal, facts.Swap, facts.Mount.SuperOptions = JournalAttribute, SwapStatus{true, "/swap"}, []string{"rw"}
	text, err := json.Marshal(facts)
	if err != nil {
		t.Fatal(err)
	}
	var back Facts
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, facts) {
		t.Errorf("came back as %+v, %v", back, err)
	}
}
