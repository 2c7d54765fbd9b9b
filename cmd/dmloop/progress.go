package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"dmloop/extents"
)

// progress returns what shows a bar on a terminal and nothing elsewhere, and what
// ends it.
func progress(env *cliEnv, title string) (show func(done, total extents.Bytes), end func()) {
	if env.json || !terminal(env.stderr) {
		return nil, func() {}
	}
	b := &bar{out: env.stderr, title: title, start: time.Now(), width: 80}
	if f, ok := env.stderr.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			b.width = width
		}
	}
	return func(done, total extents.Bytes) { b.show(time.Now(), done, total) }, b.end
}

// bar is one line that is drawn again and again, and is gone at the end. A line
// that cannot be written does not stop the work.
type bar struct {
	out   io.Writer
	title string
	width int
	start time.Time
	drawn time.Time // the last time
}

const redraw = 100 * time.Millisecond

func (b *bar) show(now time.Time, done, total extents.Bytes) {
	if now.Sub(b.drawn) < redraw || total <= 0 {
		return
	}
	b.drawn = now
	fmt.Fprintf(b.out, "\r%s\x1b[K", b.line(now.Sub(b.start), done, total))
}

func (b *bar) end() {
	if !b.drawn.IsZero() {
		fmt.Fprint(b.out, "\r\x1b[K")
	}
}

// line leaves the last column free: some terminals begin a new line after it.
func (b *bar) line(took time.Duration, done, total extents.Bytes) string {
	share := min(float64(done)/float64(total), 1)
	head := fmt.Sprintf("%s %3.0f%% ", b.title, 100*share)
	tail := fmt.Sprintf(" %s of %s", humanSize(done), humanSize(total))
	if rate := float64(done) / took.Seconds(); took > time.Second && done > 0 {
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		tail += fmt.Sprintf(", %s/s, %s left", humanSize(extents.Bytes(rate)), left.Round(time.Second))
	}
	room := b.width - 1 - len(head) - len(tail) - 2
	if room < 4 {
		return fmt.Sprintf("%.*s", max(b.width-1, 0), head)
	}
	full := int(share * float64(room))
	return head + "[" + strings.Repeat("=", full) + strings.Repeat(" ", room-full) + "]" + tail
}
