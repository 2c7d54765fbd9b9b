//go:build vmtest

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// owner is the unprivileged user that images in these tests belong to.
const owner = 1000

// openers is how many tasks open an image as fast as they can.
const openers = 64

// stormOf opens the image again and again, as its owner, until it is killed. The calls
// are made without Go's scheduler, which would be most of the work.
func stormOf(image string) error {
	if err := unix.Setuid(owner); err != nil {
		return err
	}
	path, err := unix.BytePtrFromString(image)
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(openers + 2)
	here := unix.AT_FDCWD // there is no open(2) on newer architectures
	for range openers {
		go func() {
			for {
				fd, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(here), uintptr(unsafe.Pointer(path)), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
				if errno == 0 {
					unix.Close(int(fd))
				}
			}
		}()
	}
	select {}
}

// openTimes opens the file twenty times and prints how long each open took and what came
// of it.
func openTimes(path string) {
	for range 20 {
		begin := time.Now()
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		took, said := time.Since(begin), "opened"
		if err != nil {
			said = short(err)
		} else {
			unix.Close(fd)
		}
		fmt.Println(took, said)
	}
}

// Whoever opens an image in a loop, from many tasks at once, does not hold up those that
// open another one, and does not fill the log.
func TestQemuStormOfOpens(t *testing.T) {
	kernel := vmtest.Kernel(t)
	img := lifeHost(t, "ext4")
	quiet, plain := filepath.Join(filepath.Dir(img), "quiet"), filepath.Join(filepath.Dir(img), "plain")
	for path, seed := range map[string]uint64{quiet: 2, plain: 3} {
		vmtest.RandomFile(t, path, imageSize, seed)
	}
	if err := errors.Join(os.Chown(img, owner, owner), os.Chmod(img, 0o644)); err != nil {
		t.Fatal(err)
	}
	mustDmloop(t, "map", "--gate=fanotify", img, "vol")
	mustDmloop(t, "map", "--gate=fanotify", quiet, "quiet")
	denied := func(name string) uint64 {
		for _, m := range guardStatus(t).Mappings {
			if m.Name == name {
				return m.Denied
			}
		}
		t.Fatalf("%s is not watched", name)
		return 0
	}
	// opens are the times that an open of path takes, shortest first, by a process that does
	// not talk to the guard: one that does may open what it watches.
	opens := func(path, want string) []time.Duration {
		out, err := command(t, "opens", path).Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var times []time.Duration
		for line := range strings.Lines(string(out)) {
			took, said, _ := strings.Cut(strings.TrimSpace(line), " ")
			d, err := time.ParseDuration(took)
			if err != nil || said != want {
				t.Errorf("open of %s: %q, %v", path, line, err)
			}
			times = append(times, d)
		}
		slices.Sort(times)
		return times
	}
	calm := opens(quiet, "EPERM")

	logged, err := os.Stat("/run/dmloop/guard.log") // other tests' guards wrote to it too
	if err != nil {
		t.Fatal(err)
	}

	storm := command(t, "storm", img)
	storm.Stderr = os.Stderr
	if err := storm.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			storm.Process.Kill()
			storm.Wait()
			ended = true
		}
	}
	t.Cleanup(end)
	await(t, "the storm", 2*time.Minute, func() bool { return denied("vol") > 10*openers })
	pid := guardPID()
	before, began, count := costOf(t, pid), time.Now(), denied("vol")
	during, others := opens(quiet, "EPERM"), opens(plain, "opened")
	after, took, count := costOf(t, pid), time.Since(began), denied("vol")-count
	state := mustDmloop(t, "list", "--noheadings", "--raw", "-o", "NAME,STATE")
	end()
	fmt.Printf("STORM|%s|open of another image: median without|during the storm|longest|median of a file that is not marked|denials a second|of the guard's time for each\n", kernel)
	fmt.Printf("STORM|%s|%s|%s|%s|%s|%.0f|%s\n", kernel, calm[10], during[10], during[19], others[10],
		float64(count)/took.Seconds(), (after.cpu-before.cpu)/time.Duration(max(count, 1)))
	if during[10] > time.Second {
		t.Errorf("an open of another image took %s, and %s without the storm", during[10], calm[10])
	}
	if want := "quiet healthy\nvol healthy\n"; state != want {
		t.Errorf("list says %q", state)
	}
	if info, err := os.Stat("/run/dmloop/guard.log"); err != nil || info.Size()-logged.Size() > 32<<10 {
		t.Errorf("the guard's log: %d bytes, %v", info.Size(), err)
	}
	await(t, "the sum of the denials in the log", time.Minute, func() bool {
		log := guardLog()
		return strings.Contains(log, "uid=1000") && strings.Contains(log, "more opens of a pinned image were denied")
	})
}

// Whoever may rename files beside an image, or its directory, gets the guard to look a few
// times a second, however often it is done.
func TestStormOfRenames(t *testing.T) {
	kernel := vmtest.Kernel(t)
	img := lifeHost(t, "ext4")
	root := filepath.Dir(img)
	dir, away := filepath.Join(root, "dir"), filepath.Join(root, "away")
	inside := filepath.Join(dir, "image")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Rename(img, inside), os.WriteFile(filepath.Join(root, "a"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	mustDmloop(t, "map", inside, "vol")
	const logPath = "/run/dmloop/guard.log" // has what the guards of other tests wrote too
	earlier, err := os.ReadFile(logPath)
	if err != nil {
		t.Fatal(err)
	}
	checks := func() uint64 { return guardStatus(t).Mappings[0].Checks }
	pid := guardPID()
	for _, storm := range []struct {
		name     string
		from, to string
		most     func(took time.Duration) uint64
	}{
		// Each hint that is heeded can be owed a second look, and there is the timer.
		{"the directory", dir, away, func(took time.Duration) uint64 {
			return 2*(10+uint64(took/(100*time.Millisecond))+1) + uint64(took/time.Second)
		}},
		{"a file beside the directory", filepath.Join(root, "a"), filepath.Join(root, "b"), func(took time.Duration) uint64 { return 2 + uint64(took/time.Second) }},
	} {
		before, cost, begin, renames := checks(), costOf(t, pid), time.Now(), 0
		for ; time.Since(begin) < 5*time.Second; renames += 2 {
			if err := errors.Join(os.Rename(storm.from, storm.to), os.Rename(storm.to, storm.from)); err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(begin)
		made, used := checks()-before, costOf(t, pid).cpu-cost.cpu
		fmt.Printf("RENAMES|%s|%s|%d renames in %s|%d checks|%.1f %% of a processor\n", kernel, storm.name, renames, took, made, 100*float64(used)/float64(took))
		if made > storm.most(took) || uint64(renames) < 2*made {
			t.Errorf("%s: %d checks for %d renames in %s", storm.name, made, renames, took)
		}
	}
	if got := state(t, "STATE"); got != "healthy" {
		t.Errorf("the mapping is %s: %s", got, state(t, "REASON"))
	}
	if now, err := os.ReadFile(logPath); err != nil || bytes.Count(now[len(earlier):], []byte("\n")) > 20 {
		t.Errorf("%v, the log:\n%s", err, guardLog())
	}
}
