package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"dmloop/internal/activate"
	"dmloop/internal/blockdev"
	"dmloop/internal/tab"
)

func newBootRootCommand(env *cliEnv) *cobra.Command {
	path := ""
	cmd := &cobra.Command{
		Use:   "root DEVICE",
		Short: "Print the shim to mount instead of a device",
		Long: `Print the path of the shim that is to be mounted instead of DEVICE, the value of the
kernel's root=, when dmlooptab(5) has one for it that is marked x-initrd.attach. An
initramfs asks this, so that root= need not change.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			table, err := readTab(path)
			if table == nil && err != nil {
				return err
			}
			devices := blockdev.Local()
			root, err := devices.Find(args[0])
			if err != nil {
				return nil // not a device that can have a shim, or not there yet
			}
			for _, e := range activate.Auto(table, true) {
				if e.Kind != tab.Shim {
					continue
				}
				if below, err := devices.Find(e.Source); err != nil || below.Number != root.Number {
					continue
				}
				if _, err := os.Stat(e.Device()); err == nil {
					fmt.Fprintln(env.stdout, e.Device())
					return nil
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&path, "tab", tabPath(), "read this `file`")
	return cmd
}
