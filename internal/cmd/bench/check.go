package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// checkGroup is measured by -check alone: a few figures, in under three minutes.
const checkGroup = "check"

// checks are the figures that must not grow: what programs run, in the scheduler's own nanoseconds, which
// are instructions. How long the kernel lets them wait is left out, for it differs by a tick.
func (b *bed) checks() {
	dev, remove := disk(256, nvme)
	defer remove()
	defer host("ext4", dev)()
	must("dmloop", "create", path("image.img"), "16M")
	must("dmloop", "create", path("other.img"), "1M")
	fragmented(path("pieces.img"), 10_000, block)
	pair := func(options ...string) func() float64 {
		return func() float64 {
			return ran(append([]string{"map", path("image.img")}, options...)...) + ran("unmap", path("image.img"))
		}
	}
	b.rounds, b.pick = 10, slices.Min[[]float64]
	b.measure(
		thing{"start", instructions, func() float64 { return ran("version") }},
		thing{"map + unmap, one extent, no guard", instructions, pair("--no-guard", "--gate=none")},
		thing{"extents of 10,000", instructions, func() float64 { return ran("extents", path("pieces.img")) }},
	)
	must("dmloop", "map", "--gate=none", path("other.img"), "other")
	guard := guardPID()
	with := func(run func() float64) func() float64 {
		return func() float64 {
			before := processorTime(guard)
			own := run()
			return own + float64(processorTime(guard)-before)
		}
	}
	b.measure(
		thing{"map + unmap, one extent, with the guard's work", instructions, with(pair("--gate=none"))},
		thing{"check by the guard, with the guard's work", instructions, with(func() float64 { return ran("verify", "other") })},
	)
	must("dmloop", "unmap", "other")
	endGuard()
}

// ran runs dmloop and returns the nanoseconds that it was on the processor.
func ran(args ...string) float64 {
	state, _, _ := runTo(nil, "dmloop", args...)
	return float64(state.UserTime() + state.SystemTime())
}

// The most that a figure may grow: with the kernel and the Go of last time, and with others.
const (
	mostGrowth      = 0.05
	mostWithAnother = 0.15
)

// runCheck measures the figures of the group "check" and compares them with those kept, or keeps them.
func runCheck(ctx context.Context, o options, update bool) error {
	o.only = checkGroup
	now, err := runGuest(ctx, o, checkKernel)
	if err != nil {
		return err
	}
	file := filepath.Join(o.docs, "bench", "check.json")
	if update {
		return writeJSON(file, now)
	}
	before, err := readResult(file)
	if err != nil {
		return err
	}
	return compare(before, now)
}

// compare says of each figure what it was and is, and is an error where one has grown too much, or
// is missing.
func compare(before, now result) (err error) {
	most := mostGrowth
	if before.Release != now.Release || before.Go != now.Go {
		most = mostWithAnother
		fmt.Fprintf(os.Stderr, "kernel %s and %s, not %s and %s as last time: growth of %.0f %% is let through\n", now.Release, now.Go, before.Release, before.Go, 100*most)
	}
	for _, b := range before.Figures {
		n, ok := now.find(b.Name)
		if !ok {
			err = errors.Join(err, fmt.Errorf("%s: not measured", b.Name))
			continue
		}
		was, is := slices.Min(b.Passes[:]), slices.Min(n.Passes[:])
		growth := is/was - 1
		fmt.Fprintf(os.Stderr, "%s: %.0f %s, %+.1f %%\n", b.Name, is, b.Unit, 100*growth)
		if growth > most {
			err = errors.Join(err, fmt.Errorf("%s: %.0f %s before, and now %.0f: %.1f %% more, where %.0f %% are let through; where that is meant, make bench-check UPDATE=1",
				b.Name, was, b.Unit, is, 100*growth, 100*most))
		}
	}
	return err
}
