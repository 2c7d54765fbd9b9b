//go:build vmtest

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/dm"
	"dmloop/internal/guardrpc"
	"dmloop/internal/ioctl"
	"dmloop/internal/record"
	"dmloop/internal/vmtest"
)

// matrixHost is the file system that all cells of a matrix share.
type matrixHost struct {
	fs, dir, disk string
	conn          *dm.Conn
	neighbours    map[string][]byte // path -> content
	grades        map[bool]string   // of the mappings seen, by cell.unsafe
	target        *target           // nil: none is mapped
	kept          int               // files that only keep their blocks
}

// target is an image that is mapped and written to.
type target struct {
	unsafe    bool
	unguarded bool // mapped without a guard
	grade     string
	segments  []dmtable.Segment
	writer    *writer
	holder    *holder // of an older descriptor, or nil
}

// pieces is the number of extents of an image.
const pieces = 16

const hostSectors = 360 << 20 / 512 // xfs wants 300 MiB

func newMatrixHost(t *testing.T, fs string) *matrixHost {
	t.Helper()
	conn, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h := &matrixHost{fs: fs, disk: vmtest.Disk(t, 0), conn: conn, neighbours: map[string][]byte{}, grades: map[bool]string{}}
	dev := vmtest.DmsetupCreate(t, hostName, hostTable(h.disk))
	vmtest.Mkfs(t, fs, dev)
	h.dir = vmtest.Mount(t, dev)
	for i := range 3 {
		path := h.path(fmt.Sprintf("neighbour%d", i))
		vmtest.RandomFile(t, path, 1<<20, uint64(100+i))
		h.neighbours[path] = onDisk(t, path)
	}
	t.Cleanup(func() { endGuard(t, "TERM") })
	return h
}

func hostTable(disk string) string { return fmt.Sprintf("0 %d linear %s 0\n", hostSectors, disk) }

func (h *matrixHost) path(name string) string { return filepath.Join(h.dir, name) }

// onDisk reads a file past the page cache.
func onDisk(t *testing.T, path string) []byte {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer unix.Close(fd)
	buf := aligned(t, 1<<20)
	defer unix.Munmap(buf)
	var content []byte
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if n == 0 {
			return content
		}
		content = append(content, buf[:n]...)
	}
}

// changedNeighbour names a file of others whose bytes changed.
func (h *matrixHost) changedNeighbour(t *testing.T) string {
	t.Helper()
	for path, content := range h.neighbours {
		if !bytes.Equal(onDisk(t, path), content) {
			return filepath.Base(path)
		}
	}
	return ""
}

// prepare makes an image, maps it and has it written to. It returns why the mapping
// was refused, where the cell is about that.
func (h *matrixHost) prepare(t *testing.T, c cell) (refusal string) {
	t.Helper()
	img := h.path("image")
	switch {
	case h.fs == "f2fs" && c.unsafe:
		vmtest.RandomFile(t, img, imageSize, 0)
	case h.fs == "f2fs":
		mustDmloop(t, "create", img, strconv.Itoa(imageSize)) // pinned before it has blocks
	default: // in pieces, so that a defragmenter has something to do
		h.makePieces(t)
		h.neighbours[img+".neighbour"] = onDisk(t, img+".neighbour") // between the pieces
	}
	h.target = &target{unsafe: c.unsafe, unguarded: c.guard == guardNever}
	if c.attack.older {
		h.target.holder = startHolder(t, c.attack.name, img)
	}
	args := []string{"map", "--json"}
	if c.unsafe {
		args = append(args, "--pin", "none", "--unsafe")
	}
	if h.target.unguarded {
		endGuard(t, "TERM")
		args = append(args, "--no-guard")
	}
	r := dmloop(t, append(args, img, "vol")...)
	if r.Code != 0 {
		if c.attack.older {
			var said struct {
				Error struct{ Problems []struct{ Rule string } }
			}
			if json.Unmarshal([]byte(r.Stderr), &said) == nil && len(said.Error.Problems) == 1 {
				return "refused: " + said.Error.Problems[0].Rule
			}
		}
		t.Fatalf("map: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	var mapped struct{ Mappings []struct{ Grade string } }
	if err := json.Unmarshal([]byte(r.Stdout), &mapped); err != nil || len(mapped.Mappings) != 1 {
		t.Fatalf("map --json: %s, %v", r.Stdout, err)
	}
	h.target.grade = mapped.Mappings[0].Grade
	h.grades[c.unsafe] = h.target.grade
	table, err := h.conn.Table(dm.ByName("vol"))
	if err != nil {
		t.Fatal(err)
	}
	if h.target.segments, err = table.Segments(); err != nil {
		t.Fatal(err)
	}
	h.target.writer = startWriter(t, "/dev/mapper/vol", c.attack.still)
	return ""
}

// punchPieces makes an image in pieces where the file system has nothing but holes left
// for it: in a neighbour of twice its size, while another file takes all that is free. ext4
// of Linux 7.3 gives files that grow in turn one piece each.
func (h *matrixHost) punchPieces(t *testing.T) {
	t.Helper()
	const step = imageSize / pieces
	open := func(path string) *os.File {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	neighbour, filler, image := open(h.path("image.neighbour")), open(h.path("filler")), open(h.path("image"))
	vmtest.FillRandom(t, neighbour, 2*imageSize+2*step, 1)
	if err := neighbour.Sync(); err != nil {
		t.Fatal(err)
	}
	for at, length := int64(0), int64(64<<20); length >= step; { // a little is left for metadata
		if err := unix.Fallocate(int(filler.Fd()), 0, at, length); err != nil {
			length /= 2
			continue
		}
		at += length
	}
	for at := int64(0); at < 2*imageSize+2*step; at += 2 * step {
		if err := unix.Fallocate(int(neighbour.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, step); err != nil {
			t.Fatal(err)
		}
	}
	unix.Sync() // what is punched is free once the journal has it
	for at := int64(0); at < imageSize; at += step {
		if err := unix.Fallocate(int(image.Fd()), 0, at, step); err != nil {
			t.Fatal(err)
		}
	}
	vmtest.FillRandom(t, image, imageSize, 0)
	layout, err := extents.Read(image)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(layout.Merge().Extents); n < pieces/2 {
		t.Fatalf("an image in %d pieces", n)
	}
	if err := os.Remove(h.path("filler")); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{filler, neighbour, image} {
		f.Close()
	}
	unix.Sync()
}

// makePieces makes an image in pieces, with a neighbour between them. Where the last
// image's blocks were, the file system may put both in one piece each: what it chose
// then is kept from being chosen again, and smaller steps are tried.
func (h *matrixHost) makePieces(t *testing.T) {
	t.Helper()
	paths := []string{h.path("image"), h.path("image.neighbour")}
	for try := range 4 {
		step := max(int64(imageSize/pieces)>>try, 4096)
		var files [2]*os.File
		for i, path := range paths {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			files[i] = f
		}
		for at := int64(0); at < imageSize; at += step {
			for _, f := range files {
				if err := unix.Fallocate(int(f.Fd()), 0, at, step); err != nil {
					t.Fatal(err)
				}
			}
		}
		layout, err := extents.Read(files[0])
		if err != nil {
			t.Fatal(err)
		}
		if len(layout.Merge().Extents) >= pieces/2 {
			for i, f := range files {
				vmtest.FillRandom(t, f, imageSize, uint64(i))
			}
			return
		}
		for _, path := range paths {
			if err := os.Rename(path, fmt.Sprintf("%s.kept%d", path, h.kept)); err != nil {
				t.Fatal(err)
			}
		}
		h.kept++
	}
	h.punchPieces(t)
}

// helper makes the other file that an attack needs.
func (h *matrixHost) helper(t *testing.T, name string) {
	t.Helper()
	if name == "" {
		return
	}
	if _, err := os.Stat(h.path(name)); err == nil {
		return
	}
	seed := uint64(0) // the twin has the image's content
	if name == "donor" {
		seed = 9
	}
	vmtest.RandomFile(t, h.path(name), imageSize, seed)
}

// attack lets another process do it and returns when it was done.
func (h *matrixHost) attack(t *testing.T, c cell, out *outcome) time.Time {
	t.Helper()
	pid := strconv.Itoa(guardPID())
	switch c.guard {
	case guardKilled:
		endGuard(t, "KILL")
	case guardStopped, guardKilledMeanwhile:
		vmtest.Must(t, "kill", "-STOP", pid)
	}
	if c.guard == guardStopped {
		defer vmtest.Must(t, "kill", "-CONT", pid)
	}
	name := c.attack.name
	if c.lifted {
		name = "lifted: " + name
	}
	a := h.target.holder
	if a != nil {
		a.release()
	} else {
		a = startAttack(t, name, h.path("image"))
	}
	patience := 20 * time.Second
	switch c.guard {
	case guardKilledMeanwhile:
		time.Sleep(300 * time.Millisecond) // an open waits for the stopped guard by now
		endGuard(t, "KILL")
	case guardStopped:
		patience = 2 * time.Second // an open waits for the stopped guard
	}
	select {
	case <-a.finished:
		out.call = "done"
		if a.err != nil {
			out.call = "refused: " + strings.TrimSpace(a.said.String())
		}
	case <-time.After(patience):
		if c.guard != guardStopped {
			t.Fatalf("%s: the attack hangs", c.key())
		}
		a.cmd.Process.Kill()
		<-a.finished
		out.call = "waited until it was killed"
	}
	return time.Now()
}

// holder is an attacking process that may wait for its turn.
type holder struct {
	cmd      *exec.Cmd
	said     bytes.Buffer
	finished chan struct{} // closed when it ended, with err
	err      error
	stdin    io.WriteCloser
}

func (a *holder) wait() {
	a.err = a.cmd.Wait()
	close(a.finished)
}

func startAttack(t *testing.T, name, image string) *holder {
	t.Helper()
	a := &holder{cmd: command(t, "attack", name, image), finished: make(chan struct{})}
	a.cmd.Stdout, a.cmd.Stderr = &a.said, &a.said
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go a.wait()
	return a
}

// startHolder starts an attack that has the image open before it is mapped, and goes
// on when it is released.
func startHolder(t *testing.T, name, image string) *holder {
	t.Helper()
	a := &holder{cmd: command(t, "attack", name, image), finished: make(chan struct{})}
	var err error
	if a.stdin, err = a.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	ready, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.cmd.Stderr = &a.said
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(ready).ReadString('\n'); line != opened || err != nil {
		t.Fatalf("the holder says %q, %v", line, err)
	}
	go a.wait()
	return a
}

// release lets a holder go on.
func (a *holder) release() { a.stdin.Close() }

// torn reports whether the mapping lets no I/O through any more.
func (h *matrixHost) torn(t *testing.T) bool {
	t.Helper()
	table, err := h.conn.Table(dm.ByName("vol"))
	if errors.Is(err, dm.ErrNotFound) {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range table {
		if row.Target == "linear" {
			return false
		}
	}
	return true
}

// checkNow makes the guard, if any, check the mapping in full.
func (h *matrixHost) checkNow(t *testing.T) {
	t.Helper()
	client, err := guardrpc.Dial(t.Context(), record.DefaultDir)
	if err != nil {
		t.Fatalf("no guard: %v", err)
	}
	defer client.Close()
	if _, err := client.Check(t.Context(), "vol"); err != nil {
		t.Fatalf("check: %v\nguard: %s", err, guardLog())
	}
}

// stolen lists the pieces of the disk that the mapping named and that are other
// files' blocks now, or all of them when the ground itself moved.
func (h *matrixHost) stolen(t *testing.T, c cell) []dmtable.Segment {
	t.Helper()
	segments := h.target.segments
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
		path := h.path(e.Name())
		if !e.Type().IsRegular() || sameFile(path, h.path("image")) || e.Name() == "link" || e.Name() == "away" {
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
			if x.Physical == 0 {
				continue // f2fs has not chosen the blocks of what was only preallocated
			}
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

// restore puts the host back where it was, so that its files can be looked at.
func (h *matrixHost) restore(t *testing.T, c cell) {
	t.Helper()
	if c.attack.below {
		vmtest.Must(t, "dmsetup", "load", hostName, "--table", strings.TrimSpace(hostTable(deviceNumber(t, h.disk)))) // by number: the gate compares letter by letter
		vmtest.Must(t, "dmsetup", "resume", "--noflush", "--nolockfs", "--noudevsync", hostName)
		vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
	}
	if c.attack.hides {
		vmtest.Must(t, "mount", "/dev/mapper/"+hostName, h.dir)
	}
}

// release unmaps the image and deletes what an attack left.
func (h *matrixHost) release(t *testing.T) {
	t.Helper()
	if h.target == nil {
		return
	}
	if h.target.writer != nil {
		h.target.writer.stop()
		r := dmloop(t, "unmap", "vol")
		if r.Code != 0 && h.fs == "f2fs" && strings.Contains(r.Stderr, "input/output error") {
			// f2fs that wrote a checkpoint while its device was elsewhere takes nothing more
			// until it is mounted again.
			endGuard(t, "KILL")
			vmtest.Must(t, "umount", h.dir)
			vmtest.Must(t, "mount", "/dev/mapper/"+hostName, h.dir)
			r = dmloop(t, "unmap", "vol")
		}
		if r.Code != 0 {
			t.Logf("unmap: %s", r.Stderr)
			if err := guardrpc.NewGuard(record.DefaultDir).Drop(t.Context(), "vol"); err != nil {
				t.Errorf("drop: %v", err)
			}
		}
	}
	if a := h.target.holder; a != nil {
		a.release()
		<-a.finished
	}
	h.target = nil
	delete(h.neighbours, h.path("image.neighbour"))
	for _, name := range []string{"image", "donor", "twin", "clone", "copy", "away", "link", "victim", "image.neighbour"} {
		path := h.path(name)
		if name == "image" || name == "away" || name == "link" {
			onFile(path, os.O_RDONLY, unpin)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%v\nguard: %s", err, guardLog())
		}
	}
	if left, _ := filepath.Glob("/run/dmloop/*.mapping"); len(left) > 0 {
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
	var fs unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &fs) == nil && uint32(fs.Type) == unix.F2FS_SUPER_MAGIC {
		on := uint32(1) // f2fs chooses blocks at once for pinned files only
		if ioctl.Pointer(int(f.Fd()), f2fsPin, &on) != nil {
			return
		}
	}
	for size, at := int64(64<<20), int64(0); size >= 4096; {
		err := unix.Fallocate(int(f.Fd()), 0, at, size)
		if errors.Is(err, unix.EOPNOTSUPP) { // exFAT: a longer file has its blocks at once
			err = f.Truncate(at + size)
		}
		if err != nil {
			size /= 2
			continue
		}
		at += size
	}
	f.Sync()
}
