package suite

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"dmloop/internal/vmtest/vm"
)

// A judge counts what a guest's transcript and exit codes say about the tests that were
// asked for, while the guest runs.
type judge struct {
	kernel   string
	packages []guestPackage
	out      io.Writer

	mu    sync.Mutex
	total Counts
	runs  []*packageRun // begun so far
	codes map[int]int   // exit codes by package
	rest  []byte        // an unfinished line
	err   error
}

// A packageRun is one package's test binary in the guest.
type packageRun struct {
	text    bytes.Buffer // all of its output
	counter *counter
	events  io.WriteCloser // takes the output, until the next package begins
	read    chan error     // says when the counter has read it all
	settled bool           // its counts are in the total
}

func newJudge(kernel string, packages []guestPackage, out io.Writer) *judge {
	return &judge{kernel: kernel, packages: packages, out: out, codes: map[int]int{}}
}

// Write takes a piece of the transcript.
func (j *judge) Write(data []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rest = append(j.rest, data...)
	for {
		end := bytes.IndexByte(j.rest, '\n') + 1
		if end == 0 {
			return len(data), nil
		}
		j.line(j.rest[:end])
		j.rest = j.rest[end:]
	}
}

// line gives a line to the package that printed it. What is printed before the first
// package begins is nobody's.
func (j *judge) line(line []byte) {
	next := len(j.runs)
	if string(line) == strings.TrimPrefix(vm.CommandMark(next), "\n") && next < len(j.packages) {
		j.close(next - 1)
		j.settle(next - 1)
		run := &packageRun{counter: newCounter(j.kernel, j.out), read: make(chan error, 1)}
		j.runs = append(j.runs, run)
		j.err = errors.Join(j.err, run.start(j.packages[next].Path))
		return
	}
	if next == 0 {
		return
	}
	run := j.runs[next-1]
	run.text.Write(line)
	if run.events != nil {
		if _, err := run.events.Write(line); err != nil {
			j.err = errors.Join(j.err, fmt.Errorf("go tool test2json: %w", err))
		}
	}
}

// start turns the output of the package's test binary into events for the counter.
func (r *packageRun) start(pkg string) error {
	test2json := exec.Command("go", "tool", "test2json", "-t", "-p", pkg) // without -t it leaves out how long tests took
	in, err := test2json.StdinPipe()
	if err != nil {
		return err
	}
	out, err := test2json.StdoutPipe()
	if err != nil {
		return err
	}
	if err := test2json.Start(); err != nil {
		return fmt.Errorf("go tool test2json: %w", err)
	}
	r.events = in
	go func() {
		err := r.counter.read(out)
		if err != nil { // or test2json would wait for a reader
			_, _ = io.Copy(io.Discard, out)
		}
		r.read <- errors.Join(err, test2json.Wait())
	}()
	return nil
}

// close ends the output of package i and waits until all of it was counted.
func (j *judge) close(i int) {
	if i < 0 || j.runs[i].events == nil {
		return
	}
	run := j.runs[i]
	err := errors.Join(run.events.Close(), <-run.read)
	run.events = nil
	if err != nil {
		j.err = errors.Join(j.err, fmt.Errorf("go tool test2json: %w", err))
	}
}

// exited hears of package i's exit code, which may come before the end of its output.
func (j *judge) exited(i, code int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.codes[i] = code
	j.settle(i)
}

// settle adds package i to the total when both its output and its exit code are there.
func (j *judge) settle(i int) {
	if i < 0 || i >= len(j.runs) || j.runs[i].events != nil || j.runs[i].settled {
		return
	}
	if code, known := j.codes[i]; known {
		j.add(i, &code)
	}
}

// add judges package i, whose exit code is nil if the guest died before it, and prints
// what was not yet printed.
func (j *judge) add(i int, code *int) {
	pkg := j.packages[i]
	c, seen, text := Counts{}, map[string]bool{}, ""
	told := 0
	if i < len(j.runs) {
		run := j.runs[i]
		run.settled = true
		c, seen, text, told = run.counter.Counts, run.counter.seen, run.text.String(), run.counter.told
	}
	missing := slices.DeleteFunc(slices.Clone(pkg.Tests), func(name string) bool { return seen[name] })
	if len(missing) > 0 {
		c.fail(j.kernel+": "+pkg.Path+": no result of "+strings.Join(missing, " "), "")
	}
	switch {
	case len(c.Failures) > 0:
	case code == nil:
		c.fail(j.kernel+": "+pkg.Path+": no exit code", text)
	case *code != 0:
		c.fail(fmt.Sprintf("%s: %s: exit code %d", j.kernel, pkg.Path, *code), text)
	}
	c.tell(j.out, told)
	j.total.Add(c)
}

// end judges what is left when the guest is gone, which failed itself unless guestErr is
// nil. An error means that the transcript could not be read.
func (j *judge) end(guestErr error) (Counts, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.rest) > 0 {
		j.line(j.rest)
		j.rest = nil
	}
	j.close(len(j.runs) - 1)
	for i := range j.packages {
		if i < len(j.runs) && j.runs[i].settled {
			continue
		}
		if code, known := j.codes[i]; known {
			j.add(i, &code)
		} else {
			j.add(i, nil)
		}
	}
	if guestErr != nil {
		told := len(j.total.Failures)
		j.total.fail(j.kernel, guestErr.Error())
		j.total.tell(j.out, told)
	}
	return j.total, j.err
}
