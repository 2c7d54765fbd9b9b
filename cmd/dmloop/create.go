package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"dmloop/extents"
	"dmloop/internal/backing"
	"dmloop/internal/fault"
	"dmloop/internal/size"
)

func newCreateCommand(env *cliEnv) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create IMAGE SIZE",
		Short: "Make a new image that can be mapped",
		Long: `Make a file of SIZE bytes of zeros, every one written to a block of its own. The
file appears when it is complete; an existing one is never touched.

SIZE may have a suffix: K, KiB, M, MiB and so on are powers of 1024, KB, MB and
so on powers of 1000. A size with decimals, such as 1.3G, is rounded down to whole
blocks.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			bytes, rounded, err := size.ParseDown(args[1], createBlock)
			if _, other := size.Parse(args[0]); err != nil && other == nil {
				return otherWayRound("create", args)
			}
			if err != nil {
				return usageError("%v", err)
			}
			if bytes == 0 {
				return errNoBytes
			}
			if rounded {
				env.logger().Log(cmd.Context(), fault.LevelNote, fmt.Sprintf("%s is not a whole number of blocks: the image gets %d bytes", args[1], int64(bytes)))
			}
			return runCreate(cmd.Context(), env, args[0], bytes)
		},
	}
	jsonFlag(env, cmd)
	return cmd
}

// createBlock is what a size with decimals is rounded down to: the block of most file systems.
const createBlock = 4096

var errNoBytes = usageError("an image of 0 bytes cannot be mapped")

func runCreate(ctx context.Context, env *cliEnv, path string, size extents.Bytes) error {
	sys := env.system()
	defer sys.Close()
	if err := sys.Awake(ctx, path, filepath.Dir(path)); err != nil {
		return err
	}
	// Before the work: an image that is there already may as well stay where it is.
	if r, err := sys.CheckFolder(filepath.Dir(path)); err == nil {
		for _, p := range r.Problems {
			if p.Rule == extents.MountedDirectly || p.Rule == extents.UnresolvableStack {
				env.logger().Warn("it cannot be mapped here as things are: "+p.Message, "hint", fault.HowTo{Image: path, Remedy: p.Remedy})
			}
		}
	}
	show, done := progress(env, "create")
	err := backing.Create(ctx, path, size, backing.Options{Progress: show})
	done()
	if err != nil {
		return backingError(path, err, fault.Usage)
	}
	if env.json {
		return printJSON(env, struct {
			Image string        `json:"image"`
			Size  extents.Bytes `json:"size"`
		}{path, size})
	}
	return nil
}
