package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"dmloop/internal/vmtest/suite"
	"dmloop/internal/vmtest/vm"
)

// slowest is how many tests are named with their times, so that the whole stays
// within what one waits for.
const slowest = 12

// runTests runs this module's tests and ends with a line of counts.
func runTests(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	o := suite.Options{Out: stdout}
	fs := flag.NewFlagSet("guest test", flag.ContinueOnError)
	fs.SetOutput(stderr)
	kernels := fs.String("kernel", strings.Join(vm.Kernels, ","), "`names` of the kernels with commas between; empty for none")
	fs.StringVar(&o.Pattern, "run", "", "only tests that match, as go test -run")
	fs.StringVar(&o.Smoke, "smoke", "", "on kernels other than uml only those tests that match this too")
	fs.BoolVar(&o.Unit, "unit", false, "also run the tests that need no guest")
	fs.IntVar(&o.Jobs, "jobs", 2, "guests at a time")
	fs.IntVar(&o.Parts, "parts", 1, "divide the tests of uml among so many guests")
	fs.DurationVar(&o.Timeout, "timeout", 30*time.Minute, "kill a guest after this time")
	fs.DurationVar(&o.Silence, "silence", 0, "end a test that prints nothing for this time, and have it say where it hangs; 0 for never")
	envFlag(fs, &o.Env)
	appendFlag(fs, &o.Kernel)
	fs.BoolVar(&o.Virtual, "virtual", false, "qemu's guests count their instructions, one a nanosecond, and that is their clock")
	fs.BoolVar(&o.Verbose, "v", false, "show all that the tests print")
	if err := fs.Parse(args); err != nil {
		return exitUsage, err
	}
	o.Kernels = strings.FieldsFunc(*kernels, func(r rune) bool { return r == ',' })
	if o.Packages = fs.Args(); len(o.Packages) == 0 {
		o.Packages = []string{"./..."}
	}
	counts, err := suite.Run(ctx, o)
	if err != nil {
		return exitFailed, err
	}
	fmt.Fprintln(stdout, "the slowest tests:")
	for _, slow := range counts.Slowest(slowest) {
		fmt.Fprintf(stdout, "%6.0f s  %s\n", slow.Seconds, slow.Test)
	}
	for _, failure := range counts.Failures { // printed when it happened, and far above by now
		fmt.Fprintf(stdout, suite.FailureFormat, failure)
	}
	fmt.Fprintf(stdout, "guests that died at boot and were started again: %d\n", counts.Restarts)
	fmt.Fprintf(stdout, "dmloop: %d passed, %d failed\n", counts.Passed, len(counts.Failures))
	if len(counts.Failures) > 0 {
		return exitFailed, nil
	}
	return 0, nil
}
