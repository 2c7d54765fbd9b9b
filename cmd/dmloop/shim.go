package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/internal/blockid"
	"dmloop/internal/tab"
)

func newShimCommand(env *cliEnv) *cobra.Command {
	o := &persistOptions{}
	cmd := &cobra.Command{
		Use:   "shim DEVICE NAME | shim --persist MOUNTPOINT",
		Short: "Make an identity device, so that the device below can be shared",
		Long: `Make /dev/mapper/NAME, a device with the same sectors as DEVICE. A file system that is
mounted from it, instead of from DEVICE, can lend out its files with dmloop map.
DEVICE must not be mounted. Prints the lines that bring it up at every boot.
` + persistHelp,
		Args: o.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.point != "" {
				return o.run(env)
			}
			if strings.HasPrefix(args[1], "/") && !strings.Contains(args[0], "/") {
				return otherWayRound("shim", args)
			}
			sys := env.system()
			defer sys.Close()
			shim, err := sys.Shim(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			if env.json {
				return printJSON(env, struct {
					Device string `json:"device"`
				}{shim})
			}
			fmt.Fprintln(env.stdout, shim)
			fmt.Fprint(env.stderr, shimAdvice(args[0], args[1], shim))
			return nil
		},
	}
	o.addFlags(cmd)
	jsonFlag(env, cmd)
	return cmd
}

// shimAdvice tells how the shim of this name comes back at the next boot.
func shimAdvice(device, name, shim string) string {
	source := device
	devices := blockid.Local()
	if d, err := devices.Find(device); err == nil {
		if fs, err := devices.Filesystem(d); err == nil {
			source = "UUID=" + fs.UUID
		}
	}
	return fmt.Sprintf(`Mount the file system from %[2]s instead of %[1]s. For every boot, in %[4]s:
  %[3]s
and in /etc/fstab:
  %[2]s  MOUNTPOINT  auto  defaults  0  2
`, device, shim, tab.Format(name, source, "", "shim"), defaultTab)
}
