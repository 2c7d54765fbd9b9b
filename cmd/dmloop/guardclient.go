package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"dmloop/internal/guardrpc"
	"dmloop/internal/lifecycle"
	"dmloop/internal/manifest"
)

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
