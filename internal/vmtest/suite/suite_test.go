package suite

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"dmloop/internal/vmtest/vm"
)

func TestRunsOn(t *testing.T) {
	for name, want := range map[string]string{
		"TestMap":           "uml 6.1 6.12 new arm64 arm64-16k",
		"TestFullKillNine":  "uml",
		"TestQemuGuardDeny": "6.1 6.12 new arm64 arm64-16k",
		"TestNewWriteZeros": "new",
	} {
		var on []string
		for _, kernel := range vm.AllKernels() {
			if runsOn(name, kernel) {
				on = append(on, kernel)
			}
		}
		if got := strings.Join(on, " "); got != want {
			t.Errorf("%s runs on %q, want %q", name, got, want)
		}
	}
}

func TestEachArchitectureIsBuiltOnce(t *testing.T) {
	got := architectures([]string{vm.KernelArm64, vm.Kernel61, vm.KernelArm64Pages16K, vm.Kernel612})
	if !slices.Equal(got, []string{"amd64", "arm64"}) {
		t.Errorf("%q", got)
	}
}

func TestChoose(t *testing.T) {
	all := []guestPackage{{Path: "m/a", Tests: []string{"TestOne", "TestFullTwo"}}, {Path: "m/b", Tests: []string{"TestQemuThree"}}}
	got, err := choose(all, vm.KernelNew, "")
	if err != nil || len(got) != 2 || !slices.Equal(got[0].Tests, []string{"TestOne"}) {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = choose(all, vm.KernelUML, "Two/sub")
	if err != nil || len(got) != 1 || !slices.Equal(got[0].Tests, []string{"TestFullTwo"}) {
		t.Errorf("%+v, %v", got, err)
	}
	if p := runPattern(got[0].Tests, "Two/sub"); p != "^(TestFullTwo)$/sub" {
		t.Errorf("pattern %q", p)
	}
	if len(all[0].Tests) != 2 {
		t.Error("choosing changed what was chosen from")
	}
}

func TestTestNames(t *testing.T) {
	got, err := testNames("x_test.go", []byte(`package x
func TestMain(m int) {}
func TestA(t int) {}
func Testing() {}
func (r R) TestMethod() {}
func Test1(t int) {}
`))
	if err != nil || !slices.Equal(got, []string{"TestA", "Test1"}) {
		t.Errorf("%q, %v", got, err)
	}
}

// transcript is what a guest prints that ran these outputs one after the other.
func transcript(parts ...string) []byte {
	var all strings.Builder
	for i, part := range parts {
		all.WriteString(vm.CommandMark(i) + part)
	}
	return []byte(all.String())
}

// Outputs of test binaries with -test.v=test2json.
const (
	passA = "\x16=== RUN   TestA\n\x16=== RUN   TestA/sub\n\x16--- PASS: TestA/sub (0.00s)\n\x16=== NAME  TestA\n\x16--- PASS: TestA (1.50s)\n\x16=== NAME  \n\x16PASS\n"
	skipA = "\x16=== RUN   TestA\n    a_test.go:1: no disk\n\x16--- SKIP: TestA (0.00s)\n\x16=== NAME  \n\x16PASS\n"
	failA = "\x16=== RUN   TestA\n    a_test.go:1: is wrong\n\x16--- FAIL: TestA (0.00s)\n\x16=== NAME  \n\x16FAIL\n"
	subA  = "\x16=== RUN   TestA\n\x16=== RUN   TestA/sub\n    a_test.go:1: is wrong\n\x16--- FAIL: TestA/sub (0.00s)\n\x16=== NAME  TestA\n\x16--- FAIL: TestA (0.00s)\n\x16=== NAME  \n\x16FAIL\n"
	cutB  = "\x16=== RUN   TestB\nsome output"
	passB = "\x16=== RUN   TestB\n\x16--- PASS: TestB (0.00s)\n\x16=== NAME  \n\x16PASS\n"
	// What a test prints must not count as a result.
	fakeB = "\x16=== RUN   TestB\n--- PASS: TestFake (0.00s)\n\x16--- PASS: TestB (0.00s)\n\x16=== NAME  \n\x16PASS\n"
)

func TestJudge(t *testing.T) {
	packages := []guestPackage{{Path: "m/a", Tests: []string{"TestA"}}, {Path: "m/b", Tests: []string{"TestB"}}}
	for _, c := range []struct {
		name     string
		parts    []string
		codes    []int
		passed   int
		failures []string // a part of each
	}{
		{"good", []string{passA, passB}, []int{0, 0}, 3, nil},
		{"printed result", []string{passA, fakeB}, []int{0, 0}, 3, nil},
		{"skipped", []string{skipA, passB}, []int{0, 0}, 1, []string{"m/a TestA: skipped"}},
		{"failed", []string{failA, passB}, []int{1, 0}, 1, []string{"is wrong"}},
		{"failed once, not twice", []string{subA, passB}, []int{1, 0}, 1, []string{"m/a TestA/sub"}},
		{"vanished", []string{"\x16PASS\n", passB}, []int{0, 0}, 1, []string{"m/a: no result of TestA"}},
		{"leftover", []string{passA + "FAIL: the tests left behind\n", passB}, []int{1, 0}, 3, []string{"left behind"}},
		{"guest died", []string{passA, cutB}, []int{0}, 2, []string{"m/b TestB: began and never ended"}},
		{"died before", []string{passA}, []int{0}, 2, []string{"m/b: no result of TestB"}},
	} {
		var out strings.Builder
		j := newJudge("uml", packages, &syncWriter{w: &out})
		text := transcript(c.parts...)
		for len(text) > 0 { // as it comes through a pipe
			n := min(7, len(text))
			if _, err := j.Write(text[:n]); err != nil {
				t.Fatal(err)
			}
			text = text[n:]
		}
		for i, code := range c.codes {
			j.exited(i, code)
		}
		got, err := j.end(nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.parts[0] == passA && (len(got.Times) == 0 || got.Times[0] != Time{1.5, "uml: m/a TestA"}) {
			t.Errorf("%s: times %v", c.name, got.Times)
		}
		for _, failure := range got.Failures {
			if strings.Count(out.String(), fmt.Sprintf(FailureFormat, failure)) != 1 {
				t.Errorf("%s: not printed once: %q in %q", c.name, failure, out.String())
			}
		}
		if got.Passed != c.passed || len(got.Failures) != len(c.failures) {
			t.Errorf("%s: %d passed, failures %q", c.name, got.Passed, got.Failures)
			continue
		}
		for i, want := range c.failures {
			if !strings.Contains(got.Failures[i], want) {
				t.Errorf("%s: failure %q does not say %q", c.name, got.Failures[i], want)
			}
		}
	}
}

func TestCountSeesPackagesThatDoNotBuild(t *testing.T) {
	const events = `{"Action":"start","Package":"m/a"}
{"Action":"output","Package":"m/a","Output":"FAIL\tm/a [build failed]\n"}
{"Action":"fail","Package":"m/a","Elapsed":0}
`
	c := newCounter("unit", io.Discard)
	err := c.read(strings.NewReader(events))
	if err != nil || c.Passed != 0 || len(c.Failures) != 1 || !strings.Contains(c.Failures[0], "build failed") {
		t.Errorf("%+v, %v", c.Counts, err)
	}
}

// heard is an output that says when a text was printed to it.
type heard struct {
	text string
	yes  chan struct{}
	all  strings.Builder
}

func (h *heard) Write(data []byte) (int, error) {
	before := strings.Contains(h.all.String(), h.text)
	h.all.Write(data)
	if !before && strings.Contains(h.all.String(), h.text) {
		close(h.yes)
	}
	return len(data), nil
}

// wait fails the test when the text was not printed while the run goes on. The time is
// for a run that never will.
func (h *heard) wait(t *testing.T) {
	t.Helper()
	select {
	case <-h.yes:
	case <-time.After(2 * time.Minute):
		t.Fatalf("%q was not printed when it happened", h.text)
	}
}

// A failure is printed when it happens and not when the run ends.
func TestFailuresAreToldAtOnce(t *testing.T) {
	const failed = "FAILED unit: m/a TestA\n    a_test.go:1: is wrong\n"
	unit := &heard{text: failed, yes: make(chan struct{})}
	c := newCounter("unit", unit)
	events, feed := io.Pipe()
	read := make(chan error, 1)
	go func() { read <- c.read(events) }()
	fmt.Fprintln(feed, `{"Action":"output","Package":"m/a","Test":"TestA","Output":"    a_test.go:1: is wrong\n"}`)
	fmt.Fprintln(feed, `{"Action":"fail","Package":"m/a","Test":"TestA"}`)
	unit.wait(t)
	feed.Close()
	if err := <-read; err != nil {
		t.Error(err)
	}

	guest := &heard{text: "FAILED uml: m/a TestA\n", yes: make(chan struct{})}
	j := newJudge("uml", []guestPackage{{Path: "m/a", Tests: []string{"TestA", "TestB"}}}, &syncWriter{w: guest})
	fmt.Fprint(j, vm.CommandMark(0), strings.TrimSuffix(failA, "\x16FAIL\n"), cutB)
	guest.wait(t)
	if got, err := j.end(nil); err != nil || len(got.Failures) != 2 {
		t.Errorf("%+v, %v", got, err)
	}

	// Not even when only the exit code says it and another package goes on.
	exit := &heard{text: "FAILED uml: m/a: exit code 2\n", yes: make(chan struct{})}
	j = newJudge("uml", []guestPackage{{Path: "m/a", Tests: []string{"TestA"}}, {Path: "m/b", Tests: []string{"TestB"}}}, &syncWriter{w: exit})
	j.exited(0, 2)
	fmt.Fprint(j, vm.CommandMark(0), passA, vm.CommandMark(1), cutB)
	exit.wait(t)
	if got, err := j.end(errors.New("guest uml: gone")); err != nil || len(got.Failures) != 3 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestProgressShowsResults(t *testing.T) {
	var out strings.Builder
	p := &progress{label: "uml", out: &out}
	for _, piece := range []string{"noise\n\x16--- PA", "SS: TestA (0.1s)\nmore ", "noise\n--- PASS: TestA/sub (0.1s)\n"} {
		fmt.Fprint(p, piece)
	}
	if out.String() != "uml: --- PASS: TestA (0.1s)\n" {
		t.Errorf("%q", out.String())
	}
}

func TestSlowest(t *testing.T) {
	c := Counts{Times: []Time{{1, "a"}, {3, "b"}, {2, "c"}}}
	if got := c.Slowest(2); len(got) != 2 || got[0].Test != "b" || got[1].Test != "c" {
		t.Errorf("%v", got)
	}
	if got := c.Slowest(9); len(got) != 3 {
		t.Errorf("%v", got)
	}
}

func TestShares(t *testing.T) {
	all := shares(Options{Kernels: []string{"uml", "6.1"}, Parts: 2})
	if len(all) != 3 || all[0].label() != "uml 1/2" || all[1].label() != "uml 2/2" || all[2].label() != "6.1" {
		t.Fatalf("%+v", all)
	}
	packages := []guestPackage{{Path: "a", Tests: []string{"Test1", "Test2", "Test3"}}, {Path: "b", Tests: []string{"Test4", "Test5"}}, {Path: "c", Tests: []string{"Test6"}}}
	var ran []string
	for _, s := range all[:2] {
		for _, pkg := range s.of(packages) {
			for _, test := range pkg.Tests {
				ran = append(ran, pkg.Path+" "+test)
			}
		}
	}
	slices.Sort(ran)
	if want := []string{"a Test1", "a Test2", "a Test3", "b Test4", "b Test5", "c Test6"}; !slices.Equal(ran, want) {
		t.Errorf("%q, want %q", ran, want)
	}
	if one := all[2].of(packages); len(one) != 3 || len(one[0].Tests) != 3 {
		t.Errorf("%+v", one)
	}
}
