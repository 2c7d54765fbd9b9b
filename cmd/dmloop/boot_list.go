package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"dmloop/internal/boot"
)

func newBootListCommand(env *cliEnv) *cobra.Command {
	var store boot.Store
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the boot manifests",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			names, err := store.Names()
			if err != nil {
				return err
			}
			type row struct {
				Name     string        `json:"name"`
				Way      boot.Way      `json:"way"`
				Fallback boot.Fallback `json:"fallback"`
				Host     string        `json:"host_uuid"`
				Image    string        `json:"image"`
			}
			rows := make([]row, 0, len(names))
			var bad []error
			for _, name := range names {
				m, err := store.Load(name)
				if err != nil {
					bad = append(bad, err)
					continue
				}
				rows = append(rows, row{name, m.Way, m.Fallback, m.Host.UUID, m.Path})
			}
			if env.json {
				bad = append(bad, printJSON(env, struct {
					Manifests []row `json:"manifests"`
				}{rows}))
				return errors.Join(bad...)
			}
			for _, r := range rows {
				fmt.Fprintf(env.stdout, "%s %s %s UUID=%s %s\n", r.Name, r.Way, r.Fallback, r.Host, printable(r.Image))
			}
			return errors.Join(bad...)
		},
	}
	bootDir(cmd, &store)
	jsonFlag(env, cmd)
	return cmd
}
