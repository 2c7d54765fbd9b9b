//go:build vmtest

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/vmtest"
)

// cell is one attack under one set of circumstances.
type cell struct {
	fs     string
	unsafe bool   // mapped without a pin
	guard  string // "running", "killed" before the attack and started again, "stopped" meanwhile
	lifted bool
	attack attack
}

// outcome is a line of the table in docs/guarantees.md.
type outcome struct {
	cell
	grade   string
	call    string // "done", or why the attack was refused
	result  string // "untouched", "torn down", "weakened" or "NOT NOTICED"
	window  time.Duration
	written int // blocks that were written through the mapping although they had become somebody else's
}

// usualCells are tried when DMLOOP_MATRIX does not say which; "." is all of them,
// an hour in an emulated guest.
const usualCells = `^running (chattr -i, then )?(write|truncate\(2\) down by path|unlink|rename away|reflink from|dedupe|` +
	`EXT4_IOC_MOVE_EXT|file_setattr.*|f2fs garbage collection|own device reloaded|host device .*)$|^killed chattr -i, then unlink$`

// What root does to an image that is mapped and written to. Each line of output that
// begins with MATRIX is a row; docs/guarantees.md is made of all of them
// (internal/cmd/guarantees).
func TestMatrixExt4(t *testing.T)     { matrix(t, "ext4") }
func TestQemuMatrixXFS(t *testing.T)  { matrix(t, "xfs") }
func TestQemuMatrixF2FS(t *testing.T) { matrix(t, "f2fs") }

func matrix(t *testing.T, fs string) {
	kernel := vmtest.Kernel(t)
	h := newMatrixHost(t, fs)
	only, err := regexp.Compile(cmp.Or(os.Getenv("DMLOOP_MATRIX"), usualCells))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cells(fs, kernel) {
		if !only.MatchString(c.guard + " " + c.name()) {
			continue
		}
		out := h.try(t, c)
		fmt.Printf("MATRIX|%s|%s|%s|%s|%s|%s|%s|%s|%d\n", kernel, fs, out.grade, c.guard, c.name(), out.call, out.result, windowText(out.window), out.written)
		// Without permission events nobody is kept from taking the flag away first.
		protected := !c.unsafe && c.guard == "running" && !(c.lifted && kernel == "uml")
		switch {
		case strings.HasPrefix(out.result, "NOT"):
			t.Errorf("%s, %s: %s, %s", fs, c.name(), out.call, out.result)
		case protected && out.written > 0 && !c.attack.below && !c.attack.outside:
			t.Errorf("%s, %s: %d blocks of others were overwritten under grade %s", fs, c.name(), out.written, out.grade)
		}
	}
}

func (c cell) name() string {
	if c.lifted {
		return "chattr -i, then " + c.attack.name
	}
	return c.attack.name
}

func windowText(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < 100*time.Microsecond:
		return "< 0.1ms"
	}
	return d.Round(100 * time.Microsecond).String()
}

// cells lists what is tried on a file system: every attack against a pinned image
// and an unpinned one, and some with the guard away.
func cells(fs, kernel string) []cell {
	var all []cell
	for _, a := range attacks {
		if !listed(a.fs, fs) || !listed(a.only, kernel) {
			continue
		}
		all = append(all, cell{fs: fs, guard: "running", attack: a})
		if a.lifted {
			all = append(all, cell{fs: fs, guard: "running", attack: a, lifted: true})
		}
		if fs != "f2fs" && a.name != "chattr -i" {
			all = append(all, cell{fs: fs, guard: "running", attack: a, unsafe: true})
		}
	}
	for _, name := range []string{"read", "unlink", "truncate(2) down by path", "reflink from", "EXT4_IOC_MOVE_EXT"} {
		i := slices.IndexFunc(attacks, func(a attack) bool { return a.name == name })
		if listed(attacks[i].fs, fs) {
			all = append(all, cell{fs: fs, guard: "stopped", attack: attacks[i]}, cell{fs: fs, guard: "killed", attack: attacks[i]})
			if attacks[i].lifted {
				all = append(all, cell{fs: fs, guard: "killed", attack: attacks[i], lifted: true})
			}
		}
	}
	return all
}

func listed(list, word string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), word)
}

// matrixHost is the file system that all cells of a matrix share.
type matrixHost struct {
	dir, disk  string
	neighbours map[string]string // path -> checksum
}

// pieces is the number of extents of an image.
const pieces = 16

const hostSectors = 360 << 20 / 512 // xfs wants 300 MiB

func newMatrixHost(t *testing.T, fs string) *matrixHost {
	t.Helper()
	h := &matrixHost{disk: vmtest.Disk(t, 0), neighbours: map[string]string{}}
	dev := vmtest.DmsetupCreate(t, hostName, hostTable(h.disk))
	vmtest.Mkfs(t, fs, dev)
	h.dir = vmtest.Mount(t, dev)
	for i := range 3 {
		path := filepath.Join(h.dir, fmt.Sprintf("neighbour%d", i))
		vmtest.RandomFile(t, path, 2<<20, uint64(100+i))
		h.neighbours[path] = vmtest.ChecksumFile(t, path)
	}
	t.Cleanup(func() { endGuard(t, "TERM") })
	return h
}

func hostTable(disk string) string { return fmt.Sprintf("0 %d linear %s 0\n", hostSectors, disk) }

// try runs one cell from a fresh image to a released one.
func (h *matrixHost) try(t *testing.T, c cell) outcome {
	t.Helper()
	out := outcome{cell: c}
	img := filepath.Join(h.dir, "image")
	if c.fs == "f2fs" {
		mustDmloop(t, "create", img, strconv.Itoa(imageSize))
	} else { // in pieces, so that a defragmenter has something to do
		vmtest.FragmentedFile(t, h.dir, "image", pieces, imageSize/pieces)
	}
	for i, name := range []string{"twin", "donor"} {
		vmtest.RandomFile(t, beside(img, name), imageSize, uint64(i)) // the twin has the image's content
	}
	if c.unsafe {
		mustDmloop(t, "map", "--pin", "none", "--unsafe", img, "vol")
	} else if r := dmloop(t, "map", img, "vol"); r.Code != 0 {
		t.Fatalf("map: %s%s", r.Stdout, r.Stderr)
	}
	out.grade = strings.TrimSpace(mustDmloop(t, "list", "--noheadings", "-o", "GRADE", "vol"))
	table, err := dmtable.ParseText(vmtest.Must(t, "dmsetup", "table", "vol"))
	if err != nil {
		t.Fatal(err)
	}
	segments, err := table.Segments()
	if err != nil {
		t.Fatal(err)
	}
	w := startWriter(t, "/dev/mapper/vol", c.attack.still)
	done := h.attack(t, c, img, &out)
	h.settle(t, c, done, w, &out)
	stolen := h.stolen(t, c, img, segments)
	h.judge(t, c, &out)
	out.written = writtenSince(t, h.disk, stolen, done)
	h.cleanUp(t, img)
	return out
}

// attack lets another process do it and returns when it was done.
func (h *matrixHost) attack(t *testing.T, c cell, img string, out *outcome) time.Time {
	t.Helper()
	switch c.guard {
	case "killed":
		endGuard(t, "KILL")
	case "stopped":
		vmtest.Must(t, "kill", "-STOP", strconv.Itoa(guardPID()))
		defer vmtest.Must(t, "kill", "-CONT", strconv.Itoa(guardPID()))
	}
	name := c.attack.name
	if c.lifted {
		name = "lifted: " + name
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := command(t, "attack", name, img)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	finished := make(chan error, 1)
	go func() { finished <- cmd.Wait() }()
	patience := 20 * time.Second
	if c.guard == "stopped" {
		patience = 3 * time.Second // an open waits for the stopped guard
	}
	select {
	case err := <-finished:
		out.call = "done"
		if err != nil {
			out.call = "refused: " + strings.TrimSpace(said.String())
		}
	case <-time.After(patience):
		cmd.Process.Kill()
		<-finished
		out.call = "waited until it was killed"
	case <-ctx.Done():
		t.Fatalf("%s: the attack hangs", c.name())
	}
	return time.Now()
}

// settle gives the blocks that became free to somebody else, brings the guard back,
// and waits for the tear-down, or long enough to know that none comes.
func (h *matrixHost) settle(t *testing.T, c cell, done time.Time, w *writer, out *outcome) {
	t.Helper()
	if !c.attack.below {
		takeAllSpace(filepath.Join(h.dir, "victim"))
	}
	if c.guard == "killed" {
		time.Sleep(500 * time.Millisecond) // long enough that nobody takes it for luck
		startGuard(t, "--idle-exit", "5m")
	}
	patience := 3 * time.Second // a tick and a bit
	if strings.HasPrefix(out.call, "refused") && c.guard != "killed" {
		patience = 50 * time.Millisecond // verify has the last word
	}
	select {
	case <-w.failed:
		out.window = max(w.firstError.Sub(done), time.Microsecond)
	case <-time.After(patience):
		if !strings.HasPrefix(out.call, "refused") && dmloop(t, "verify", "vol").Code != 0 {
			select { // a silent change waits for the next full reading
			case <-w.failed:
				out.window = w.firstError.Sub(done)
			case <-time.After(guard.DefaultPace.Bound + guard.DefaultPace.Tick):
			}
		}
	}
	w.stop()
}

// judge compares what happened with what had to happen: mapping, image and guard.
func (h *matrixHost) judge(t *testing.T, c cell, out *outcome) {
	t.Helper()
	torn := !strings.Contains(vmtest.Run(t, "dmsetup", "table", "vol").Stdout, "linear")
	state := strings.TrimSpace(dmloop(t, "list", "--noheadings", "-o", "STATE", "vol").Stdout)
	stale := dmloop(t, "verify", "vol").Code != 0
	switch {
	case torn && (state == "failed" || state == "releasing"):
		out.result = "torn down"
	case torn:
		out.result = "NOT RECORDED, state " + state
	case stale:
		out.result = "NOT NOTICED"
	case state == "weakened":
		out.result = "weakened, set again"
	default:
		out.result = "untouched"
	}
	for path, sum := range h.neighbours {
		vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
		if c.attack.below {
			continue // the host file system itself reads elsewhere
		}
		if vmtest.ChecksumFile(t, path) != sum {
			out.result = "NOT HARMLESS: " + filepath.Base(path) + " changed"
		}
	}
}

// stolen lists the pieces of the disk that the mapping named and that are other
// files' blocks now, or all of them when the ground itself moved.
func (h *matrixHost) stolen(t *testing.T, c cell, img string, segments []dmtable.Segment) []dmtable.Segment {
	t.Helper()
	switch {
	case c.attack.below:
		return segments
	case c.attack.outside:
		return []dmtable.Segment{{Device: segments[0].Device, Start: hostSectors, Length: imageSize / 512}}
	}
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	var stolen []dmtable.Segment
	for _, e := range entries {
		path := filepath.Join(h.dir, e.Name())
		if !e.Type().IsRegular() || sameFile(path, img) || e.Name() == "link" || e.Name() == "away" {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue // the image under another name
		}
		layout, err := extents.Read(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range layout.Extents {
			from, to := dmtable.Sectors(x.Physical/512), dmtable.Sectors((x.Physical+x.Length)/512)
			for _, s := range segments {
				lo, hi := max(from, s.Start), min(to, s.End())
				if lo < hi {
					stolen = append(stolen, dmtable.Segment{Device: s.Device, Start: lo, Length: hi - lo})
				}
			}
		}
	}
	return stolen
}

func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// cleanUp releases everything and puts the host back as it was.
func (h *matrixHost) cleanUp(t *testing.T, img string) {
	t.Helper()
	host := vmtest.Must(t, "dmsetup", "table", hostName)
	if !strings.HasSuffix(strings.TrimSpace(host), " 0") {
		vmtest.Must(t, "dmsetup", "load", hostName, "--table", strings.TrimSpace(hostTable(h.disk)))
		vmtest.Must(t, "dmsetup", "resume", "--noflush", "--nolockfs", "--noudevsync", hostName)
		vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
	}
	if r := dmloop(t, "unmap", "vol"); r.Code != 0 {
		t.Logf("unmap: %s", r.Stderr)
	}
	if guardPID() != 0 {
		c := newGuardClient("/run/dmloop")
		if err := c.Drop(t.Context(), "vol"); err != nil {
			t.Errorf("drop: %v", err)
		}
		c.client.Close()
	}
	for _, name := range []string{"image", "donor", "twin", "clone", "copy", "away", "link", "victim", "image.neighbour"} {
		path := filepath.Join(h.dir, name)
		onFile(path, os.O_RDONLY, unpin)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%v\nguard: %s", err, guardLog())
		}
	}
	if left := dmloop(t, "list", "--noheadings").Stdout; strings.TrimSpace(left) != "" {
		t.Fatalf("left behind: %s", left)
	}
	unix.Sync()
}

// takeAllSpace gives all free blocks to one file, so that every block that an
// attack freed is somebody's.
func takeAllSpace(path string) {
	f, err := os.Create(path)
	if err != nil {
		return
	}
	defer f.Close()
	for size, at := int64(64<<20), int64(0); size >= 4096; {
		if unix.Fallocate(int(f.Fd()), 0, at, size) != nil {
			size /= 2
			continue
		}
		at += size
	}
	f.Sync()
}
