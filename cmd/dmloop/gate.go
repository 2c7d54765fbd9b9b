package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"dmloop/guard"
	"dmloop/internal/fault"
	"dmloop/internal/gate"
	"dmloop/internal/helper"
	"dmloop/internal/lifecycle"
)

func newGateCommand(env *cliEnv) *cobra.Command {
	clearAll := false
	allow := ""
	cmd := &cobra.Command{
		Use:   "gate [--clear | --allow DEVICE -- COMMAND...]",
		Short: "Show what the gate in the kernel guards, and what it refused",
		Long: `Show whether the gate in the kernel is in force, which mappings and devices it guards,
and what it refused lately, to whom. The gate refuses opens of a mapped image by others,
and other tables for the devices below it; see docs/gate.md.

--allow runs COMMAND, which may change the table of DEVICE and remove it, and verifies
the mappings afterwards. --clear removes the gate; a running guard puts it in force
again for the mappings that use it.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case clearAll && (allow != "" || len(args) > 0), allow == "" && len(args) > 0:
				return usageError("--clear takes no arguments, and a command needs --allow DEVICE")
			case allow != "" && len(args) == 0:
				return usageError("--allow DEVICE needs a command, after two dashes")
			}
			sys := env.system()
			defer sys.Close()
			switch {
			case clearAll:
				return sys.ClearGate()
			case allow != "":
				return runAllowed(cmd.Context(), env, sys, allow, args)
			}
			return showGate(env, sys)
		},
	}
	cmd.Flags().BoolVar(&clearAll, "clear", false, "remove the gate, whatever it guards")
	cmd.Flags().StringVar(&allow, "allow", "", "let COMMAND change the table of this device below a mapping")
	jsonFlag(env, cmd)
	return cmd
}

// gateJSON is what `gate --json` prints. docs/json.md describes it.
type gateJSON struct {
	InForce bool          `json:"in_force"`
	Why     string        `json:"why"` // why it cannot be in force; empty where it can
	Guarded []gatedJSON   `json:"guarded"`
	Refused uint64        `json:"refused"`
	Recent  []refusedJSON `json:"recent"`
}

type gatedJSON struct {
	Mapping string        `json:"mapping"` // empty: nothing is mapped with this number
	UUID    string        `json:"uuid"`
	Image   string        `json:"image"`
	Device  string        `json:"device"` // of the image's file system
	Inode   uint64        `json:"inode"`
	Devices []gatedDevice `json:"devices"`
}

type gatedDevice struct {
	Device string `json:"device"`
	Name   string `json:"name"`
	Kind   string `json:"kind"`
}

type refusedJSON struct {
	Number  uint64    `json:"number"`
	Time    time.Time `json:"time"`
	What    string    `json:"what"`
	Mapping string    `json:"mapping"`
	Device  string    `json:"device"`
	Inode   uint64    `json:"inode"`
	PID     int       `json:"pid"`
	UID     uint32    `json:"uid"`
	Program string    `json:"program"`
}

// wantedTo says what somebody wanted to do, in words.
var wantedTo = map[gate.What]string{
	gate.OpenFile: "open the image", gate.SetAttributes: "change the image's attributes or size", gate.SetFileAttributes: "change the image's flags",
	gate.UnlinkFile: "remove the image", gate.RenameFile: "rename the image, or a file over it", gate.SetXattr: "change the image's extended attributes",
	gate.Ioctl: "make a request on the image", gate.LoadTable: "load another table of the device", gate.RemoveDevice: "remove the device",
	gate.RenameDevice: "rename the device", gate.RemoveAllDevices: "remove all devices", gate.ChangePartition: "delete or shrink the partition",
	gate.ChangeLoop: "change the loop device",
}

func toRefusedJSON(d gate.Denial, names map[gate.UUID]string) refusedJSON {
	return refusedJSON{Number: d.Number, Time: d.Time, What: d.What.String(), Mapping: names[d.Mapping], Device: d.Device.String(),
		Inode: d.Inode, PID: d.PID, UID: d.UID, Program: d.Program}
}

// refusedLine is a refusal as people read it.
func refusedLine(d gate.Denial, names map[gate.UUID]string) string {
	what, known := wantedTo[d.What]
	if !known {
		what = d.What.String()
	}
	where := names[d.Mapping]
	if where == "" {
		where = d.Device.String()
	}
	return fmt.Sprintf("%s  %s (process %d, user %d) wanted to %s: %s", d.Time.Format(time.DateTime), printable(d.Program), d.PID, d.UID, what, printable(where))
}

func gatedNames(st lifecycle.GateStatus) map[gate.UUID]string {
	names := map[gate.UUID]string{}
	for _, m := range st.Guarded {
		names[m.Mapping] = m.Name
	}
	return names
}

func deviceKind(k gate.Kind) string {
	switch {
	case k&gate.Own != 0:
		return "mapping"
	case k&gate.Below != 0:
		return "below"
	}
	return "disk"
}

func showGate(env *cliEnv, sys *lifecycle.System) error {
	st, err := sys.Gate()
	if err != nil {
		return err
	}
	names := gatedNames(st)
	if !env.json {
		printGate(env.stdout, st, names)
		return nil
	}
	out := gateJSON{InForce: st.InForce, Why: lackText(st.Lack), Guarded: []gatedJSON{}, Refused: st.Refused, Recent: []refusedJSON{}}
	for _, m := range st.Guarded {
		g := gatedJSON{Mapping: m.Name, UUID: fmt.Sprintf("%x", m.Mapping), Image: m.Image, Device: m.Guarded.Image.Device().String(),
			Inode: m.Guarded.Image.Inode, Devices: []gatedDevice{}}
		for _, d := range m.Devices {
			g.Devices = append(g.Devices, gatedDevice{Device: d.Number.String(), Name: d.Name, Kind: deviceKind(d.Kind)})
		}
		out.Guarded = append(out.Guarded, g)
	}
	for _, d := range st.Recent {
		out.Recent = append(out.Recent, toRefusedJSON(d, names))
	}
	return printJSON(env, out)
}

// lackText is why there can be no gate, with the way out.
func lackText(err error) string {
	if err == nil {
		return ""
	}
	var lack *gate.Lack
	if errors.As(err, &lack) && lack.Parameter != "" {
		return fmt.Sprintf("%v; boot with %s", err, lack.Parameter)
	}
	return err.Error()
}

func printGate(w io.Writer, st lifecycle.GateStatus, names map[gate.UUID]string) {
	switch {
	case st.InForce:
		fmt.Fprintf(w, "in force: %d mappings guarded, %d refusals\n", len(st.Guarded), st.Refused)
	case st.Lack != nil:
		fmt.Fprintf(w, "not in force: %s\n", lackText(st.Lack))
	default:
		fmt.Fprintln(w, "not in force: no mapping uses it")
	}
	for _, m := range st.Guarded {
		name, image := m.Name, m.Image
		if name == "" {
			name = fmt.Sprintf("%x (not mapped)", m.Mapping)
		}
		if image == "" {
			image = "image unknown"
		}
		fmt.Fprintf(w, "%s: %s, inode %d on %s\n", printable(name), printable(image), m.Guarded.Image.Inode, m.Guarded.Image.Device())
		for _, d := range m.Devices {
			fmt.Fprintf(w, "  %-8s %-8s %s\n", deviceKind(d.Kind), d.Number, printable(d.Name))
		}
	}
	if len(st.Recent) > 0 {
		fmt.Fprintln(w, "refused:")
	}
	for _, d := range st.Recent {
		fmt.Fprintln(w, "  "+refusedLine(d, names))
	}
}

// runAllowed runs a command that may change a device below a mapping, and says what became of
// the mappings.
func runAllowed(ctx context.Context, env *cliEnv, sys *lifecycle.System, device string, command []string) error {
	var ran error
	checked, err := sys.AllowBelow(ctx, device, func() error {
		ran = helper.Foreground(ctx, command[0], command[1:]...).Run()
		return nil
	})
	for _, v := range checked {
		if v.State != guard.Healthy {
			fmt.Fprintf(env.stderr, "%s: %s: %s\n", printable(v.Name), v.State, v.Reason)
			if v.State.Broken() {
				err = errors.Join(err, reported{fault.StaleMapping})
			}
		}
	}
	if err != nil || ran == nil {
		return err
	}
	if code, ended := helper.ExitCode(ran); ended {
		return &fault.Error{Class: fault.Failed, Subject: command[0], Message: fmt.Sprintf("exit status %d", code)}
	}
	return &fault.Error{Class: fault.Failed, Subject: command[0], Message: "it cannot be run", Err: ran}
}
