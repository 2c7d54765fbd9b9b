package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/hostfiles"
	"dmloop/internal/tab"
)

func newShimCommand(env *cliEnv) *cobra.Command {
	o := &persistOptions{}
	cmd := &cobra.Command{
		Use:   "shim DEVICE NAME | shim --remove NAME | shim --persist MOUNTPOINT",
		Short: "Make an identity device, so that the device below can be shared",
		Long: `Make /dev/mapper/NAME, a device with the same sectors as DEVICE. Images on a file system
that is mounted from it, instead of from DEVICE, can be mapped. DEVICE must not be
mounted. It is a path, or UUID=, LABEL= or PARTUUID=. A shim that exists already is left
as it is. Prints the lines that bring it up at every boot. --remove takes the shim down
once nothing uses it any more.
` + persistHelp,
		Args: o.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.point != "":
				return o.run(env)
			case o.remove != "":
				return removeShim(cmd.Context(), env, o.remove)
			}
			if strings.HasPrefix(args[1], "/") && !strings.Contains(args[0], "/") {
				return otherWayRound("shim", args)
			}
			device, err := deviceOf(args[0])
			if err != nil {
				return err
			}
			sys := env.system()
			defer sys.Close()
			shim, _, err := sys.EnsureShim(cmd.Context(), device, args[1])
			if err != nil {
				return err
			}
			if env.json {
				return printJSON(env, struct {
					Device string `json:"device"`
				}{shim})
			}
			fmt.Fprintln(env.stdout, shim)
			fmt.Fprint(env.stderr, shimAdvice(device, args[1], shim))
			return nil
		},
	}
	o.addFlags(cmd)
	jsonFlag(env, cmd)
	return cmd
}

// deviceOf returns the path of the device that UUID=, LABEL= or PARTUUID= names, and any other
// source as it is.
func deviceOf(source string) (string, error) {
	if strings.Contains(source, "/") || !strings.Contains(source, "=") {
		return source, nil
	}
	d, err := blockdev.Local().Find(source)
	if errors.Is(err, blockdev.ErrNotFound) {
		return "", &fault.Error{Class: fault.NotFound, Subject: source, Message: blockdev.ErrNotFound.Error()}
	}
	return d.Path, err
}

// removeShim takes a shim down and says how its file system is mounted without it.
func removeShim(ctx context.Context, env *cliEnv, name string) error {
	sys := env.system()
	defer sys.Close()
	below, err := sys.ShimBelow(name)
	if err != nil {
		return err
	}
	if err := sys.RemoveShim(ctx, name); err != nil {
		return err
	}
	if below.Major == 0 {
		return nil // it was not finished, and showed nothing
	}
	path := below.String()
	if d, err := blockdev.Local().ByNumber(below); err == nil {
		path = d.Path
	}
	fmt.Fprintf(env.stderr, "The file system can be mounted from %s again. If %s or /etc/fstab names the shim, change that.\n", printable(path), defaultTab)
	return nil
}

// shimAdvice says how the shim of this name comes back at the next boot: with the mount
// point that fstab has for the file system today.
func shimAdvice(device, name, shim string) string {
	source, kind, point := device, "auto", "MOUNTPOINT"
	devices := blockdev.Local()
	if d, err := devices.Find(device); err == nil {
		if fs, err := devices.Filesystem(d); err == nil {
			source, kind = "UUID="+fs.UUID, fs.Type
		}
		text, _ := os.ReadFile("/etc/fstab") // without it nothing is known
		for _, m := range hostfiles.ParseFstab(string(text)) {
			if at, err := devices.Find(m.Source); err == nil && at.Number == d.Number {
				point = tab.Encode(m.Point)
			}
		}
	}
	return fmt.Sprintf(`Mount the file system from %[2]s instead of %[1]s. For every boot, in %[4]s:
  %[3]s
and in /etc/fstab:
  %[2]s  %[6]s  %[5]s  defaults  0  2
`, device, shim, tab.Format(name, source, "", "shim"), defaultTab, kind, point)
}
