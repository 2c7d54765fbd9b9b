package suite

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"sync"
)

// A syncWriter lets several guests share one output.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

var resultLine = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): [^/]+ \(`)

// progress prints the result of each test without its subtests, or all lines, as they come, with the
// guest's name in front.
type progress struct {
	label string
	out   io.Writer
	all   bool
	rest  []byte
}

func (p *progress) Write(data []byte) (int, error) {
	p.rest = append(p.rest, data...)
	for {
		line, rest, found := bytes.Cut(p.rest, []byte("\n"))
		if !found {
			return len(data), nil
		}
		p.rest = rest
		line = bytes.ReplaceAll(line, []byte{0x16}, nil) // marks for test2json
		if p.all || resultLine.Match(line) {
			if _, err := fmt.Fprintf(p.out, "%s: %s\n", p.label, line); err != nil {
				return 0, err
			}
		}
	}
}
