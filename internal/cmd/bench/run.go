package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// must runs a program that has to succeed and returns its standard output.
func must(name string, args ...string) string {
	out, _ := timed(name, args...)
	return out
}

// timed is must with the time from start to end in milliseconds.
func timed(name string, args ...string) (stdout string, ms float64) {
	out, _, ms := execute(name, args...)
	return out, ms
}

// execute runs a program that has to succeed: its outputs, and its time in milliseconds.
func execute(name string, args ...string) (stdout, stderr string, ms float64) {
	var out, errOut bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	start := time.Now()
	err := cmd.Run()
	ms = float64(time.Since(start)) / float64(time.Millisecond)
	if err != nil {
		check(fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errOut.String()))
	}
	return out.String(), errOut.String(), ms
}

// silent runs a program with its output thrown away by the kernel, so that
// nobody's pipe is measured.
func silent(name string, args ...string) (ms, mib float64) {
	var errOut bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &errOut
	start := time.Now()
	err := cmd.Run()
	ms = float64(time.Since(start)) / float64(time.Millisecond)
	if err != nil {
		check(fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errOut.String()))
	}
	return ms, float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) / 1024
}

// sample measures both sides in turn, so that a change of the machine's load
// meets both, and lets the other side begin in every second round. One round
// before that warms the caches and is not counted.
func (b *bed) sample(ours, theirs func() float64) (us, them []float64) {
	for i := range b.rounds + 1 {
		var o, t float64
		if i%2 == 0 {
			o, t = ours(), theirs()
		} else {
			t, o = theirs(), ours()
		}
		if i > 0 {
			us, them = append(us, o), append(them, t)
		}
	}
	return us, them
}
