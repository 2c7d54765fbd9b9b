package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/lifecycle"
)

// mappingJSON is one mapping in the output of list, status and map --json. Sizes
// are bytes. docs/json.md describes it; fields are added, never changed.
type mappingJSON struct {
	Name    string        `json:"name"`
	Device  string        `json:"device"`
	MajMin  string        `json:"maj:min"`
	Image   string        `json:"image"`
	Size    extents.Bytes `json:"size"`
	RO      bool          `json:"ro"`
	Extents int           `json:"extents"`
	Pin     []string      `json:"pin"`
	Grade   string        `json:"grade"`
	State   string        `json:"state"`
	Reason  string        `json:"reason"`
	Guard   bool          `json:"guard"`
	Open    int           `json:"open"`
	UUID    string        `json:"uuid"`
	Gate    string        `json:"gate"`     // what denies opens by others
	GateWhy string        `json:"gate_why"` // why it is not the one in the kernel, if it is not

	Refused []refusedJSON `json:"refused,omitempty"` // by the gate in the kernel, of status only
}

type mappingsJSON struct {
	Mappings []mappingJSON `json:"mappings"`
	Shims    []shimJSON    `json:"shims,omitempty"` // of status only
}

func toMappingJSON(s lifecycle.Status) mappingJSON {
	return mappingJSON{
		Name: s.Name, Device: s.Device, MajMin: s.MajMin, Image: s.Image, Size: s.Size, RO: s.ReadOnly,
		Extents: s.Extents, Pin: guard.PinNames(s.Pins), Grade: string(s.Grade), State: string(s.State), Reason: s.Reason,
		Guard: s.Guard, Open: s.Open, UUID: s.UUID, Gate: string(s.Gate), GateWhy: lackText(s.GateWhy),
	}
}

const defaultColumns = "NAME,DEVICE,IMAGE,SIZE,RO,EXTENTS,PIN,GRADE,STATE,GUARD"

var listColumns = []column[mappingJSON]{
	{"NAME", "name of the mapping", func(m mappingJSON, _ bool) string { return m.Name }},
	{"DEVICE", "device node", func(m mappingJSON, _ bool) string { return m.Device }},
	{"MAJ:MIN", "device number", func(m mappingJSON, _ bool) string { return m.MajMin }},
	{"IMAGE", "the file mapped", func(m mappingJSON, _ bool) string { return m.Image }},
	{"SIZE", "size of the device", func(m mappingJSON, bytes bool) string {
		if bytes {
			return fmt.Sprint(int64(m.Size))
		}
		return humanSize(m.Size)
	}},
	{"RO", "1 when read-only", func(m mappingJSON, _ bool) string { return zeroOne(m.RO) }},
	{"EXTENTS", "extents of the image", func(m mappingJSON, _ bool) string { return fmt.Sprint(m.Extents) }},
	{"PIN", "what keeps the blocks in place", func(m mappingJSON, _ bool) string { return strings.Join(m.Pin, "+") }},
	{"GRADE", "kernel, guarded or unsafe", func(m mappingJSON, _ bool) string { return m.Grade }},
	{"STATE", "healthy, weakened, stale, failed, suspended or releasing", func(m mappingJSON, _ bool) string { return m.State }},
	{"REASON", "why it is not healthy", func(m mappingJSON, _ bool) string { return m.Reason }},
	{"GUARD", "1 when the guard watches it", func(m mappingJSON, _ bool) string { return zeroOne(m.Guard) }},
	{"OPEN", "how many have the device open", func(m mappingJSON, _ bool) string { return fmt.Sprint(m.Open) }},
	{"UUID", "device-mapper uuid", func(m mappingJSON, _ bool) string { return m.UUID }},
	{"GATE", "what denies opens by others: bpf, fanotify or none", func(m mappingJSON, _ bool) string { return m.Gate }},
	{"GATEWHY", "why it is not bpf", func(m mappingJSON, _ bool) string { return m.GateWhy }},
}

func zeroOne(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

type listOptions struct {
	output                          string
	all, noheadings, raw, bs, shims bool
}

func (o *listOptions) addFlags(env *cliEnv, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.output, "output", "o", "", "columns to print, separated by commas; + adds to the defaults; help lists them")
	f.BoolVar(&o.all, "output-all", false, "print all columns")
	f.BoolVarP(&o.noheadings, "noheadings", "n", false, "print no headings")
	f.BoolVar(&o.raw, "raw", false, "print fields separated by a space")
	f.BoolVarP(&o.bs, "bytes", "b", false, "print sizes in bytes")
	jsonFlag(env, cmd)
	cmd.Long += "\n\nColumns:\n" + columnHelp(listColumns)
}

func newListCommand(env *cliEnv) *cobra.Command {
	opts := &listOptions{}
	cmd := &cobra.Command{
		Use:     "list [NAME|IMAGE...]",
		Aliases: []string{"ls"},
		Short:   "List mappings",
		Long: `List the mappings of this machine, or those named, with what is in force now.
With --shims, list the shims instead: what they show, and who uses them.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runList(cmd.Context(), env, opts, args)
		},
		ValidArgsFunction: completeMappings(env),
	}
	cmd.Flags().BoolVar(&opts.shims, "shims", false, "list shims instead of mappings")
	opts.addFlags(env, cmd)
	return cmd
}

// outputHelp is the argument of --output that asks for the columns there are.
const outputHelp = "help"

func printColumnHelp[Row any](env *cliEnv, columns []column[Row]) error {
	_, err := fmt.Fprintln(env.stdout, columnHelp(columns))
	return err
}

func runList(ctx context.Context, env *cliEnv, opts *listOptions, args []string) error {
	switch {
	case opts.shims:
		return runListShims(ctx, env, opts, args)
	case opts.output == outputHelp:
		return printColumnHelp(env, listColumns)
	}
	sys := env.system()
	defer sys.Close()
	found, err := named(ctx, args, sys.List)
	if err != nil && len(args) == 0 {
		return err // no list, which is not an empty one
	}
	if err = errors.Join(err, printMappings(env, opts, found)); err == nil && len(args) == 0 && !opts.raw && !env.json {
		noteShims(ctx, env, sys)
	}
	return err
}

// named collects what get returns for each of the targets, or for all mappings when
// there are none. A target that fails keeps no other from its turn.
func named[T any](ctx context.Context, targets []string, get func(context.Context, ...string) ([]T, error)) (all []T, err error) {
	if len(targets) == 0 {
		return get(ctx)
	}
	err = each(targets, func(t string) error {
		found, err := get(ctx, t)
		all = append(all, found...)
		return err
	})
	return all, err
}

func printMappings(env *cliEnv, opts *listOptions, found []lifecycle.Status) error {
	rows := make([]mappingJSON, 0, len(found))
	for _, s := range found {
		rows = append(rows, toMappingJSON(s))
	}
	if env.json {
		return printJSON(env, mappingsJSON{Mappings: rows})
	}
	defaults := defaultColumns
	if opts.all {
		defaults = columnNames(listColumns)
	}
	columns, err := pickColumns(listColumns, defaults, opts.output)
	if err != nil || len(rows) == 0 {
		return err
	}
	return printColumns(env.stdout, columns, rows, !opts.noheadings, opts.raw, opts.bs)
}
