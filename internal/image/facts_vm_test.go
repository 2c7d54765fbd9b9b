//go:build vmtest

package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/ioctl"
	"dmloop/internal/vmtest"

	"golang.org/x/sys/unix"
)

// shell runs a script in dir.
func shell(t *testing.T, dir, script string) {
	t.Helper()
	vmtest.Must(t, "sh", "-ec", "cd \"$0\"; "+script, dir)
}

// factsOf opens the file and reads its facts.
func factsOf(t *testing.T, path string) Facts {
	t.Helper()
	facts, err := openImage(t, path).Facts()
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

// rulesOf returns the rules that the whole file breaks by its facts.
func rulesOf(facts Facts) []extents.Rule {
	var rules []extents.Rule
	for _, p := range facts.Problems(0, facts.Size) {
		rules = append(rules, p.Rule)
	}
	return rules
}

const megabyte = "head -c 1M /dev/urandom >f; sync f"

// TestRulesOfRealFiles provokes each rule that the facts can break.
func TestRulesOfRealFiles(t *testing.T) {
	tests := []struct {
		name, fs string
		mkfs     []string
		mount    []string
		script   string // makes the file f
		want     []extents.Rule
		words    string // in the first message
	}{
		{"good ext4", "ext4", nil, nil, megabyte, nil, ""},
		{"good ext4 without a journal", "ext4", []string{"-O", "^has_journal"}, nil, megabyte, nil, ""},
		{"good ext4 with bigalloc", "ext4", []string{"-O", "bigalloc", "-C", "65536"}, nil, megabyte, nil, ""},
		{"good xfs", "xfs", nil, nil, megabyte, nil, ""},
		{"good f2fs", "f2fs", nil, nil, megabyte, nil, ""},
		{"empty", "xfs", nil, nil, ">f", []extents.Rule{extents.Empty}, "empty"},
		{"unaligned", "ext4", nil, nil, "head -c 513 /dev/urandom >f", []extents.Rule{extents.SizeUnaligned}, "513"},
		{"aligned to 1 KiB blocks", "ext4", []string{"-b", "1024"}, nil, "head -c 3072 /dev/urandom >f", nil, ""},
		{"unaligned to 4 KiB blocks", "xfs", nil, nil, "head -c 3072 /dev/urandom >f", []extents.Rule{extents.SizeUnaligned}, "3072"},
		{"indirect blocks", "ext4", []string{"-O", "^extent,^64bit"}, nil, megabyte, []extents.Rule{extents.Indirect}, "indirect"},
		{"ext3", "ext4", []string{"-O", "^extent,^64bit,^flex_bg,^huge_file,^dir_nlink,^extra_isize,^metadata_csum"}, []string{"-t", "ext3"}, megabyte, []extents.Rule{extents.UnsupportedFS}, "ext3"},
		{"data=journal", "ext4", nil, []string{"-o", "data=journal"}, megabyte, []extents.Rule{extents.DataJournal}, "mount option"},
		{"chattr +j", "ext4", nil, nil, megabyte + "; chattr +j f", []extents.Rule{extents.DataJournal}, "chattr +j"},
		{"compressed", "btrfs", nil, nil, megabyte + "; chattr +c f", []extents.Rule{extents.Compressed}, "compress"},
		{"active swap", "ext4", nil, nil, megabyte + "; chmod 600 f; mkswap -q f; swapon f", []extents.Rule{extents.ActiveSwap}, "swap"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, tt.fs, disk, tt.mkfs...)
			dir := vmtest.Mount(t, disk, tt.mount...)
			shell(t, dir, tt.script)
			path := filepath.Join(dir, "f")
			t.Cleanup(func() { vmtest.Run(t, "swapoff", path) })
			facts := factsOf(t, path)
			problems := facts.Problems(0, facts.Size)
			if got := rulesOf(facts); !slices.Equal(got, tt.want) {
				t.Fatalf("got %v, want %v: %+v", got, tt.want, facts)
			}
			if len(problems) > 0 && !strings.Contains(problems[0].Message, tt.words) {
				t.Errorf("message is %q, want something about %q", problems[0].Message, tt.words)
			}
		})
	}
}

func TestSuperblockDefaultIsNotInMountinfo(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	vmtest.Must(t, "tune2fs", "-o", "journal_data", disk)
	dir := vmtest.Mount(t, disk)
	shell(t, dir, megabyte)
	facts := factsOf(t, filepath.Join(dir, "f"))
	if facts.Mount.HasSuperOption(journalOption) {
		t.Error("premise: mountinfo shows the superblock's default, so this test proves nothing")
	}
	if facts.DataJournal != JournalSuperblock {
		t.Errorf("DataJournal is %q", facts.DataJournal)
	}
}

func TestForeignFileSystemsAreNamed(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	dir := vmtest.Mount(t, disk)
	shell(t, dir, "mkdir lower upper work merged tmp; head -c 4096 /dev/urandom >lower/f")
	merged, tmp := filepath.Join(dir, "merged"), filepath.Join(dir, "tmp")
	vmtest.Must(t, "mount", "-t", "overlay", "-o", "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work", "overlay", merged)
	t.Cleanup(func() { vmtest.Must(t, "umount", merged) })
	vmtest.Must(t, "mount", "-t", "tmpfs", "tmpfs", tmp)
	t.Cleanup(func() { vmtest.Must(t, "umount", tmp) })
	shell(t, tmp, "head -c 4096 /dev/urandom >f")
	for path, name := range map[string]string{filepath.Join(merged, "f"): "overlay", filepath.Join(tmp, "f"): "tmpfs"} {
		facts := factsOf(t, path)
		problems := facts.Problems(0, facts.Size)
		if len(problems) == 0 || problems[0].Rule != extents.UnsupportedFS || !strings.Contains(problems[0].Message, name) {
			t.Errorf("%s: %v", name, problems)
		}
	}
}

// One file system at several places: the facts are those of the mount that the file
// was opened through.
func TestMountIsTheOneOpenedThrough(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "xfs", disk)
	dir := vmtest.Mount(t, disk)
	shell(t, dir, "mkdir 'a b'; "+megabyte+"; ln f 'a b/f'")
	bind := t.TempDir()
	vmtest.Must(t, "mount", "--bind", "-o", "ro", filepath.Join(dir, "a b"), bind)
	t.Cleanup(func() { vmtest.Must(t, "umount", bind) })
	direct, bound := factsOf(t, filepath.Join(dir, "f")), factsOf(t, filepath.Join(bind, "f"))
	if direct.Mount.Point != dir || direct.Mount.Root != "/" || direct.ReadOnly {
		t.Errorf("direct: %+v", direct)
	}
	if bound.Mount.Point != bind || bound.Mount.Root != "/a b" || !bound.ReadOnly {
		t.Errorf("bind mount: %+v", bound)
	}
	if direct.Device != bound.Device || direct.Links != 2 || len(rulesOf(bound)) != 0 {
		t.Errorf("the same file twice: %+v and %+v", direct, bound)
	}
}

func TestXFSFacts(t *testing.T) {
	for option, want := range map[string]bool{"reflink=1": true, "reflink=0": false} {
		t.Run(option, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, "xfs", disk, "-m", option)
			dir := vmtest.Mount(t, disk)
			shell(t, dir, megabyte)
			if facts := factsOf(t, filepath.Join(dir, "f")); facts.Reflink != want || facts.Devices.Count != 1 {
				t.Errorf("got %+v", facts)
			}
		})
	}
}

// An external log holds no file data and is no obstacle; a real-time device is.
func TestXFSOnTwoDisks(t *testing.T) {
	data, extra := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
	t.Run("log", func(t *testing.T) {
		vmtest.Mkfs(t, "xfs", data, "-l", "logdev="+extra+",size=256m")
		dir := vmtest.Mount(t, data, "-o", "logdev="+extra)
		shell(t, dir, megabyte)
		if got := rulesOf(factsOf(t, filepath.Join(dir, "f"))); len(got) != 0 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("realtime", func(t *testing.T) {
		vmtest.Mkfs(t, "xfs", data, "-m", "reflink=0,rmapbt=0", "-r", "rtdev="+extra)
		dir := vmtest.Mount(t, data, "-o", "rtdev="+extra)
		shell(t, dir, megabyte+"; xfs_io -f -c 'chattr +r' -c 'pwrite -q 0 1m' -c fsync r")
		if got := rulesOf(factsOf(t, filepath.Join(dir, "f"))); len(got) != 0 {
			t.Errorf("plain file: %v", got)
		}
		if got := rulesOf(factsOf(t, filepath.Join(dir, "r"))); !slices.Equal(got, []extents.Rule{extents.Realtime}) {
			t.Errorf("real-time file: %v", got)
		}
	})
}

func TestF2FSFacts(t *testing.T) {
	a, b := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
	t.Run("two disks", func(t *testing.T) {
		vmtest.Mkfs(t, "f2fs", a, "-c", b)
		dir := vmtest.Mount(t, a)
		shell(t, dir, megabyte)
		facts := factsOf(t, filepath.Join(dir, "f"))
		if got := rulesOf(facts); !slices.Equal(got, []extents.Rule{extents.MultiDevice}) || facts.Devices.Count != 2 {
			t.Errorf("got %v, %+v", got, facts.Devices)
		}
	})
	t.Run("pin", func(t *testing.T) {
		vmtest.Mkfs(t, "f2fs", a)
		dir := vmtest.Mount(t, a)
		shell(t, dir, ">f")
		if facts := factsOf(t, filepath.Join(dir, "f")); facts.Pin.Pinned {
			t.Errorf("a new file is pinned: %+v", facts.Pin)
		}
		shell(t, dir, "f2fs_io pinfile set f >/dev/null; fallocate -l 4M f")
		if facts := factsOf(t, filepath.Join(dir, "f")); !facts.Pin.Pinned || facts.Pin.Failures != 0 {
			t.Errorf("a pinned file: %+v", facts.Pin)
		}
	})
}

func TestBtrfsFacts(t *testing.T) {
	a, b := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
	vmtest.Mkfs(t, "btrfs", a, "-d", "single", b)
	dir := vmtest.Mount(t, a)
	shell(t, dir, ">f; chattr +C f; head -c 1M /dev/urandom >f")
	facts := factsOf(t, filepath.Join(dir, "f"))
	if facts.Devices.Count != 2 || !facts.NoCOW() || facts.Device.Major != 0 {
		t.Errorf("got %+v", facts)
	}
}

// TestQemuVerity needs a kernel with fs-verity, which User Mode Linux has not.
func TestQemuVerity(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk, "-O", "verity")
	dir := vmtest.Mount(t, disk)
	shell(t, dir, megabyte)
	path := filepath.Join(dir, "f")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// struct fsverity_enable_arg: version 1, SHA-256 (1), blocks of 4096 bytes.
	arg := [32]uint32{1, 1, 4096}
	if err := ioctl.Pointer(int(f.Fd()), ioctl.Request{Number: unix.FS_IOC_ENABLE_VERITY, Name: "FS_IOC_ENABLE_VERITY"}, &arg); err != nil {
		t.Fatal(err)
	}
	if got := rulesOf(factsOf(t, path)); !slices.Equal(got, []extents.Rule{extents.Verity}) {
		t.Errorf("got %v", got)
	}
}

// TestQemuEncrypted needs a kernel with fscrypt.
func TestQemuEncrypted(t *testing.T) {
	for _, fs := range []string{"ext4", "f2fs"} {
		t.Run(fs, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, fs, disk, "-O", "encrypt")
			dir := vmtest.Mount(t, disk)
			shell(t, dir, `mkdir secret
				id=$(head -c 64 /dev/zero | xfs_io -c add_enckey . | sed 's/.* //')
				xfs_io -c "set_encpolicy -v 2 $id" secret
				head -c 1M /dev/urandom >secret/f; sync secret/f`)
			if got := rulesOf(factsOf(t, filepath.Join(dir, "secret", "f"))); !slices.Equal(got, []extents.Rule{extents.Encrypted}) {
				t.Errorf("got %v", got)
			}
		})
	}
}
