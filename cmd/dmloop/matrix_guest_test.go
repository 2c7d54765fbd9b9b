//go:build vmtest

package main

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dmloop/guard"
	"dmloop/internal/gate"
	"dmloop/internal/vmtest"
)

// cell is one attack under one set of circumstances.
type cell struct {
	fs     string
	unsafe bool // mapped without a pin
	guard  guardFate
	lifted bool
	attack attack
}

// guardFate is what becomes of the guard around an attack.
type guardFate string

const (
	guardRunning         guardFate = "running"
	guardStopped         guardFate = "stopped"          // SIGSTOP before the attack, SIGCONT after it
	guardKilled          guardFate = "killed"           // SIGKILL before the attack, another guard half a second after it
	guardKilledMeanwhile guardFate = "killed meanwhile" // SIGSTOP, the attack begins, SIGKILL while it is under way
	guardNever           guardFate = "never started"    // only with the gate in the kernel
)

// dead reports whether the guard of before the attack is gone after it.
func (f guardFate) dead() bool { return f == guardKilled || f == guardKilledMeanwhile }

// outcome is a line of the table in docs/guarantees.md.
type outcome struct {
	cell
	grade   string
	call    string // "done", or why the attack was refused
	result  string // "untouched", "torn down", "weakened" or "NOT NOTICED"
	window  time.Duration
	written int   // blocks that were written through the mapping although they had become somebody else's
	foreign int64 // blocks that read otherwise through the mapping than they were written
}

// refused reports whether the attacker was told no.
func (o outcome) refused() bool {
	return strings.HasPrefix(o.call, "refused") || strings.HasPrefix(o.call, "map refused")
}

// done reports whether the attack went through, as far as it knows.
func (o outcome) done() bool { return o.call == "done" }

// usualCells are tried when DMLOOP_MATRIX does not say which; "." is all of them,
// some minutes in an emulated guest.
const usualCells = `^running (pinned|unsafe) (chattr -i, then )?(write|truncate\(2\) down by path|unlink|rename away|reflink from|` +
	`dedupe, image as source|EXT4_IOC_MOVE_EXT|file_setattr.*|f2fs garbage collection|umount -l|own device reloaded|host device .*)$|` +
	`^killed( meanwhile)? pinned chattr -i, then unlink$`

// What root does to an image that is mapped and written to. Each line of output that
// begins with MATRIX is a row; docs/guarantees.md is made of all of them
// (internal/cmd/guarantees).
func TestMatrixExt4(t *testing.T)     { matrix(t, "ext4") }
func TestQemuMatrixXFS(t *testing.T)  { matrix(t, "xfs") }
func TestQemuMatrixF2FS(t *testing.T) { matrix(t, "f2fs") }

func matrix(t *testing.T, fs string) {
	kernel := vmtest.Kernel(t)
	only, err := regexp.Compile(cmp.Or(os.Getenv("DMLOOP_MATRIX"), usualCells))
	if err != nil {
		t.Fatal(err)
	}
	h := newMatrixHost(t, fs)
	defer h.release(t)
	for _, c := range cells(fs, kernel) {
		if !only.MatchString(c.key()) {
			continue
		}
		out := h.try(t, c)
		fmt.Printf("MATRIX|%s|%s|%s|%s|%s|%s|%s|%s|%d\n", kernel, fs, out.grade, c.guard, c.name(), out.call, out.result, windowText(out.window), out.written)
		// Without permission events nobody is kept from taking the flag away first.
		protected := !c.unsafe && c.guard == guardRunning && (!c.lifted || kernel != "uml")
		elsewhere := c.attack.below || c.attack.outside
		if !gate.Off { // whatever becomes of the guard, and whatever is attacked
			protected, elsewhere = !c.unsafe, false
		}
		switch {
		case strings.HasPrefix(out.result, "NOT"):
			t.Errorf("%s, %s: %s, %s\nguard: %s", fs, c.key(), out.call, out.result, guardLog())
		case protected && !elsewhere && out.written+int(out.foreign) > 0:
			t.Errorf("%s, %s: %d blocks of others were overwritten and %d read under grade %s", fs, c.key(), out.written, out.foreign, out.grade)
		}
	}
}

func (c cell) name() string {
	if c.lifted {
		return "chattr -i, then " + c.attack.name
	}
	return c.attack.name
}

// key is what DMLOOP_MATRIX is matched with.
func (c cell) key() string {
	kind := "pinned"
	if c.unsafe {
		kind = "unsafe"
	}
	return string(c.guard) + " " + kind + " " + c.name()
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
// and against an unpinned one, and many with the guard away. Cells that can share a
// mapping stand together.
func cells(fs, kernel string) []cell {
	here := slices.DeleteFunc(slices.Clone(attacks), func(a attack) bool { return !listed(a.fs, fs) || !listed(a.only, kernel) })
	var all []cell
	for _, a := range here {
		all = append(all, cell{fs: fs, guard: guardRunning, attack: a})
		if a.lifted {
			all = append(all, cell{fs: fs, guard: guardRunning, attack: a, lifted: true})
		}
	}
	for _, a := range here {
		if a.unpins {
			continue // there is nothing to take away
		}
		all = append(all, cell{fs: fs, guard: guardRunning, attack: a, unsafe: true})
	}
	fates := []guardFate{guardStopped, guardKilled, guardKilledMeanwhile}
	if !gate.Off && fs != "f2fs" { // whose pin needs a guard
		fates = append(fates, guardNever)
	}
	for _, fate := range fates {
		for _, a := range here {
			if !a.alone {
				continue
			}
			all = append(all, cell{fs: fs, guard: fate, attack: a})
			if a.lifted && (fate.dead() || fate == guardNever) {
				all = append(all, cell{fs: fs, guard: fate, attack: a, lifted: true})
			}
		}
	}
	return all
}

func listed(list, word string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), word)
}

// try runs one cell. An image that the last one left as it was is attacked again.
func (h *matrixHost) try(t *testing.T, c cell) outcome {
	t.Helper()
	out := outcome{cell: c}
	if h.target == nil || h.target.unsafe != c.unsafe || h.target.unguarded != (c.guard == guardNever) || c.attack.still || c.attack.older {
		h.release(t)
		if refusal := h.prepare(t, c); refusal != "" {
			out.grade, out.call, out.result = cmp.Or(h.grades[c.unsafe], "-"), "map "+refusal, "untouched"
			h.release(t)
			return out
		}
	}
	h.helper(t, c.attack.helper)
	w := h.target.writer
	out.grade = h.target.grade
	done := h.attack(t, c, &out)
	h.settle(t, c, done, &out)
	stolen := h.stolen(t, c)
	h.judge(t, c, &out)
	if !out.done() && out.result == "untouched" && !c.attack.still {
		if err := os.Remove(h.path("victim")); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		out.foreign = w.foreign.Load()
		return out
	}
	w.stop()
	out.foreign = w.foreign.Load()
	out.written = writtenSince(t, h.disk, stolen, done)
	h.release(t)
	return out
}

// settle gives the blocks that became free to somebody else, brings the guard back,
// and waits for the tear-down, or until it is clear that none is due.
func (h *matrixHost) settle(t *testing.T, c cell, done time.Time, out *outcome) {
	t.Helper()
	if !out.refused() && !c.attack.below && !c.attack.hides {
		takeAllSpace(h.path("victim"))
	}
	if c.guard.dead() {
		time.Sleep(500 * time.Millisecond) // long enough that nobody takes it for luck
		startGuard(t, "--idle-exit", "5m")
	}
	w := h.target.writer
	failed := func(patience time.Duration) bool {
		select {
		case <-w.failed:
			out.window = max(w.firstError.Sub(done), time.Microsecond)
			return true
		case <-time.After(patience):
			return false
		}
	}
	soon := 300 * time.Millisecond
	if out.refused() {
		soon = 20 * time.Millisecond
	}
	if failed(soon) {
		return
	}
	if dmloop(t, "verify", "vol").Code == 0 {
		if c.guard != guardNever {
			h.checkNow(t) // the guard sees it in the same way
		}
		failed(20 * time.Millisecond)
		return
	}
	failed(guard.DefaultPace.Bound + guard.DefaultPace.Tick) // a silent change waits for the next full reading
}

// judge compares what happened with what had to happen: mapping, image and guard.
func (h *matrixHost) judge(t *testing.T, c cell, out *outcome) {
	t.Helper()
	torn := h.torn(t)
	r := dmloop(t, "verify", "vol")
	if torn { // the record follows the table
		for end := time.Now().Add(2 * time.Second); !failedState(r.Stdout) && time.Now().Before(end); r = dmloop(t, "verify", "vol") {
		}
	}
	switch {
	case torn && failedState(r.Stdout):
		out.result = "torn down"
	case torn:
		out.result = "NOT RECORDED: " + strings.Join(strings.Fields(r.Stdout+r.Stderr), " ")
	case r.Code != 0:
		out.result = "NOT NOTICED: " + strings.Join(strings.Fields(r.Stdout+r.Stderr), " ")
	case strings.HasPrefix(r.Stdout, "vol: weakened"):
		out.result = "weakened, set again"
	default:
		out.result = "untouched"
	}
	h.restore(t, c)
	if changed := h.changedNeighbour(t); changed != "" {
		out.result = "NOT HARMLESS: " + changed + " changed"
	}
}

func failedState(verified string) bool {
	return strings.HasPrefix(verified, "vol: failed") || strings.HasPrefix(verified, "vol: releasing")
}
