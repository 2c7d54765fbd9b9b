package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the build (-ldflags -X main.version=...).
var version = "0.1.0"

func newVersionCommand(env *cliEnv) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of dmloop and of the kernel's device-mapper",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			sys := env.system()
			defer sys.Close()
			out := struct {
				Version      string `json:"version"`
				Go           string `json:"go"`
				DeviceMapper string `json:"device_mapper"`
				Gate         string `json:"gate"`     // what can deny opens by others
				GateWhy      string `json:"gate_why"` // why it is not the one in the kernel, if it is not
			}{Version: version}
			if info, ok := debug.ReadBuildInfo(); ok {
				out.Go = info.GoVersion
			}
			// Without device-mapper, or without root, the rest is still worth printing.
			if v, err := sys.DeviceMapperVersion(); err == nil {
				out.DeviceMapper = v
			}
			gate, why := sys.BestGate()
			out.Gate, out.GateWhy = string(gate), lackText(why)
			if env.json {
				return printJSON(env, out)
			}
			fmt.Fprintf(env.stdout, "dmloop %s (%s)\n", out.Version, out.Go)
			if out.DeviceMapper != "" {
				fmt.Fprintf(env.stdout, "device-mapper %s\n", out.DeviceMapper)
			}
			fmt.Fprintf(env.stdout, "gate %s", out.Gate)
			if out.GateWhy != "" {
				fmt.Fprintf(env.stdout, " (not bpf: %s)", out.GateWhy)
			}
			fmt.Fprintln(env.stdout)
			return nil
		},
	}
	jsonFlag(env, cmd)
	return cmd
}
