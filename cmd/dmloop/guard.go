package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/guardd"
	"dmloop/internal/lifecycle"
)

// guardOptions are the flags of `dmloop guard`.
type guardOptions struct {
	stateDir  string
	logFormat string
	metrics   string
	public    bool
	interval  time.Duration
	bound     time.Duration
	idleExit  time.Duration
}

func newGuardCommand(env *cliEnv) *cobra.Command {
	var o guardOptions
	cmd := &cobra.Command{
		Use:   "guard",
		Short: "Watch all mappings and stop those whose blocks move",
		Long: `Watch all mappings, in the foreground. map starts a guard when none is running, as the
systemd unit dmloop-guard.service or as a process of its own.

The guard denies opens of mapped images by others where the kernel lets it, checks
identity, layout, pins and device tables at every hint and on a timer, and stops a
mapping that is no longer what was verified, as its --on-change policy says. When it
ends it leaves all mappings as they are, and says so; when it starts it compares
before it watches.

Metrics contain the names of images. On a loopback address only root gets them, unless
--metrics-public is given; the socket of unix:PATH has mode 0600, and chown can give it
to another user.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return runGuard(cmd.Context(), env, o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.logFormat, "log-format", "text", "text or json")
	flags.StringVar(&o.metrics, "metrics", "", "serve Prometheus metrics on unix:PATH or on a loopback ADDRESS:PORT")
	flags.BoolVar(&o.public, "metrics-public", false, "let every user of this machine read the metrics of a loopback address")
	flags.DurationVar(&o.interval, "interval", guard.DefaultPace.Tick, "time between checks of a mapping when nothing hints at a change")
	flags.DurationVar(&o.bound, "full-interval", guard.DefaultPace.Bound, "longest time between readings of a whole layout")
	flags.DurationVar(&o.idleExit, "idle-exit", 0, "end after this long without a mapping; 0 means never")
	flags.StringVar(&o.stateDir, "state-dir", env.stateDir, "directory of the records and the socket")
	return cmd
}

// finishPatience bounds how long the guard waits for the lock of a command at work.
const finishPatience = 5 * time.Second

func runGuard(ctx context.Context, env *cliEnv, o guardOptions) error {
	if o.interval < 10*time.Millisecond || o.bound < o.interval {
		return usageError("--interval must be at least 10ms and --full-interval at least --interval")
	}
	handler, err := logHandler(env, o)
	if err != nil {
		return err
	}
	conn, err := dm.Open()
	switch {
	case errors.Is(err, dm.ErrNoDeviceMapper):
		return &fault.Error{Class: fault.KernelLacks, Message: "this kernel has no device-mapper", Remedy: advice.LoadDeviceMapper, Err: err}
	case errors.Is(err, dm.ErrPermission):
		return &fault.Error{Class: fault.NotPermitted, Message: "the guard needs root", Remedy: fault.Permission(fault.CapAdmin), Err: err}
	case err != nil:
		return err
	}
	defer conn.Close()
	log := slog.New(handler)
	finish := func(ctx context.Context, own *guardd.Own) error {
		return lifecycle.NewSystem(o.stateDir, log).WithConn(conn).WithGuard(own).WithPatience(finishPatience).Finish(ctx)
	}
	pace := guard.DefaultPace
	pace.Tick, pace.Bound = o.interval, o.bound
	err = guardd.Run(ctx, guardd.Config{
		Dir: o.stateDir, Mapper: conn, Sysfs: "/sys", Log: log, Pace: pace, IdleExit: o.idleExit, Metrics: o.metrics, MetricsPublic: o.public,
		Finish: finish,
	})
	switch {
	case errors.Is(err, guardd.ErrRunning):
		return &fault.Error{Class: fault.Busy, Message: err.Error(), Remedy: advice.SeeList}
	case errors.Is(err, guardd.ErrMetricsAddress):
		return usageError("%v", err)
	}
	return err
}

func logHandler(env *cliEnv, o guardOptions) (slog.Handler, error) {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if env.verbose {
		options.Level = slog.LevelDebug
	}
	w := guardd.LogWriter(o.stateDir, env.stderr)
	switch o.logFormat {
	case "text":
		return slog.NewTextHandler(w, options), nil
	case "json":
		return slog.NewJSONHandler(w, options), nil
	}
	return nil, usageError("--log-format is text or json, not %q", o.logFormat)
}
