package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/guardd"
	"dmloop/internal/guardrpc"
	"dmloop/internal/lifecycle"
	"dmloop/internal/manifest"
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
		Long: `Run the watchdog of all mappings in the foreground. map starts one when none runs,
as the systemd unit dmloop-guard.service or as a process of its own.

The guard denies opens of mapped images by others where the kernel lets it, checks
identity, layout, pins and device tables at every hint and on a timer, and stops a
mapping that is not what was verified, as its --on-change policy says. When it
ends it leaves all mappings as they are, and says so; when it starts it compares
before it watches.

Metrics name images. On a loopback address only root gets them, unless
--metrics-public is given; a socket of unix:PATH has mode 0600 and can be given
away with chown.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return runGuard(cmd.Context(), env, o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.logFormat, "log-format", "text", "text or json")
	flags.StringVar(&o.metrics, "metrics", "", "serve Prometheus metrics on unix:PATH or on a loopback ADDRESS:PORT")
	flags.BoolVar(&o.public, "metrics-public", false, "let every user of this machine read the metrics of a loopback address")
	flags.DurationVar(&o.interval, "interval", guard.DefaultPace.Tick, "time between checks of a mapping when nothing hints at a change")
	flags.DurationVar(&o.bound, "full-interval", guard.DefaultPace.Bound, "longest time between readings of a whole layout")
	flags.DurationVar(&o.idleExit, "idle-exit", 0, "end after so long without a mapping; 0 is never")
	flags.StringVar(&o.stateDir, "state-dir", env.stateDir, "folder of the records and the socket")
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
		return &lifecycle.Error{Class: lifecycle.KernelLacks, Message: "this kernel has no device-mapper", Hint: "load it: modprobe dm_mod", Err: err}
	case errors.Is(err, dm.ErrPermission):
		return &lifecycle.Error{Class: lifecycle.NotPermitted, Message: "the guard needs root", Hint: lifecycle.PermissionHint(lifecycle.CapAdmin), Err: err}
	case err != nil:
		return err
	}
	defer conn.Close()
	log := slog.New(handler)
	finish := func(ctx context.Context) error {
		client := newGuardClient(o.stateDir) // this process, by its own socket
		defer client.close()
		return lifecycle.NewSystem(o.stateDir, log).WithConn(conn).WithGuard(client).WithPatience(finishPatience).Finish(ctx)
	}
	pace := guard.DefaultPace
	pace.Tick, pace.Bound = o.interval, o.bound
	err = guardd.Run(ctx, guardd.Config{
		Dir: o.stateDir, Mapper: conn, Sysfs: "/sys", Log: log, Pace: pace, IdleExit: o.idleExit, Metrics: o.metrics, MetricsPublic: o.public,
		Finish: finish,
	})
	switch {
	case errors.Is(err, guardd.ErrRunning):
		return &lifecycle.Error{Class: lifecycle.Busy, Message: err.Error(), Hint: "see: dmloop list"}
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

// guardClient is the running guard as the use cases see it. It keeps one
// connection, since what was prepared stays so only while that is open.
type guardClient struct {
	dir    string
	client *guardrpc.Client
}

var _ lifecycle.Guard = (*guardClient)(nil)

func newGuardClient(stateDir string) *guardClient { return &guardClient{dir: stateDir} }

// Ensure implements lifecycle.Guard.
func (g *guardClient) Ensure(ctx context.Context) error {
	client, err := guardrpc.EnsureRunning(ctx, g.dir)
	if err != nil {
		return err
	}
	if g.client != nil {
		g.client.Close()
	}
	g.client = client
	return nil
}

// close gives the connection back.
func (g *guardClient) close() {
	if g.client != nil {
		g.client.Close()
		g.client = nil
	}
}

// dial connects unless there is a connection.
func (g *guardClient) dial(ctx context.Context) (*guardrpc.Client, error) {
	if g.client != nil {
		return g.client, nil
	}
	client, err := guardrpc.Dial(ctx, g.dir)
	if err != nil {
		return nil, err
	}
	g.client = client
	return client, nil
}

// Prepare implements lifecycle.Guard. A guard that ended between Ensure and here,
// because it was idle, is started again.
func (g *guardClient) Prepare(ctx context.Context, image *os.File) (denies bool, err error) {
	p, err := g.client.Prepare(ctx, image)
	var refused *guardrpc.Error
	if err != nil && !errors.As(err, &refused) {
		if err = g.Ensure(ctx); err == nil {
			p, err = g.client.Prepare(ctx, image)
		}
	}
	return p.Denies == guardrpc.Yes, g.classed(err)
}

// Add implements lifecycle.Guard.
func (g *guardClient) Add(ctx context.Context, name string) error {
	client, err := g.dial(ctx)
	if err != nil {
		return err
	}
	_, err = client.Add(ctx, name)
	return g.classed(err)
}

// do makes a call that needs nothing of an earlier one. When the guard died since,
// it is made once more, to another guard that may have come.
func (g *guardClient) do(ctx context.Context, call func(*guardrpc.Client) error) error {
	for again := false; ; again = true {
		client, err := g.dial(ctx)
		if err != nil {
			return err
		}
		err = call(client)
		var refused *guardrpc.Error
		if err == nil || errors.As(err, &refused) || errors.Is(err, os.ErrDeadlineExceeded) || again {
			return err
		}
		g.client.Close()
		g.client = nil
	}
}

// Drop implements lifecycle.Guard.
func (g *guardClient) Drop(ctx context.Context, name string) error {
	err := g.do(ctx, func(c *guardrpc.Client) error { return c.Drop(ctx, name) })
	if errors.Is(err, guardrpc.ErrNoGuard) {
		return nil
	}
	return g.classed(err)
}

// Watched implements lifecycle.Guard.
func (g *guardClient) Watched(ctx context.Context) (map[string]bool, error) {
	var st guardrpc.Status
	err := g.do(ctx, func(c *guardrpc.Client) (err error) { st, err = c.Status(ctx); return err })
	if errors.Is(err, guardrpc.ErrNoGuard) {
		return nil, nil
	}
	watched := make(map[string]bool, len(st.Mappings))
	for _, m := range st.Mappings {
		watched[m.Name] = true
	}
	return watched, g.classed(err)
}

// Record implements lifecycle.Guard.
func (g *guardClient) Record(ctx context.Context, name string) (m manifest.Manifest, err error) {
	err = g.do(ctx, func(c *guardrpc.Client) (err error) { m, err = c.Record(ctx, name); return err })
	return m, g.classed(err)
}

// OpenImage implements lifecycle.Guard.
func (g *guardClient) OpenImage(ctx context.Context, want manifest.Image) (*os.File, error) {
	var f *os.File
	err := g.do(ctx, func(c *guardrpc.Client) (err error) { f, err = c.OpenImage(ctx, want); return err })
	var refused *guardrpc.Error
	switch {
	case errors.Is(err, guardrpc.ErrNoGuard), errors.Is(err, fs.ErrPermission),
		errors.As(err, &refused) && refused.Kind == guardrpc.KindNotFound:
		return nil, lifecycle.ErrNotWatched
	}
	return f, g.classed(err)
}

// classed gives what the guard refused the class that decides the exit code.
func (g *guardClient) classed(err error) error {
	var refused *guardrpc.Error
	if !errors.As(err, &refused) {
		return err
	}
	classes := map[guardrpc.ErrorKind]lifecycle.Class{
		guardrpc.KindNotFound: lifecycle.NotFound, guardrpc.KindDifferent: lifecycle.StaleMapping,
		guardrpc.KindBusy: lifecycle.Busy, guardrpc.KindLacks: lifecycle.KernelLacks, guardrpc.KindFailed: lifecycle.Failure,
	}
	return &lifecycle.Error{Class: classes[refused.Kind], Message: fmt.Sprintf("the guard refuses: %s", refused.Message)}
}
