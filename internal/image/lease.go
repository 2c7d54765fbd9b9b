package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// ErrCannotProve says that the kernel would not tell whether somebody else has the
// file open; the errno is wrapped beside it. That is not the answer "nobody".
var ErrCannotProve = errors.New("cannot prove that nobody else has the file open")

// Lease is a write lease on a file (fcntl F_SETLEASE F_WRLCK): the proof that nobody
// else has it open. Whoever wants to open it waits until the lease is released, for up
// to /proc/sys/fs/lease-break-time (45 s), so it is held shortly.
type Lease struct{ file *os.File }

// Release gives the lease back. One that is gone already is not an error.
func (l *Lease) Release() error {
	err := inode.SetLease(l.file, unix.F_UNLCK)
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	return err
}

// Whole reports whether the lease is in force and nobody waits for its end. Somebody
// who waits has passed every check of its open and gets in when it ends.
func (l *Lease) Whole() (bool, error) {
	kind, err := inode.Lease(l.file)
	return kind == unix.F_WRLCK, err
}

// Wait says how AwaitSoleOpener waits.
type Wait struct {
	Patience time.Duration
	Say      func(whom string) // called once, when it has taken a second; may be nil
}

// Between tries: somebody who has the file open for a moment, such as an on-access
// scanner, is gone soon, and somebody who has not gone then is asked less often.
const (
	firstPause = 2 * time.Millisecond
	lastPause  = 200 * time.Millisecond
	sayAfter   = time.Second
)

// AwaitSoleOpener takes the write lease on f, which the kernel grants only while f is
// the one open description of the file: no other descriptor, mapping, loop device or
// active swap, in any process, our own included, and no open that is under way, asleep
// or not. O_PATH descriptors do not count. It waits for those who have the file open at
// the moment.
//
// It fails with a *extents.Refusal of the rule open-elsewhere that names whom it can, with
// the context's error when that ends first, or with an error that wraps ErrCannotProve:
// EACCES without CAP_LEASE on a file of somebody else's, EINVAL with fs.leases-enable=0
// or on a file system without leases.
func AwaitSoleOpener(ctx context.Context, f *os.File, w Wait) (*Lease, error) {
	begun, said := time.Now(), w.Say == nil
	var seen []Opener
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := inode.SetLease(f, unix.F_WRLCK)
		if err == nil {
			return &Lease{file: f}, nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			return nil, fmt.Errorf("%s: %w: %w", f.Name(), ErrCannotProve, err)
		}
		waited := time.Since(begun)
		if left := w.Patience - waited; left <= 0 || standing(seen) {
			return nil, extents.Refuse(f.Name(), openElsewhere(f, seen))
		}
		say := !said && waited >= sayAfter
		if say || pause >= lastPause/2 { // not before: to look at every process takes time
			if now, err := Openers(f); err == nil && len(now) > 0 {
				seen = now
			}
		}
		if say {
			said = true
			w.Say(names(seen))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(max(min(pause, w.Patience-waited), 0)):
		}
	}
}

// standing reports whether only loop devices have the file open, which do not go by
// themselves.
func standing(openers []Opener) bool {
	return len(openers) > 0 && !slices.ContainsFunc(openers, func(o Opener) bool { return o.PID != 0 })
}

// unseen stands for openers that cannot be named.
const unseen = "out of sight from here (another PID namespace, or the kernel itself)"

func names(openers []Opener) string {
	if len(openers) == 0 {
		return "somebody " + unseen
	}
	list := make([]string, len(openers))
	for i, o := range openers {
		list[i] = o.String()
	}
	return strings.Join(list, ", ")
}

// openElsewhere describes who has the file open: those seen now, or those who were seen
// while it was waited for them.
func openElsewhere(f *os.File, seen []Opener) extents.Problem {
	p := extents.Problem{
		Rule:    extents.OpenElsewhere,
		Message: "somebody else has the file open, " + unseen,
	}
	if now, err := Openers(f); err == nil && len(now) > 0 {
		seen = now
	}
	if len(seen) == 0 {
		return p
	}
	p.Message = "somebody else has the file open: " + names(seen)
	if slices.ContainsFunc(seen, func(o Opener) bool { return o.How == Scans }) {
		p.Remedy = advice.AskScanner
	}
	return p
}
