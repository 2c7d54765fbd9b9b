package suite

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// An event is one line of go test -json.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds
}

// Counts is what came out of a run. Subtests count as tests.
type Counts struct {
	Passed   int
	Failures []string // what failed, and the output that belongs to it
	Times    []Time   // of tests, without subtests
	Restarts int      // of guests that died at boot
}

// A Time is how long a test took.
type Time struct {
	Seconds float64
	Test    string // with guest and package
}

// Slowest returns the n tests that took longest.
func (c Counts) Slowest(n int) []Time {
	sorted := slices.SortedFunc(slices.Values(c.Times), func(a, b Time) int { return cmp.Compare(b.Seconds, a.Seconds) })
	return sorted[:min(n, len(sorted))]
}

// Add joins two counts.
func (c *Counts) Add(d Counts) {
	c.Passed += d.Passed
	c.Failures = append(c.Failures, d.Failures...)
	c.Times = append(c.Times, d.Times...)
	c.Restarts += d.Restarts
}

func (c *Counts) fail(where, text string) {
	c.Failures = append(c.Failures, strings.TrimRight(where+"\n"+text, "\n"))
}

// A FailureFormat shows one failure, when it happens and once more at the end.
const FailureFormat = "\nFAILED %s\n"

// tell prints the failures from number told on and returns how many there are.
func (c *Counts) tell(out io.Writer, told int) int {
	for _, failure := range c.Failures[told:] {
		fmt.Fprintf(out, FailureFormat, failure)
	}
	return len(c.Failures)
}

// A counter judges the events of one run as they come.
type counter struct {
	Counts
	label      string
	out        io.Writer         // where failures are told
	told       int               // of Failures
	seen       map[string]bool   // top-level tests with a result
	output     map[string]string // "package test" -> its output
	running    map[string]bool   // started, no result
	badInside  map[string]bool   // packages with a failed test
	failedHere map[string]bool   // tests with a failed subtest
}

func newCounter(label string, out io.Writer) *counter {
	return &counter{label: label, out: out, seen: map[string]bool{}, output: map[string]string{},
		running: map[string]bool{}, badInside: map[string]bool{}, failedHere: map[string]bool{}}
}

// read judges the events of r until it ends, and prints each failure when it happens. What
// began and never ended is a failure too.
func (c *counter) read(r io.Reader) error {
	for dec := json.NewDecoder(r); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("test events: %w", err)
		}
		c.event(e)
		c.told = c.tell(c.out, c.told)
	}
	for _, key := range slices.Sorted(maps.Keys(c.running)) {
		c.fail(c.label+": "+key+": began and never ended", c.output[key])
		_, test, _ := strings.Cut(key, " ")
		c.seen[test] = true // one failure is enough
	}
	c.told = c.tell(c.out, c.told)
	return nil
}

// event judges one event. Skips are failures. Output is kept per test and shown only for
// those that failed.
func (c *counter) event(e event) {
	key := e.Package + " " + e.Test
	where := c.label + ": " + strings.TrimSpace(key)
	switch e.Action {
	case "run":
		c.running[key] = true
		return
	case "output":
		c.output[key] += e.Output
		return
	case "pass", "fail", "skip":
	case "build-fail":
		c.fail(where+": does not build", "")
		return
	default:
		return
	}
	delete(c.running, key)
	if e.Test != "" && !strings.Contains(e.Test, "/") {
		c.seen[e.Test] = true
		c.Times = append(c.Times, Time{e.Elapsed, where})
	}
	switch {
	case e.Action == "skip" && e.Test == "": // a package without tests
	case e.Action == "skip":
		c.fail(where+": skipped", c.output[key])
		c.badInside[e.Package] = true
	case e.Action == "pass" && e.Test != "":
		c.Passed++
	case e.Action == "fail" && e.Test != "":
		c.badInside[e.Package] = true
		if parent, _, sub := cutLast(key); sub {
			c.failedHere[parent] = true
		}
		if !c.failedHere[key] || hasErrorLine(c.output[key]) {
			c.fail(where, c.output[key])
		}
	case e.Action == "fail" && !c.badInside[e.Package]:
		// A leftover, a panic outside a test, a failure to build.
		c.fail(where+": failed outside its tests", c.output[key])
	}
}

// cutLast splits a test's name from its last subtest.
func cutLast(key string) (parent, sub string, ok bool) {
	i := strings.LastIndex(key, "/")
	// The import path has slashes too.
	if i < 0 || i < strings.Index(key, " ") {
		return key, "", false
	}
	return key[:i], key[i+1:], true
}

// hasErrorLine reports whether a failed test said something of its own, and
// not only that a subtest had failed.
func hasErrorLine(output string) bool { return strings.Contains(output, "_test.go:") }
