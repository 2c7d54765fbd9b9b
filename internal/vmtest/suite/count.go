package suite

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
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
}

func (c *Counts) fail(where, text string) {
	c.Failures = append(c.Failures, strings.TrimRight(where+"\n"+text, "\n"))
}

// count reads the events of a run. Skips are failures. Output is kept per test
// and shown only for those that failed.
func count(label string, r io.Reader) (Counts, map[string]bool, error) {
	var c Counts
	seen := map[string]bool{}       // top-level tests with a result
	output := map[string]string{}   // "package test" -> its output
	running := map[string]bool{}    // started, no result
	badInside := map[string]bool{}  // packages with a failed test
	failedHere := map[string]bool{} // tests with a failed subtest
	for dec := json.NewDecoder(r); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return c, seen, fmt.Errorf("test events: %w", err)
		}
		key := e.Package + " " + e.Test
		where := label + ": " + strings.TrimSpace(key)
		switch e.Action {
		case "run":
			running[key] = true
			continue
		case "output":
			output[key] += e.Output
			continue
		case "pass", "fail", "skip":
		case "build-fail":
			c.fail(where+": does not build", "")
			continue
		default:
			continue
		}
		delete(running, key)
		if e.Test != "" && !strings.Contains(e.Test, "/") {
			seen[e.Test] = true
			c.Times = append(c.Times, Time{e.Elapsed, where})
		}
		switch {
		case e.Action == "skip" && e.Test == "": // a package without tests
		case e.Action == "skip":
			c.fail(where+": skipped", output[key])
			badInside[e.Package] = true
		case e.Action == "pass" && e.Test != "":
			c.Passed++
		case e.Action == "fail" && e.Test != "":
			badInside[e.Package] = true
			if parent, _, sub := cutLast(key); sub {
				failedHere[parent] = true
			}
			if !failedHere[key] || hasErrorLine(output[key]) {
				c.fail(where, output[key])
			}
		case e.Action == "fail" && !badInside[e.Package]:
			// A leftover, a panic outside a test, a failure to build.
			c.fail(where+": failed outside its tests", output[key])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(running)) {
		c.fail(label+": "+key+": began and never ended", output[key])
		_, test, _ := strings.Cut(key, " ")
		seen[test] = true // one failure is enough
	}
	return c, seen, nil
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

// toEvents turns the output of a test binary into events.
func toEvents(pkg string, output []byte) (io.Reader, error) {
	test2json := exec.Command("go", "tool", "test2json", "-p", pkg)
	test2json.Stdin = bytes.NewReader(output)
	out, err := test2json.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool test2json: %w", err)
	}
	return bytes.NewReader(out), nil
}
