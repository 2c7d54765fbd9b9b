package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestBar(t *testing.T) {
	var out bytes.Buffer
	start := time.Now()
	b := &bar{out: &out, title: "create", width: 60, start: start}
	b.end()
	if out.Len() > 0 {
		t.Errorf("a bar that was never drawn is cleared: %q", out.String())
	}
	b.show(start.Add(time.Second/2), 0, 1<<30)
	b.show(start.Add(time.Second/2+redraw/2), 1<<20, 1<<30) // too soon
	b.show(start.Add(2*time.Second), 512<<20, 1<<30)
	b.end()
	want := "\rcreate   0% [                                    ] 0B of 1G\x1b[K" +
		"\rcreate  50% [========         ] 512M of 1G, 256M/s, 2s left\x1b[K" +
		"\r\x1b[K"
	if out.String() != want {
		t.Errorf("%q\nwant %q", out.String(), want)
	}
}

func TestBarFitsTheLine(t *testing.T) {
	for width := 1; width < 120; width++ {
		b := &bar{title: "provision", width: width}
		line := b.line(90*time.Second, 5<<40+1, 7<<40)
		if len(line) > max(width-1, 0) {
			t.Errorf("width %d: %q", width, line)
		}
		if strings.ContainsAny(line, "\r\n") {
			t.Errorf("width %d: more than a line: %q", width, line)
		}
	}
	b := &bar{title: "x", width: 80}
	if line := b.line(0, 9, 3); !strings.Contains(line, "100%") {
		t.Errorf("more done than there is: %q", line)
	}
}
