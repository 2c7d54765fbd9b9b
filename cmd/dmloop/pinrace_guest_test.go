//go:build vmtest

package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
	"dmloop/internal/swap"
	"dmloop/internal/vmtest"
)

// ownerUID is the user who owns images that root maps.
const ownerUID = 1000

// racerMain is the program of the image's owner. He opens his image again and again,
// and when an open took a while, since it waited for a lease that root held on it, he
// has got in at the best moment. One of these times he does his worst: if it were all of
// them, root would find an image that changes and never map it.
func racerMain(how, image string) {
	for _, drop := range []error{unix.Setgroups(nil), unix.Setresgid(ownerUID, ownerUID, ownerUID), unix.Setresuid(ownerUID, ownerUID, ownerUID)} {
		if drop != nil {
			fmt.Println("cannot become a plain user:", drop)
			os.Exit(1)
		}
	}
	fmt.Println("ready")
	for shot := 1 + rand.N(4); ; {
		begun := time.Now()
		fd, err := unix.Open(image, unix.O_RDWR|unix.O_CLOEXEC, 0)
		waited := time.Since(begun)
		if err != nil {
			time.Sleep(rand.N(time.Millisecond))
			continue
		}
		if waited > 2*time.Millisecond {
			time.Sleep(rand.N(8 * time.Millisecond))
			if shot--; shot == 0 {
				fmt.Printf("%s: %v\n", how, race(how, fd, image))
			} else {
				fmt.Println("in")
			}
			time.Sleep(rand.N(20 * time.Millisecond))
		}
		unix.Close(fd)
		time.Sleep(rand.N(2 * time.Millisecond))
	}
}

// race does one thing to an image through a descriptor that is open for writing.
func race(how string, fd int, image string) error {
	switch how {
	case "swap header": // the kernel is to take all of the file, and not one page
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		last := uint32(st.Size/4096 - 1)
		_, err := unix.Pwrite(fd, []byte{byte(last), byte(last >> 8), byte(last >> 16), byte(last >> 24)}, 1028)
		return err
	case "exchange blocks":
		donor, err := unix.Open(image+".donor", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(donor)
		arg := struct {
			reserved, donor                      uint32
			origStart, donorStart, length, moved uint64
		}{donor: uint32(donor), length: 256}
		return ioctl.Pointer(fd, ioctl.Request{Number: 0xc028660f, Name: "EXT4_IOC_MOVE_EXT"}, &arg)
	case "truncate":
		return unix.Ftruncate(fd, 0)
	}
	return unix.EINVAL
}

// racer is the owner at work.
type racer struct {
	cmd   *exec.Cmd
	lines chan string
}

func startRacer(t *testing.T, how, image string) *racer {
	t.Helper()
	cmd := command(t, "race", how, image)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &racer{cmd: cmd, lines: make(chan string, 10000)}
	go func() {
		for scan := bufio.NewScanner(out); scan.Scan(); {
			r.lines <- scan.Text()
		}
		close(r.lines)
	}()
	if line := <-r.lines; line != "ready" {
		t.Fatalf("the attacker says %q", line)
	}
	return r
}

// stop ends the attacker and returns how often he got in.
func (r *racer) stop() (hits int) {
	r.cmd.Process.Kill()
	for range r.lines {
		hits++
	}
	r.cmd.Wait()
	return hits
}

// raceRounds is how often each race is run: a few times, or as often as asked.
func raceRounds(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("DMLOOP_RACE_ROUNDS"))
	if err != nil {
		return 3
	}
	return n
}

// watchAreas looks at the kernel's list without a pause and returns the largest size
// that the image had in it since.
func watchAreas(t *testing.T, image string) (largest func() int64) {
	var most atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Microsecond):
			}
			table, _ := os.ReadFile(swap.TablePath)
			for line := range strings.Lines(string(table)) {
				if f := strings.Fields(line); len(f) == 5 && f[0] == image {
					if kib, err := strconv.ParseInt(f[2], 10, 64); err == nil && kib > most.Load() {
						most.Store(kib)
					}
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return func() int64 { return most.Load() << 10 }
}

// sealedTarget makes a sealed image and returns it with its page 0.
func sealedTarget(t *testing.T, h *host) (image string, restore func()) {
	t.Helper()
	image = h.image(t, "image.img", "1M")
	expect(t, 0, "seal", image)
	page := make([]byte, 4096)
	f, err := os.Open(image)
	if err == nil {
		_, err = f.ReadAt(page, 0)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return image, func() { // what an attacker did before or after counts for nothing
		t.Helper()
		if err := onFile(image, os.O_RDWR, func(f *os.File) error {
			if _, err := f.WriteAt(page, 0); err != nil {
				return err
			}
			return f.Sync()
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// guards are the ways to map: without a guard, and with one, whose gate denies opens
// where the kernel has permission events.
var guards = map[string][]string{"no guard": {"--no-guard"}, "guard": nil}

// An image that its owner can open is not given to the kernel, however he tries: its
// page of swap would hold anybody's memory, and a header that he rewrites between the
// check and swapon would give the kernel all of the image.
func TestSealedRace(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	vmtest.Must(t, "chmod", "755", h.dir)
	image, restore := sealedTarget(t, h)
	largest := watchAreas(t, image)
	t.Cleanup(func() { endGuard(t, "TERM") })
	const hint = "hint: run: chown root "
	for name, flags := range guards {
		for _, mode := range []string{"600", "666"} {
			hits := 0
			for range raceRounds(t) {
				restore()
				vmtest.Must(t, "chown", "1000", image)
				vmtest.Must(t, "chmod", mode, image)
				a := startRacer(t, "swap header", image)
				time.Sleep(rand.N(10 * time.Millisecond))
				r := dmloop(t, append([]string{"map", image, "vol"}, flags...)...)
				if r.Code == 0 || r.Code == 3 && !strings.Contains(r.Stderr, hint+image) && !strings.Contains(r.Stderr, "seal-corrupt") {
					t.Errorf("%s, mode %s: map: exit code %d\n%s", name, mode, r.Code, r.Stderr)
				}
				if r := dmloop(t, "pin", image); r.Code == 0 {
					t.Errorf("%s, mode %s: pin: exit code %d\n%s", name, mode, r.Code, r.Stderr)
				}
				hits += a.stop()
				dmloop(t, "unmap", "vol")
				dmloop(t, "unpin", image)
			}
			t.Logf("%s, mode %s: the owner got in %d times", name, mode, hits)
		}
	}
	if n := largest(); n != 0 {
		t.Errorf("the kernel had %d bytes of an image of somebody else's as swap space", n)
	}
}

// With --unsafe the kernel is given an image that its owner can open: but one page of
// it, or nothing, and never below what map says is mapped. The same for an image that
// is made root's while its owner has an open under way.
func TestSealedRaceUnsafe(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	vmtest.Must(t, "chmod", "755", h.dir)
	image, restore := sealedTarget(t, h)
	t.Cleanup(func() { endGuard(t, "TERM") })
	for name, flags := range guards {
		for _, late := range []bool{false, true} {
			hits, mapped := 0, 0
			for range raceRounds(t) {
				restore()
				vmtest.Must(t, "chown", "1000", image)
				args := append([]string{"map", image, "vol"}, flags...)
				if !late {
					args = append(args, "--unsafe")
				}
				a := startRacer(t, "swap header", image)
				time.Sleep(rand.N(10 * time.Millisecond))
				if late {
					vmtest.Must(t, "chown", "root", image)
				}
				r := dmloop(t, args...)
				if r.Code == 0 {
					mapped++
					onePage(t, image)
				}
				hits += a.stop()
				if r.Code == 0 {
					onePage(t, image)
					expect(t, 0, "verify", "vol")
					expect(t, 0, "unmap", "vol")
				}
				nothingLeftOf(t, image, "vol")
			}
			t.Logf("%s, made root's %v: the owner got in %d times, %d were mapped", name, late, hits, mapped)
		}
	}
}

// onePage fails the test unless the kernel holds one page of the image.
func onePage(t *testing.T, image string) {
	t.Helper()
	table := vmtest.Must(t, "cat", swap.TablePath)
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); f[0] == image && f[2] == "4" {
			return
		}
	}
	t.Errorf("the kernel does not hold one page of %s:\n%s", image, table)
}

// Nobody but root reads the page that the kernel pages to, through an overlay mount of a
// user namespace neither, which on 6.1 passes a guard's gate by.
func TestSealedPageIsRootsAlone(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	vmtest.Must(t, "chmod", "755", h.dir)
	image, _ := sealedTarget(t, h)
	control := h.path("control")
	vmtest.RandomFile(t, control, 8192, 1)
	vmtest.Must(t, "chown", "1000", control)
	t.Cleanup(func() { endGuard(t, "TERM") })
	stranger := func(script string) string {
		t.Helper()
		r := vmtest.Run(t, "setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "sh", "-c", script)
		return r.Stdout
	}
	overlay := func(name string) string { // how much of a file he reads
		t.Helper()
		return stranger("unshare -Urm sh -c 'mount -t tmpfs t /mnt && mkdir /mnt/a /mnt/m && mount -t overlay o -o lowerdir=" + h.dir +
			":/mnt/a /mnt/m && head -c 8192 /mnt/m/" + name + " | wc -c'")
	}
	for name, flags := range guards {
		if got := overlay("control"); got != "8192\n" {
			t.Fatalf("%s: an overlay mount shows %q of a file of the stranger's own", name, got)
		}
		for _, owner := range []string{"1000", "0"} {
			vmtest.Must(t, "chown", owner, image)
			r := dmloop(t, append([]string{"map", image, "vol"}, flags...)...)
			if r.Code != 0 {
				if owner == "0" {
					t.Errorf("%s: map: exit code %d\n%s", name, r.Code, r.Stderr)
				}
				continue
			}
			if got := overlay("image.img"); got != "0\n" {
				t.Errorf("%s: of the image of user %s an overlay mount shows %q", name, owner, got)
			}
			if got := stranger("head -c 8192 " + image + " | wc -c"); got != "0\n" {
				t.Errorf("%s: of the image of user %s he reads %q", name, owner, got)
			}
			expect(t, 0, "unmap", "vol")
		}
	}
}

// A claim that was lost is not taken again below a live mapping by boot verify, when the
// image is somebody else's by then.
func TestSealedRaceClaimedAgain(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	vmtest.Must(t, "chmod", "755", h.dir)
	image, restore := sealedTarget(t, h)
	largest := watchAreas(t, image)
	hits := 0
	for range raceRounds(t) {
		restore()
		vmtest.Must(t, "chown", "0", image)
		expect(t, 0, "map", "--no-guard", image, "vol")
		vmtest.Must(t, "sh", "-c", "chattr -i "+image+" && swapoff "+image+" && chown 1000 "+image+" && chattr +i "+image)
		a := startRacer(t, "swap header", image)
		time.Sleep(rand.N(5 * time.Millisecond))
		if r := dmloop(t, "boot", "verify", "vol"); r.Code == 0 || !strings.Contains(r.Stderr, "chown root "+image) {
			t.Errorf("boot verify: exit code %d\n%s", r.Code, r.Stderr)
		}
		if flags := strings.Fields(vmtest.Must(t, "lsattr", image))[0]; !strings.Contains(flags, "i") {
			t.Errorf("the pin that was in force is gone: %s", flags)
		}
		hits += a.stop()
		expect(t, 0, "unmap", "vol")
	}
	t.Logf("the owner got in %d times", hits)
	if n := largest(); n > 4096 {
		t.Errorf("the kernel had %d bytes of the image as swap space", n)
	}
}

// The guard does not take a lost claim again of an image that is somebody else's by
// then, and keeps the other pin in force all the time.
func TestFullSealedGuardStranger(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	vmtest.Must(t, "chmod", "755", h.dir)
	image, restore := sealedTarget(t, h)
	largest := watchAreas(t, image)
	t.Cleanup(func() { endGuard(t, "TERM") })
	for range raceRounds(t) {
		restore()
		vmtest.Must(t, "chown", "0", image)
		mustDmloop(t, "map", image, "vol")
		pid := strconv.Itoa(guardPID())
		vmtest.Must(t, "kill", "-STOP", pid)
		vmtest.Must(t, "sh", "-c", "chattr -i "+image+" && swapoff "+image+" && chown 1000 "+image+" && chattr +i "+image)
		a := startRacer(t, "swap header", image)
		vmtest.Must(t, "kill", "-CONT", pid)
		await(t, "the guard's finding", 20*time.Second, func() bool { return strings.Contains(guardLog(), "owner 1000") })
		if flags := strings.Fields(vmtest.Must(t, "lsattr", image))[0]; !strings.Contains(flags, "i") {
			t.Errorf("the pin that was in force is gone: %s", flags)
		}
		a.stop()
		mustDmloop(t, "unmap", "vol")
		vmtest.Must(t, "sh", "-c", ": > /run/dmloop/guard.log")
	}
	if n := largest(); n > 4096 {
		t.Errorf("the kernel had %d bytes of the image as swap space", n)
	}
}

// An open that waited for root's lease moves the image's blocks, or gives them away, as
// soon as it gets in. What is mapped then lies where the table says, and nobody else's
// blocks are written to.
func TestPlainRaceExt4(t *testing.T) { racePlain(t, ext4Host, "exchange blocks") }

// xfs without reflink writes and truncates through descriptors from before the flag.
func TestPlainRaceXFS(t *testing.T) {
	racePlain(t, hostKind{"xfs-noreflink", "xfs", []string{"-m", "reflink=0"}}, "truncate")
}

func racePlain(t *testing.T, kind hostKind, how string) {
	h := newHost(t, kind, "shim")
	vmtest.Must(t, "chmod", "755", h.dir)
	unchanged := h.neighbours(t, 1)
	image := h.path("image.img")
	t.Cleanup(func() { endGuard(t, "TERM") })
	for name, flags := range guards {
		hits, mapped := 0, 0
		for round := range raceRounds(t) {
			for _, path := range []string{image, image + ".donor"} {
				os.Remove(path)
				vmtest.RandomFile(t, path, 1<<20, uint64(round))
				vmtest.Must(t, "chown", "1000", path)
			}
			vmtest.Must(t, "sync", "-f", h.dir)
			a := startRacer(t, how, image)
			time.Sleep(rand.N(10 * time.Millisecond))
			r := dmloop(t, append([]string{"map", image, "vol"}, flags...)...)
			if r.Code == 0 {
				mapped++
				time.Sleep(30 * time.Millisecond) // he may be in, and wait for his moment
				h.liesWhereTheTableSays(t, image, flags == nil)
				victims := filepath.Join(h.dir, "victims")
				vmtest.RandomFile(t, victims, 8<<20, 5) // takes what was given away
				sum := vmtest.ChecksumFile(t, victims)
				vmtest.Run(t, "dd", "if=/dev/urandom", "of=/dev/mapper/vol", "bs=64K", "oflag=direct")
				vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
				if vmtest.ChecksumFile(t, victims) != sum {
					t.Fatalf("%s, round %d: a file of root's was overwritten through the mapping", name, round)
				}
				os.Remove(victims)
				h.liesWhereTheTableSays(t, image, flags == nil)
			}
			hits += a.stop()
			if r.Code == 0 {
				expect(t, 0, "unmap", "vol")
			}
			nothingLeftOf(t, image, "vol")
		}
		t.Logf("%s: the owner got in %d times, %d were mapped", name, hits, mapped)
	}
	unchanged(t)
	h.check(t)
}

// liesWhereTheTableSays compares filefrag's answer with dmsetup's. A mapping that the
// guard has torn down is harmless.
func (h *host) liesWhereTheTableSays(t *testing.T, image string, guarded bool) {
	t.Helper()
	table := vmtest.Must(t, "dmsetup", "table", "vol")
	if guarded && strings.Contains(table, " error") {
		return
	}
	var rows []string
	for line := range strings.Lines(table) { // 0 2048 linear 254:0 12345
		f := strings.Fields(line)
		rows = append(rows, fmt.Sprintf("%s+%s@%s", f[0], f[1], f[4]))
	}
	if guarded { // who asks is denied; the kernel's own tool needs a descriptor
		if r := vmtest.Run(t, "filefrag", image); r.Code != 0 {
			return
		}
	}
	var lies []string
	for line := range strings.Lines(vmtest.Must(t, "filefrag", "-b512", "-v", image)) {
		// 0: 0.. 2047: 270336.. 272383: 2048: last,eof
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == ':' || r == '.' })
		if len(f) < 6 || strings.ContainsFunc(f[0], func(r rune) bool { return r < '0' || r > '9' }) {
			continue
		}
		lies = append(lies, fmt.Sprintf("%s+%s@%s", f[1], f[5], f[3]))
	}
	if strings.Join(rows, " ") != strings.Join(lies, " ") {
		t.Errorf("the table is\n%s\nand the image lies at\n%s", strings.Join(rows, "\n"), strings.Join(lies, "\n"))
	}
}
