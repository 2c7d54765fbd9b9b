package main

import (
	"context"
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
so on powers of 1000.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			bytes, err := size.Parse(args[1])
			if _, other := size.Parse(args[0]); err != nil && other == nil {
				return otherWayRound("create", args)
			}
			if err != nil {
				return usageError("%v", err)
			}
			if bytes == 0 {
				return errNoBytes
			}
			return runCreate(cmd.Context(), env, args[0], bytes)
		},
	}
	jsonFlag(env, cmd)
	return cmd
}

var errNoBytes = usageError("an image of 0 bytes cannot be mapped")

func runCreate(ctx context.Context, env *cliEnv, path string, size extents.Bytes) error {
	sys := env.system()
	defer sys.Close()
	if err := sys.Awake(ctx, path, filepath.Dir(path)); err != nil {
		return err
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
