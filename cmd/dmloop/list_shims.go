package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"dmloop/extents"
	"dmloop/internal/blockdev"
	"dmloop/internal/lifecycle"
)

// shimJSON is one shim in the output of list --shims and status --json. Sizes are bytes.
type shimJSON struct {
	Name   string        `json:"name"`
	Device string        `json:"device"`
	MajMin string        `json:"maj:min"`
	Below  string        `json:"below"`
	Size   extents.Bytes `json:"size"`
	RO     bool          `json:"ro"`
	Open   int           `json:"open"`
	Users  []string      `json:"users"`
	UUID   string        `json:"uuid"`
}

type shimsJSON struct {
	Shims []shimJSON `json:"shims"`
}

func toShimJSON(s lifecycle.ShimStatus) shimJSON {
	below := ""
	if s.Below.Major != 0 {
		below = s.Below.String()
		if d, err := blockdev.Local().ByNumber(s.Below); err == nil {
			below = d.Path
		}
	}
	return shimJSON{Name: s.Name, Device: s.Device, MajMin: s.MajMin, Below: below, Size: s.Size, RO: s.ReadOnly, Open: s.Open,
		Users: append([]string{}, s.Users...), UUID: s.UUID}
}

func shimRows(shims []lifecycle.ShimStatus) []shimJSON {
	rows := make([]shimJSON, 0, len(shims))
	for _, s := range shims {
		rows = append(rows, toShimJSON(s))
	}
	return rows
}

const defaultShimColumns = "NAME,DEVICE,BELOW,SIZE,RO,USERS"

var shimColumns = []column[shimJSON]{
	{"NAME", "name of the shim", func(s shimJSON, _ bool) string { return s.Name }},
	{"DEVICE", "device node", func(s shimJSON, _ bool) string { return s.Device }},
	{"MAJ:MIN", "device number", func(s shimJSON, _ bool) string { return s.MajMin }},
	{"BELOW", "the device whose sectors it shows", func(s shimJSON, _ bool) string { return s.Below }},
	{"SIZE", "size of the device", func(s shimJSON, bytes bool) string {
		if bytes {
			return fmt.Sprint(int64(s.Size))
		}
		return humanSize(s.Size)
	}},
	{"RO", "1 when read-only", func(s shimJSON, _ bool) string { return zeroOne(s.RO) }},
	{"OPEN", "how many have the device open", func(s shimJSON, _ bool) string { return fmt.Sprint(s.Open) }},
	{"USERS", "who uses it", func(s shimJSON, _ bool) string { return strings.Join(s.Users, ", ") }},
	{"UUID", "device-mapper uuid", func(s shimJSON, _ bool) string { return s.UUID }},
}

func runListShims(ctx context.Context, env *cliEnv, opts *listOptions, args []string) error {
	if opts.output == outputHelp {
		return printColumnHelp(env, shimColumns)
	}
	sys := env.system()
	defer sys.Close()
	found, err := named(ctx, args, sys.Shims)
	if err != nil && len(args) == 0 {
		return err
	}
	rows := shimRows(found)
	if env.json {
		return errors.Join(err, printJSON(env, shimsJSON{rows}))
	}
	return errors.Join(err, printShims(env, opts, rows))
}

func printShims(env *cliEnv, opts *listOptions, rows []shimJSON) error {
	defaults := defaultShimColumns
	if opts.all {
		defaults = columnNames(shimColumns)
	}
	columns, err := pickColumns(shimColumns, defaults, opts.output)
	if err != nil || len(rows) == 0 {
		return err
	}
	return printColumns(env.stdout, columns, rows, !opts.noheadings, opts.raw, opts.bs)
}

// noteShims says below a list of mappings that there are shims, which are none.
func noteShims(ctx context.Context, env *cliEnv, sys *lifecycle.System) {
	if shims, err := sys.Shims(ctx); err == nil && len(shims) > 0 {
		what := "1 shim"
		if len(shims) > 1 {
			what = fmt.Sprintf("%d shims", len(shims))
		}
		fmt.Fprintf(env.stderr, "%s: dmloop list --shims\n", what)
	}
}
