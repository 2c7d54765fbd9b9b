//go:build vmtest

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dmloop/internal/vmtest"
)

// growHosts are those of the file systems on which images grow here. The f2fs of newer kernels takes no write beyond
// the end of a pinned file.
func growHosts(t testing.TB, some ...hostKind) []hostKind {
	if everything() {
		some = []hostKind{ext4Host, ext4Host1K, xfsHost, xfsHost1K, f2fsHost}
	}
	return slices.DeleteFunc(some, func(k hostKind) bool { return k.fstype == "f2fs" && vmtest.Kernel(t) == "new" })
}

// neighbours are files beside an image, by their names, with their checksums.
type neighbours map[string]string

// neighbour makes a file of random bytes.
func (n neighbours) add(t testing.TB, h *host, name string) {
	t.Helper()
	vmtest.RandomFile(t, h.path(name), 1<<20, uint64(len(n)+1))
	n[h.path(name)] = vmtest.ChecksumFile(t, h.path(name))
}

func (n neighbours) same(t testing.TB, when string) {
	t.Helper()
	for path, sum := range n {
		if got := vmtest.ChecksumFile(t, path); got != sum {
			t.Errorf("%s: the neighbour %s changed", when, path)
		}
	}
}

// startsWith fails the test unless the first size bytes of a file lie where they lay.
func startsWith(t testing.TB, when string, was, is []row, size int64) {
	t.Helper()
	if got := clipRows(is, size); !slices.Equal(got, clipRows(was, size)) {
		t.Errorf("%s: the old part lay at %v, now at %v", when, clipRows(was, size), got)
	}
}

// clipRows is what filefrag says of the first size bytes, neighbours joined.
func clipRows(rows []row, size int64) (clipped []row) {
	for _, r := range rows {
		if r.Logical >= size {
			break
		}
		r.Length = min(r.Length, size-r.Logical)
		if n := len(clipped); n > 0 && clipped[n-1].Physical+clipped[n-1].Length == r.Physical && clipped[n-1].Logical+clipped[n-1].Length == r.Logical {
			clipped[n-1].Length += r.Length
			continue
		}
		clipped = append(clipped, r)
	}
	return clipped
}

// headSum is the checksum of a file's or device's first bytes.
func headSum(t testing.TB, path string, size int64) string {
	t.Helper()
	return vmtest.Must(t, "sh", "-c", `head -c "$1" "$0" | sha256sum`, path, fmt.Sprint(size))
}

// zerosBehind fails the test unless all bytes of a file from at on are zeros, up to size.
func zerosBehind(t testing.TB, when, path string, at, size int64) {
	t.Helper()
	if r := vmtest.Run(t, "cmp", "-n", fmt.Sprint(size-at), "-i", fmt.Sprintf("%d:0", at), path, "/dev/zero"); r.Code != 0 {
		t.Errorf("%s: what is new is not zeros: %s%s", when, r.Stdout, r.Stderr)
	}
}

func sizeOf(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// An image that is not mapped becomes longer: it can be mapped, its content and its neighbours are what they
// were, and where the disk held something there are zeros.
func TestGrowUnmapped(t *testing.T) {
	for _, kind := range append(growHosts(t, ext4Host, f2fsHost), btrfsHost) {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			soilHost(t, h)
			image := h.image(t, "image.img", "8M")
			beside := neighbours{}
			beside.add(t, h, "behind")
			fill(t, image, 8<<20, 1)
			was, sum := filefrag(t, image), headSum(t, image, 8<<20)
			size := int64(8 << 20)
			for i, to := range []string{"+4M", "12M", "20M", "+4096"} {
				old := size
				size = []int64{12 << 20, 12 << 20, 20 << 20, 20<<20 + 4096}[i]
				r := expect(t, 0, "grow", image, to)
				if nothing := strings.Contains(r.Stdout, "nothing to do"); nothing != (size == old) {
					t.Errorf("grow %s: %s", to, r.Stdout)
				}
				if got := sizeOf(t, image); got != size {
					t.Fatalf("grow %s: %d bytes instead of %d", to, got, size)
				}
				startsWith(t, to, was, filefrag(t, image), 8<<20)
				zerosBehind(t, to, image, 8<<20, size)
				if headSum(t, image, 8<<20) != sum {
					t.Errorf("grow %s: the content changed", to)
				}
				beside.same(t, to)
			}
			h.remount(t)
			zerosBehind(t, "remounted", image, 8<<20, size)
			if kind.fstype != "btrfs" {
				mappable(t, kind, image)
				dev := mapIt(t, image, "image")
				zerosBehind(t, "on the device", dev, 8<<20, size)
				expect(t, 0, "unmap", "image")
			}
			h.check(t)
			nothingLeft(t, image)
		})
	}
}

// soilHost has the free blocks of a host hold something.
func soilHost(t testing.TB, h *host) {
	t.Helper()
	vmtest.Run(t, "sh", "-c", `tr '\000' '\252' </dev/zero | dd of="$0"/soil bs=1M count=40 iflag=fullblock oflag=direct status=none`, h.dir)
	shell(t, h.dir, "sync -f .; rm soil; sync -f .")
}

// grownJSON is what grow --json prints.
type grownJSON struct {
	Image   string `json:"image"`
	Name    string `json:"name"`
	Device  string `json:"device"`
	OldSize int64  `json:"old_size"`
	Size    int64  `json:"size"`
	Extents int    `json:"extents"`
}

// A mapping whose device is written and read meanwhile becomes longer step by step.
func TestGrowMapped(t *testing.T) {
	for _, kind := range growHosts(t, ext4Host1K, xfsHost, f2fsHost) {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			soilHost(t, h)
			image := h.image(t, "image.img", "8M")
			beside := neighbours{}
			beside.add(t, h, "behind")
			dev := mapIt(t, image, "image")
			sum := fill(t, dev, 8<<20, 1)
			was := filefrag(t, image)
			size := int64(8 << 20)
			for i := range 4 {
				beside.add(t, h, fmt.Sprint("between", i)) // so that not all is one piece
				var g grownJSON
				if err := json.Unmarshal([]byte(expect(t, 0, "grow", "--unsafe", "--json", "image", "+2M").Stdout), &g); err != nil {
					t.Fatal(err)
				}
				if want := (grownJSON{image, "image", dev, size, size + 2<<20, g.Extents}); g != want || g.Extents == 0 {
					t.Errorf("grow --json says %+v, not %+v", g, want)
				}
				size += 2 << 20
				when := fmt.Sprint("step ", i)
				if got := vmtest.Sectors(t, dev); got != size/512 || sizeOf(t, image) != size {
					t.Fatalf("%s: the device has %d sectors, the file %d bytes, not %d", when, got, sizeOf(t, image), size)
				}
				startsWith(t, when, was, filefrag(t, image), 8<<20)
				zerosBehind(t, when, dev, 8<<20, size)
				if got := headSum(t, dev, 8<<20); !strings.HasPrefix(got, sum) {
					t.Errorf("%s: the content changed: %s, not %s", when, got, sum)
				}
				expect(t, 0, "verify", "image")
				if left := look(t, image); left != (remains{true, true, true, true}) {
					t.Errorf("%s: %+v", when, left)
				}
				beside.same(t, when)
			}
			wrote := fill(t, dev, size, 2)
			sameAsFilefrag(t, "image", image)
			expect(t, 0, "unmap", "image")
			if got := vmtest.ChecksumFile(t, image); got != wrote {
				t.Error("the file does not hold what was written through the longer device")
			}
			beside.same(t, "after writing")
			h.check(t)
			nothingLeft(t, image)
		})
	}
}

// tableRows is what the live table of a mapping shows, on the disk below the shim.
func tableRows(t testing.TB, name string) (table []row) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(vmtest.Must(t, "dmsetup", "table", name)), "\n") {
		var start, length, physical int64
		var target, dev string
		if _, err := fmt.Sscan(line, &start, &length, &target, &dev, &physical); err != nil || target != "linear" {
			t.Fatalf("%q: %v", line, err)
		}
		table = append(table, row{start * 512, physical * 512, length * 512})
	}
	return table
}

// sameAsFilefrag compares the live table with where filefrag says that the file lies.
func sameAsFilefrag(t testing.TB, name, image string) {
	t.Helper()
	if table, want := tableRows(t, name), clipRows(filefrag(t, image), sizeOf(t, image)); !slices.Equal(table, want) {
		t.Errorf("the table shows %v, filefrag says %v", table, want)
	}
}

// A sealed image grows while it is not mapped, and is sealed again.
func TestGrowSealed(t *testing.T) {
	for _, kind := range append(growHosts(t, xfsHost), btrfsHost) {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			soilHost(t, h)
			image := h.image(t, "image.img", "8M")
			beside := neighbours{}
			beside.add(t, h, "behind")
			fill(t, image, 8<<20, 1)
			sum := headSum(t, image, 8<<20)
			expect(t, 0, "seal", image)
			expect(t, 0, "map", "--no-guard", image, "image")
			r := expect(t, 5, "grow", "image", "+1M")
			if !strings.Contains(r.Stderr, "is sealed") || !strings.Contains(r.Stderr, "dmloop unmap image && dmloop grow "+image+" SIZE && dmloop map "+image+" image") {
				t.Errorf("a sealed image that is mapped: %s", r.Stderr)
			}
			expect(t, 0, "unmap", "image")
			expect(t, 0, "grow", image, "12M")
			if r := expect(t, 0, "check", image); !strings.Contains(r.Stdout, "sealed") {
				t.Errorf("it is not sealed any more: %s", r.Stdout)
			}
			expect(t, 0, "map", "--no-guard", image, "image")
			if got := strings.Fields(headSum(t, "/dev/mapper/image", 8<<20))[0]; got != strings.Fields(sum)[0] {
				t.Error("the device shows something else")
			}
			if size := vmtest.Sectors(t, "/dev/mapper/image") * 512; size != 12<<20 {
				t.Errorf("the device has %d bytes", size)
			}
			zerosBehind(t, "on the device", "/dev/mapper/image", 8<<20, 12<<20)
			expect(t, 0, "unmap", "image")
			expect(t, 0, "unseal", image)
			if headSum(t, image, 8<<20) != sum || sizeOf(t, image) != 12<<20 {
				t.Error("unsealed, it is not what it was")
			}
			beside.same(t, "at the end")
			h.check(t)
		})
	}
}

// What is refused says why, and leaves everything as it was.
func TestGrowRefused(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "8M")
	sum := vmtest.ChecksumFile(t, image)
	unchanged := func(args []string) {
		t.Helper()
		if sizeOf(t, image) != 8<<20 || vmtest.ChecksumFile(t, image) != sum {
			t.Errorf("%q: the image changed", args)
		}
	}
	refused := func(code int, says string, args ...string) {
		t.Helper()
		r := cli(append([]string{"grow"}, args...)...)
		if r.Code != code || !strings.Contains(r.Stderr, says) {
			t.Errorf("grow %q: exit code %d, want %d and %q\n%s%s", args, r.Code, code, says, r.Stdout, r.Stderr)
		}
		unchanged(args)
	}
	refused(2, "never made shorter", image, "4M")
	refused(2, "not a multiple", image, "+1000")
	refused(2, "it is not mapped", "--resizefs", image, "+1M")
	refused(2, "the other way round", "16M", image)
	refused(6, "no such mapping", "nobody", "16M")
	refused(1, "not enough space", image, "+10G")
	if r := expect(t, 0, "grow", image, "8M"); !strings.Contains(r.Stdout, "nothing to do") {
		t.Errorf("the same size: %s", r.Stdout)
	}

	// An old part that provision would have to repair.
	vmtest.Must(t, "truncate", "-s", "1M", h.path("sparse.img"))
	refused(3, "dmloop provision", h.path("sparse.img"), "+1M")
	vmtest.Must(t, "chattr", "+i", image)
	refused(7, "somebody else set the flag", image, "+1M")
	vmtest.Must(t, "chattr", "-i", image)

	// Pinned by hand: pinned again afterwards.
	pinned := h.image(t, "pinned.img", "1M")
	expect(t, 0, "pin", pinned)
	expect(t, 0, "grow", pinned, "+1M")
	if left := look(t, pinned); !left.immutable || !left.mark {
		t.Errorf("pinned by hand: %+v", left)
	}
	expect(t, 0, "unpin", pinned)
	nothingLeft(t, pinned)

	mapIt(t, image, "image")
	refused(2, "never made shorter", "image", "4M")
	refused(2, "not a multiple", "image", "+1000")
	refused(5, "neither the gate in the kernel nor a guard keeps others out", "image", "+1M")
	if left := look(t, image); left != (remains{true, true, true, true}) {
		t.Errorf("refused: %+v", left)
	}
	refused(1, "not enough space", "--unsafe", "image", "+10G")
	expect(t, 0, "verify", "image")
	expect(t, 0, "unmap", "image")

	mapIt(t, image, "part", "--offset", "1M", "--sizelimit", "4M")
	refused(5, "size limit", "--unsafe", "part", "+1M")
	expect(t, 0, "unmap", "part")

	// An offset only: the device goes on to the new end.
	dev := mapIt(t, image, "rest", "--offset", "1M")
	expect(t, 0, "grow", "--unsafe", "rest", "+1M")
	if size := vmtest.Sectors(t, dev) * 512; size != 8<<20 || sizeOf(t, image) != 9<<20 {
		t.Errorf("with an offset: the device has %d bytes, the file %d", size, sizeOf(t, image))
	}
	expect(t, 0, "unmap", "rest")

	// Made immutable by somebody else.
	vmtest.Must(t, "chattr", "+i", image)
	mapIt(t, image, "image")
	r := expect(t, 7, "grow", "--unsafe", "image", "+1M")
	if !strings.Contains(r.Stderr, "somebody else made it immutable") {
		t.Errorf("made immutable by hand: %s", r.Stderr)
	}
	expect(t, 0, "unmap", "image")
	vmtest.Must(t, "chattr", "-i", image)
	nothingLeft(t, image)
}

// The disk is full in the middle: old size, old layout, and what was on the disk beside it.
func TestGrowWithoutRoom(t *testing.T) {
	for _, kind := range growHosts(t, ext4Host, f2fsHost) {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.image(t, "image.img", "8M")
			beside := neighbours{}
			beside.add(t, h, "behind")
			dev := mapIt(t, image, "image")
			sum, was := fill(t, dev, 8<<20, 1), filefrag(t, image)
			// The disk says so before anything is done, or when blocks are asked for, or in the middle of the zeros.
			var blocks, block int64
			if _, err := fmt.Sscan(vmtest.Must(t, "stat", "-f", "-c", "%a %S", h.dir), &blocks, &block); err != nil {
				t.Fatal(err)
			}
			tries := []string{"", "fallocate:error=ENOSPC:when=1", "pwrite64:error=ENOSPC:when=1"}
			if kind.name == f2fsHost.name { // it gives whole sections only, which are fewer than what it says is free
				tries = append(tries, "none")
			}
			for _, try := range tries {
				var r vmtest.Result
				switch try {
				case "":
					r = cli("grow", "--unsafe", "image", fmt.Sprintf("+%d", (blocks*block+64<<20)&^(1<<20-1)))
				case "none":
					r = cli("grow", "--unsafe", "image", fmt.Sprintf("+%d", blocks*block&^(1<<20-1)))
				default:
					r = failing(t, try, "grow", "--unsafe", "image", "+12M")
				}
				if r.Code != 1 || !strings.Contains(r.Stderr, "space") {
					t.Errorf("%s: exit code %d\n%s", try, r.Code, r.Stderr)
				}
				if size := sizeOf(t, image); size != 8<<20 || vmtest.Sectors(t, dev)*512 != size {
					t.Errorf("%s: the file has %d bytes", try, size)
				}
				startsWith(t, try, was, filefrag(t, image), 8<<20)
				if got := vmtest.ChecksumFile(t, dev); got != sum {
					t.Errorf("%s: the content changed", try)
				}
				if left := look(t, image); left != (remains{true, true, true, true}) {
					t.Errorf("%s: %+v", try, left)
				}
				expect(t, 0, "verify", "image")
				beside.same(t, try)
			}
			expect(t, 0, "grow", "--unsafe", "image", "+2M")
			expect(t, 0, "unmap", "image")
			h.check(t)
			nothingLeft(t, image)
		})
	}
}

// failing runs a command of which every thread has a system call fail.
func failing(t testing.TB, inject string, args ...string) vmtest.Result {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("strace", append([]string{"-f", "-o", "/dev/null", "-e", "inject=" + inject, self}, args...)...)
	cmd.Env = append(os.Environ(), roleVariable+"=dmloop")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return vmtest.Result{Stdout: out.String(), Stderr: errOut.String(), Code: cmd.ProcessState.ExitCode()}
}

// growLoad are an image's host, what is inside, how long it is in MiB, and how far it grows in how many steps.
type growLoad struct {
	host           hostKind
	inside         string
	size, by, step int
}

// With the gate in the kernel and a guard, an image grows while the file system inside is written and verified, and
// somebody tries to get at it. The file system inside grows with it, online.
func TestQemuGrowExt4Inside(t *testing.T) {
	growUnderLoad(t, growLoad{xfsHost, "ext4", 48, 8, 3}, growLoad{xfsHost, "ext4", 64, 960, 100})
}

func TestQemuGrowXfsInside(t *testing.T) { // which wants 300 MiB
	growUnderLoad(t, growLoad{ext4Host, "xfs", 304, 16, 2}, growLoad{ext4Host, "xfs", 304, 720, 100})
}

func TestQemuGrowOnF2FS(t *testing.T) {
	if vmtest.Kernel(t) == "new" {
		return // TestNewGrowOnF2FS
	}
	growUnderLoad(t, growLoad{f2fsHost, "ext4", 48, 8, 2}, growLoad{f2fsHost, "ext4", 64, 960, 100})
}

// The same in User Mode Linux, where it takes a fraction of the time.
func TestFullGrowUnderLoad(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, xfsHost, f2fsHost} {
		if kind.name == ext4Host.name || everything() {
			t.Run(kind.name, func(t *testing.T) {
				growUnderLoad(t, growLoad{kind, "ext4", 24, 16, 4}, growLoad{kind, "ext4", 64, 960, 100})
			})
		}
	}
	if everything() {
		t.Run("xfs inside", func(t *testing.T) { growSteps(t, growLoad{ext4Host, "xfs", 304, 720, 100}) })
	}
}

// growUnderLoad runs few steps, or all.
func growUnderLoad(t *testing.T, few, all growLoad) {
	l := few
	if everything() {
		l = all
	}
	growSteps(t, l)
}

// In User Mode Linux there is neither gate nor permission event: nobody attacks there.
func growSteps(t *testing.T, l growLoad) {
	gate, unsafe := "bpf", []string{}
	if vmtest.Kernel(t) == "uml" {
		gate, unsafe = "none", []string{"--unsafe"}
	} else {
		withGate(t)
	}
	h := wholeHost(t, l.host)
	image := h.image(t, "image.img", fmt.Sprintf("%dM", l.size))
	beside := neighbours{}
	beside.add(t, h, "behind")
	first := filefrag(t, image)
	dev := dmloopOK(t, append([]string{"map", "--gate=" + gate, image}, unsafe...)...)
	t.Cleanup(func() { cli("unmap", "image"); endGuard(t, "TERM") })
	vmtest.Mkfs(t, l.inside, dev)
	dir := vmtest.Mount(t, dev)
	load := verifyLoad(t, dir)
	through := func() string { return "" }
	if gate == "bpf" {
		through = attacker(t, image, "image")
	}
	// With the gate filefrag may not open the image now, and looks before and after. In between there is the kernel's own table.
	size, was := int64(l.size)<<20, tableRows(t, "image")
	for i := range l.step {
		if i%10 == 1 {
			beside.add(t, h, fmt.Sprint("between", i))
		}
		when, room := fmt.Sprint("step ", i), roomIn(t, dir)
		dmloopOK(t, append([]string{"grow", "--resizefs", "image", fmt.Sprintf("+%dK", l.by<<10/l.step&^3)}, unsafe...)...)
		before := size
		if gate != "bpf" {
			sameAsFilefrag(t, "image", image)
		}
		size = sizeOf(t, image)
		is := tableRows(t, "image")
		startsWith(t, when, was, is, before)
		was = is
		if sectors := vmtest.Sectors(t, dev); sectors*512 != size || size != before+int64(l.by<<10/l.step&^3)<<10 {
			t.Fatalf("%s: the device has %d bytes, the file %d", when, sectors*512, size)
		}
		if now := roomIn(t, dir); now <= room {
			t.Errorf("%s: the file system inside has %d bytes, and had %d", when, now, room)
		}
		if state := strings.TrimSpace(expect(t, 0, "list", "--raw", "-n", "-o", "STATE,GATE,GUARD", "image").Stdout); state != "healthy "+gate+" 1" {
			t.Fatalf("%s: %s\n%s", when, state, guardLog())
		}
	}
	if got := through(); got != "" {
		t.Errorf("got through: %s", got)
	}
	if bad := load(); bad != "" {
		t.Errorf("inside: %s", bad)
	}
	expect(t, 0, "verify", "image")
	vmtest.Umount(t, dir)
	vmtest.Must(t, map[string][]string{"ext4": {"e2fsck", "-fn", dev}, "xfs": {"xfs_repair", "-n", dev}}[l.inside]...)
	expect(t, 0, "unmap", "image")
	startsWith(t, "at the end", first, filefrag(t, image), int64(l.size)<<20)
	startsWith(t, "the table at the end", was, filefrag(t, image), size)
	beside.same(t, "at the end")
	h.check(t)
	nothingLeft(t, image)
}

// wholeHost is a host on all of a disk.
func wholeHost(t testing.TB, kind hostKind) *host {
	t.Helper()
	expect(t, 0, "shim", vmtest.Disk(t, 0), "host")
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "host") })
	vmtest.Mkfs(t, kind.fstype, "/dev/mapper/host", kind.mkfs...)
	return &host{kind: kind, dev: "/dev/mapper/host", dir: vmtest.Mount(t, "/dev/mapper/host")}
}

// roomIn is the size of a file system.
func roomIn(t testing.TB, dir string) (size int64) {
	t.Helper()
	var blocks, block int64
	if _, err := fmt.Sscan(vmtest.Must(t, "stat", "-f", "-c", "%b %S", dir), &blocks, &block); err != nil {
		t.Fatal(err)
	}
	return blocks * block
}

// verifyLoad has fio write to a file and read it back, again and again. The end of it says what was wrong; it has
// come round at least once then.
func verifyLoad(t testing.TB, dir string) (end func() string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "load")
	script := fmt.Sprintf(`while [ ! -e '%[1]s.stop' ]; do
	fio --name=load --filename='%[2]s/load' --size=8M --rw=randwrite --bs=16k --direct=1 --verify=crc32c --verify_fatal=1 --allow_file_create=1 >'%[1]s.last' 2>&1 || {
		cat '%[1]s.last' >>'%[1]s.bad'
		break
	}
	echo round >>'%[1]s'
done`, log, dir)
	cmd := exec.Command("sh", "-c", script)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.WriteFile(log+".stop", nil, 0o600)
		cmd.Wait() // an error when it was waited for
	})
	return func() string {
		rounds := func() int {
			b, _ := os.ReadFile(log)
			return strings.Count(string(b), "round")
		}
		bad := func() string {
			b, _ := os.ReadFile(log + ".bad")
			return string(b)
		}
		await(t, "a round of fio", 3*time.Minute, func() bool { return rounds() > 0 || bad() != "" })
		if err := os.WriteFile(log+".stop", nil, 0o600); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil && bad() == "" {
			t.Error(err)
		}
		t.Logf("%d rounds of fio", rounds())
		return bad()
	}
}

// Where the guard denies opens it keeps others out, of an image that is root's alone: truncate(2) asks no guard.
func TestQemuGrowByGuard(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	defer endGuard(t, "TERM")
	mustDmloop(t, "map", "--gate=fanotify", image)
	dev := "/dev/mapper/image"
	sum := fill(t, dev, 4<<20, 1)
	through := attackerOpens(t, image)
	for size := int64(5 << 20); size <= 7<<20; size += 1 << 20 {
		mustDmloop(t, "grow", "image", "+1M")
		if vmtest.Sectors(t, dev)*512 != size || sizeOf(t, image) != size {
			t.Errorf("the device has %d sectors, the file %d bytes", vmtest.Sectors(t, dev), sizeOf(t, image))
		}
		if state := strings.TrimSpace(mustDmloop(t, "list", "--raw", "-n", "-o", "STATE,GATE,GUARD", "image")); state != "healthy fanotify 1" {
			t.Errorf("%s\n%s", state, guardLog())
		}
	}
	if got := through(); got != "" {
		t.Errorf("got through: %s", got)
	}
	if got := headSum(t, dev, 4<<20); !strings.HasPrefix(got, sum) {
		t.Error("the content changed")
	}
	mustDmloop(t, "unmap", "image")
	vmtest.Must(t, "chmod", "666", image)
	mustDmloop(t, "map", "--gate=fanotify", image)
	if r := dmloop(t, "grow", "image", "+1M"); r.Code != 5 || !strings.Contains(r.Stderr, "keeps others out") {
		t.Errorf("an image that others may write to: exit code %d\n%s", r.Code, r.Stderr)
	}
	mustDmloop(t, "unmap", "image")
	nothingLeft(t, image)
}

// attackerOpens tries to open an image, again and again.
func attackerOpens(t *testing.T, image string) (through func() string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "through")
	cmd := exec.Command("sh", "-c", fmt.Sprintf("while [ ! -e '%[2]s.stop' ]; do cat '%[1]s' >/dev/null 2>&1 && echo opened >>'%[2]s'; done", image, log))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		os.WriteFile(log+".stop", nil, 0o600)
		cmd.Wait() //nolint:errcheck // of its last cat
		got, _ := os.ReadFile(log)
		return string(got)
	}
}

// The f2fs of newer kernels would show what the disk held before.
func TestNewGrowOnF2FS(t *testing.T) {
	h := newHost(t, f2fsHost, "shim")
	soilHost(t, h)
	image := h.image(t, "image.img", "8M")
	refused := func(args ...string) {
		t.Helper()
		if r := expect(t, 8, args...); !strings.Contains(r.Stderr, "takes no write beyond the end") || !strings.Contains(r.Stderr, "conv=notrunc") {
			t.Errorf("%q: %s", args, r.Stderr)
		}
		if size := sizeOf(t, image); size != 8<<20 {
			t.Errorf("%q: the file has %d bytes", args, size)
		}
	}
	refused("grow", image, "+4M")
	mappable(t, f2fsHost, image)
	dev := mapIt(t, image, "image")
	refused("grow", "--unsafe", "image", "+4M")
	if left := look(t, image); left != (remains{true, true, true, true}) || vmtest.Sectors(t, dev) != 16384 {
		t.Errorf("mapped: %+v, %d sectors", left, vmtest.Sectors(t, dev))
	}
	expect(t, 0, "verify", "image")
	expect(t, 0, "unmap", "image")
	h.check(t)
}

// The gate guards the rows of the host that hold what is new, from before the mapping shows it.
func TestQemuGrowGateRows(t *testing.T) {
	withGate(t)
	h := newHost(t, ext4Host, "linear")
	h.roomAtBorder(t)
	image := h.image(t, "image.img", "4M")
	dmloopOK(t, "map", image)
	t.Cleanup(func() { cli("unmap", "image") })
	lies := func(disk string) bool {
		return strings.Contains(vmtest.Must(t, "dmsetup", "table", "image"), " "+disk+" ")
	}
	rows := strings.Split(strings.TrimSpace(vmtest.Must(t, "dmsetup", "table", "host")), "\n")
	if len(rows) != 2 {
		t.Fatalf("the host has the rows %q", rows)
	}
	// The row that holds nothing of the image yet, and what it is to become.
	free, fields := 0, strings.Fields(rows[0])
	if lies(fields[3]) {
		free, fields = 1, strings.Fields(rows[1])
	}
	disk := fields[3]
	if lies(disk) {
		t.Fatalf("the image lies on both disks already: %s", vmtest.Must(t, "dmsetup", "table", "image"))
	}
	fields[4] = "2048"
	rows[free] = strings.Join(fields, " ")
	load := func() int {
		r := vmtest.RunInput(t, strings.Join(rows, "\n")+"\n", "dmsetup", "load", "host")
		vmtest.Must(t, "dmsetup", "clear", "host")
		return r.Code
	}
	if load() != 0 {
		t.Error("a row that holds nothing of the image cannot be changed")
	}
	for range 6 {
		if lies(disk) {
			break
		}
		dmloopOK(t, "grow", "image", "+4M")
	}
	if !lies(disk) {
		t.Fatalf("the image does not lie on both disks: %s", vmtest.Must(t, "dmsetup", "table", "image"))
	}
	if load() == 0 {
		t.Error("a row of the host that holds what is new can be changed")
	}
	dmloopOK(t, "verify", "image")
	if state := strings.TrimSpace(dmloopOK(t, "list", "--raw", "-n", "-o", "STATE,GATE,GUARD", "image")); state != "healthy bpf 1" {
		t.Errorf("%s\n%s", state, guardLog())
	}
	dmloopOK(t, "unmap", "image")
	nothingLeft(t, image)
}

// With the gate a kill leaves the entry that says that pins change, until the next command, or the guard, settles it.
func TestQemuKilledGrowGated(t *testing.T) {
	withGate(t)
	h := newHost(t, ext4Host, "shim")
	image := h.path("image.img")
	type point struct {
		call string
		n    int
	}
	kills := []point{{"ftruncate", 1}, {"pwrite64", 1}, {"renameat", 2}, {"renameat", 3}}
	if everything() {
		for n := 1; n < 200; n += 5 {
			kills = append(kills, point{"ioctl", n})
		}
	}
	for _, kill := range kills {
		how := fmt.Sprintf("killed at %s %d", kill.call, kill.n)
		os.Remove(image)
		h.image(t, "image.img", fmt.Sprint(growOld))
		dmloopOK(t, "map", image)
		sum := fill(t, "/dev/mapper/image", growOld, 1)
		if !killAt(t, kill.call, kill.n, "grow", "image", fmt.Sprint(growNew)) {
			how = "not killed at " + kill.call
		}
		await(t, how+": the guard's end of it", time.Minute, func() bool {
			text, err := os.ReadFile("/run/dmloop/image.mapping")
			return err == nil && !strings.Contains(string(text), `"growing"`)
		})
		if r := vmtest.Run(t, "cat", image); r.Code == 0 {
			t.Errorf("%s: the image can be opened", how)
		}
		dmloopOK(t, "verify", "image")
		shows(t, how, sum)
		size := sizeOf(t, image)
		if sectors := vmtest.Sectors(t, "/dev/mapper/image"); sectors*512 != size || size != growOld && size != growNew {
			t.Errorf("%s: the device has %d bytes, the file %d", how, sectors*512, size)
		}
		t.Logf("%s: %d bytes", how, size)
		if state := strings.TrimSpace(dmloopOK(t, "list", "--raw", "-n", "-o", "STATE,GATE,GUARD", "image")); state != "healthy bpf 1" {
			t.Errorf("%s: %s\n%s", how, state, guardLog())
		}
		dmloopOK(t, "unmap", "image")
	}
	nothingLeft(t, image)
}

// What is inside is left alone, and said; with --resizefs its own tool has the room.
func TestGrowInside(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "16M")
	grow := func(code int, says string, args ...string) {
		t.Helper()
		if r := expect(t, code, append([]string{"grow", "--unsafe"}, args...)...); !strings.Contains(r.Stderr, says) {
			t.Errorf("grow %q: %s", args, r.Stderr)
		}
	}
	vmtest.Must(t, "sh", "-c", `printf 'label: gpt\n,4M\n' | sfdisk -q "$0"`, image)
	grow(0, "sgdisk -e "+image, image, "+1M")
	dev := mapIt(t, image, "image", "--partscan")
	before := vmtest.Must(t, "dmsetup", "table", "imagep1")
	grow(0, "sgdisk -e "+dev, "image", "+1M")
	if now := vmtest.Must(t, "dmsetup", "table", "imagep1"); now != before {
		t.Errorf("the partition was %s, now %s", before, now)
	}
	vmtest.Must(t, "sfdisk", "--relocate", "gpt-bak-std", dev)
	expect(t, 0, "unmap", "image")
	mapIt(t, image, "image", "--partscan")
	if now := vmtest.Must(t, "dmsetup", "table", "imagep1"); now != before {
		t.Errorf("mapped again, the partition was %s, now %s", before, now)
	}
	expect(t, 0, "unmap", "image")

	other := h.image(t, "other.img", "16M")
	dev = mapIt(t, other, "other")
	grow(0, "no file system that dmloop knows", "--resizefs", "other", "+1M")
	vmtest.Mkfs(t, "ext4", dev)
	dir := vmtest.Mount(t, dev)
	vmtest.Umount(t, dir)
	vmtest.Must(t, "mount", dev, dir)
	room := roomIn(t, dir)
	grow(0, "", "--resizefs", "other", "+8M")
	if now := roomIn(t, dir); now <= room {
		t.Errorf("mounted: %d bytes, was %d", now, room)
	}
	vmtest.Umount(t, dir)
	vmtest.Must(t, "debugfs", "-w", "-R", "set_super_value lastcheck 20200101", dev)
	grow(1, "its file system: resize2fs", "--resizefs", "other", "+8M") // which wants a check first
	size := vmtest.Sectors(t, dev) * 512
	if size != 33<<20 {
		t.Errorf("the device has %d bytes", size)
	}
	vmtest.Must(t, "e2fsck", "-fp", dev)
	grow(0, "", "--resizefs", "other", fmt.Sprint(size)) // nothing but that is left to do
	vmtest.Must(t, "e2fsck", "-fn", dev)
	if blocks := vmtest.Must(t, "sh", "-c", `dumpe2fs -h "$0" 2>/dev/null | awk -F: '/^Block count/ { n = $2 } /^Block size/ { print n * $2 }'`, dev); strings.TrimSpace(blocks) != fmt.Sprint(size) {
		t.Errorf("the file system has %s of %d bytes", blocks, size)
	}
	expect(t, 0, "unmap", "other")
	nothingLeft(t, image, other)
}
