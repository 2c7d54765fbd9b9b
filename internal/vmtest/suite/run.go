package suite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dmloop/internal/vmtest/vm"
)

// Options say what to run and where.
type Options struct {
	Packages []string      // patterns as for go list
	Pattern  string        // as go test -run
	Smoke    string        // on kernels other than uml, of these only those that match this too
	Unit     bool          // also the tests that need no guest, with the race detector
	Kernels  []string      // empty: no guest tests
	Jobs     int           // guests at a time
	Parts    int           // guests among which uml's tests are divided; 0 is 1
	Timeout  time.Duration // of each guest
	Silence  time.Duration // of each guest: a test that prints nothing for so long has failed
	Env      []string      // K=V for the tests in the guests
	Kernel   []string      // more for the command line of qemu's kernels
	Virtual  bool          // guests in virtual time, see vm.Config
	Verbose  bool          // stream what the tests print
	Out      io.Writer
}

// Run runs everything and returns the counts. An error means that the tests
// could not be run at all.
func Run(ctx context.Context, o Options) (Counts, error) {
	o.Out = &syncWriter{w: o.Out}
	var total Counts
	if o.Unit {
		c, err := unit(ctx, o)
		if err != nil {
			return total, err
		}
		total.Add(c)
	}
	if len(o.Kernels) == 0 {
		return total, nil
	}
	packages, err := discover(o.Packages)
	if err != nil {
		return total, err
	}
	bins, err := os.MkdirTemp("", "dmloop-tests-")
	if err != nil {
		return total, err
	}
	defer os.RemoveAll(bins)
	for _, arch := range architectures(o.Kernels) {
		for _, pkg := range packages {
			if err := compile(ctx, pkg, arch, bins); err != nil {
				return total, err
			}
		}
	}
	for _, kernel := range o.Kernels { // before the clock of any guest runs
		if err := vm.Fetch(kernel); err != nil {
			return total, err
		}
	}
	c, err := guests(ctx, o, packages, bins)
	total.Add(c)
	return total, err
}

// runnerTag marks tests of the runner itself, which boot guests from the host.
const runnerTag = "runner"

// unit runs the tests that need no guest.
func unit(ctx context.Context, o Options) (Counts, error) {
	start := time.Now()
	args := slices.Concat([]string{"test", "-json", "-race", "-count=1", "-tags=" + runnerTag, "-run=" + o.Pattern}, o.Packages)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // the race detector wants it
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		return Counts{}, err
	}
	if err := cmd.Start(); err != nil {
		return Counts{}, err
	}
	c := newCounter("unit", o.Out)
	readErr := c.read(out)
	if readErr != nil { // or go test would wait for a reader
		_, _ = io.Copy(io.Discard, out)
	}
	runErr := cmd.Wait()
	switch {
	case readErr != nil:
		return c.Counts, readErr
	case runErr != nil && len(c.Failures) == 0:
		return c.Counts, fmt.Errorf("go test: %w\n%s", runErr, errOut.String())
	case len(c.seen) == 0 && o.Pattern == "":
		return c.Counts, errors.New("no unit tests ran")
	}
	fmt.Fprintf(o.Out, "unit: %d passed, %d failed (%.0f s)\n", c.Passed, len(c.Failures), time.Since(start).Seconds())
	return c.Counts, nil
}

// architectures returns what the tests have to be built for, each once.
func architectures(kernels []string) []string {
	var all []string
	for _, kernel := range kernels {
		all = append(all, vm.GOARCH(kernel))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func binary(bins, arch string, pkg guestPackage) string {
	return filepath.Join(bins, strings.ReplaceAll(pkg.Path, "/", "-")+"."+arch+".test")
}

// compile builds a package's test binary; the guest has no compiler's time.
func compile(ctx context.Context, pkg guestPackage, arch, bins string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags="+buildTag, "-o", binary(bins, arch, pkg), pkg.Path)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go test -c %s: %w\n%s", pkg.Path, err, out)
	}
	return nil
}

// A share is what one guest has to run: a part of a kernel's tests, or all of them.
type share struct {
	kernel      string
	part, parts int
}

// label names the share in what is printed.
func (s share) label() string {
	if s.parts == 1 {
		return s.kernel
	}
	return fmt.Sprintf("%s %d/%d", s.kernel, s.part+1, s.parts)
}

// shares divides the tests among guests. Those of uml take longest.
func shares(o Options) (all []share) {
	for _, kernel := range o.Kernels {
		parts := 1
		if kernel == vm.KernelUML {
			parts = max(1, o.Parts)
		}
		for part := range parts {
			all = append(all, share{kernel, part, parts})
		}
	}
	return all
}

// of picks the share's tests, one in parts of them.
func (s share) of(packages []guestPackage) (picked []guestPackage) {
	n := 0
	for _, pkg := range packages {
		var tests []string
		for _, test := range pkg.Tests {
			if n%s.parts == s.part {
				tests = append(tests, test)
			}
			n++
		}
		if len(tests) > 0 {
			picked = append(picked, guestPackage{Path: pkg.Path, Dir: pkg.Dir, Tests: tests})
		}
	}
	return picked
}

// guests runs the packages with each kernel, some guests at a time.
func guests(ctx context.Context, o Options, packages []guestPackage, bins string) (Counts, error) {
	type outcome struct {
		counts Counts
		err    error
	}
	outcomes := make(chan outcome)
	all := shares(o)
	queue := make(chan share, len(all))
	for _, s := range all {
		queue <- s
	}
	close(queue)
	for range max(1, o.Jobs) {
		go func() {
			for s := range queue {
				c, err := oneGuest(ctx, o, s, packages, bins)
				outcomes <- outcome{c, err}
			}
		}()
	}
	var total Counts
	var errs []error
	for range all {
		got := <-outcomes
		total.Add(got.counts)
		errs = append(errs, got.err)
	}
	return total, errors.Join(errs...)
}

// oneGuest boots a kernel once and runs its share of the packages in it.
func oneGuest(ctx context.Context, o Options, s share, packages []guestPackage, bins string) (Counts, error) {
	kernel, label := s.kernel, s.label()
	chosen, err := choose(packages, kernel, o.Pattern)
	if err == nil && kernel != vm.KernelUML {
		chosen, err = choose(chosen, kernel, o.Smoke)
	}
	if err != nil {
		return Counts{}, err
	}
	if len(chosen) == 0 {
		return Counts{}, fmt.Errorf("%s: no guest test matches %q", kernel, o.Pattern)
	}
	if chosen = s.of(chosen); len(chosen) == 0 {
		return Counts{}, nil // fewer tests than guests
	}
	cfg := vm.Default(kernel)
	cfg.Timeout, cfg.Silence, cfg.Env, cfg.KernelArgs, cfg.Virtual, cfg.Transcript = o.Timeout, o.Silence, o.Env, o.Kernel, o.Virtual, true
	for _, pkg := range chosen {
		cfg.Commands = append(cfg.Commands, vm.Command{
			Args: []string{binary(bins, vm.GOARCH(kernel), pkg), "-test.v=test2json", "-test.paniconexit0",
				"-test.timeout=" + o.Timeout.String(), "-test.run=" + runPattern(pkg.Tests, o.Pattern)},
			Dir: pkg.Dir,
		})
	}
	judge := newJudge(label, chosen, o.Out)
	cfg.Stdout = io.MultiWriter(judge, &progress{label: label, out: o.Out, all: o.Verbose})
	cfg.Stderr = io.Discard // a transcript has both outputs in it
	cfg.Exited = judge.exited
	cfg.Restarted = func(died *vm.GuestError) {
		fmt.Fprintf(o.Out, "%s: is started again: %v\n", label, died)
	}
	res, guestErr := vm.Run(ctx, cfg)
	c, err := judge.end(guestErr)
	c.Restarts = res.Restarts
	if err != nil {
		return c, err
	}
	fmt.Fprintf(o.Out, "%s (%s): %d passed, %d failed (boot %.1f s, all %.0f s)\n",
		label, res.Release, c.Passed, len(c.Failures), res.Boot.Seconds(), res.Total.Seconds())
	return c, nil
}
