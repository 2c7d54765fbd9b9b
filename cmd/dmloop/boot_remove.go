package main

import (
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"dmloop/internal/advice"
	"dmloop/internal/boot"
	"dmloop/internal/fault"
)

func newBootRemoveCommand(env *cliEnv) *cobra.Command {
	var store boot.Store
	cmd := &cobra.Command{
		Use:   "remove NAME...",
		Short: "Remove boot manifests",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				err := store.Remove(name)
				if errors.Is(err, fs.ErrNotExist) {
					return &fault.Error{Class: fault.NotFound, Subject: name, Message: "no such boot manifest", Remedy: advice.SeeBootList}
				}
				return err
			})
		},
	}
	bootDir(cmd, &store)
	jsonFlag(env, cmd)
	return cmd
}
