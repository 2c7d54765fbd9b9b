package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/extents"
	"dmloop/internal/lifecycle"
)

func newExtentsCommand(env *cliEnv) *cobra.Command {
	var resume bool
	var svg string
	cmd := &cobra.Command{
		Use:   "extents IMAGE",
		Short: "List where a file lies on its file system's device",
		Long: `Print one line for each extent: offset in the file, address on the host device,
length, all in bytes, and flags. Works for any file on any file system that has FIEMAP.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runExtents(cmd.Context(), env, resume, svg, args[0])
		},
	}
	cmd.Flags().BoolVar(&resume, "resume-offset", false, "print the first page's address in pages, as the kernel's resume_offset= takes it")
	cmd.Flags().StringVar(&svg, "svg", "", "draw where the file lies into this new file")
	jsonFlag(env, cmd)
	return cmd
}

func runExtents(ctx context.Context, env *cliEnv, resume bool, svg, path string) error {
	sys := env.system()
	defer sys.Close()
	e, err := sys.Extents(ctx, path)
	if err != nil {
		return err
	}
	switch {
	case svg != "":
		return writeSVG(svg, e)
	case resume:
		offset, err := resumeOffset(path, e.Layout)
		if err != nil {
			return err
		}
		fmt.Fprintln(env.stdout, offset)
		return nil
	}
	out := bufio.NewWriterSize(env.stdout, 1<<16)
	if env.json {
		err = extentsJSON(out, e)
	} else {
		err = extentsText(out, e, terminal(env.stdout))
	}
	if err != nil {
		return err
	}
	return out.Flush()
}

// extentsJSON writes row by row: half a million extents must not be in memory twice.
func extentsJSON(out *bufio.Writer, e *lifecycle.FileExtents) error {
	fmt.Fprintf(out, "{\"image\":%s,\"size\":%d,\"filesystem\":%s,\"extents\":[", jsonString(e.Path), int64(e.Layout.Size), jsonString(e.Filesystem))
	device := jsonString(e.Device.String())
	var row []byte
	for i, x := range e.Layout.Extents {
		row = row[:0]
		if i > 0 {
			row = append(row, ',')
		}
		row = append(row, "\n{\"logical\":"...)
		row = strconv.AppendInt(row, int64(x.Logical), 10)
		row = append(row, ",\"length\":"...)
		row = strconv.AppendInt(row, int64(x.Length), 10)
		row = append(row, ",\"physical\":"...)
		row = strconv.AppendInt(row, int64(x.Physical), 10)
		row = append(row, ",\"device\":"...)
		row = append(row, device...)
		row = append(row, ",\"flags\":["...)
		for j, name := range x.Flags.Names() {
			if j > 0 {
				row = append(row, ',')
			}
			row = strconv.AppendQuote(row, name)
		}
		row = append(row, "]}"...)
		if _, err := out.Write(row); err != nil {
			return err
		}
	}
	_, err := out.WriteString("\n]}\n")
	return err
}

// extentsText writes columns: aligned for people, parted by one blank otherwise.
func extentsText(out *bufio.Writer, e *lifecycle.FileExtents, people bool) error {
	width := 0
	if people {
		width = 16
		fmt.Fprintf(out, "%*s %*s %*s %s\n", width, "LOGICAL", width, "PHYSICAL", width, "LENGTH", "FLAGS")
	} else {
		out.WriteString("LOGICAL PHYSICAL LENGTH DEVICE FLAGS\n")
	}
	device := e.Device.String()
	var row []byte
	for _, x := range e.Layout.Extents {
		row = row[:0]
		for _, v := range []extents.Bytes{x.Logical, x.Physical, x.Length} {
			row = appendRight(row, int64(v), width)
			row = append(row, ' ')
		}
		if !people {
			row = append(row, device...)
			row = append(row, ' ')
		}
		names := x.Flags.Names()
		if len(names) == 0 {
			row = append(row, '-')
		}
		row = append(row, strings.Join(names, ",")...)
		row = append(row, '\n')
		if _, err := out.Write(row); err != nil {
			return err
		}
	}
	return nil
}

func appendRight(row []byte, v int64, width int) []byte {
	var digits [20]byte
	text := strconv.AppendInt(digits[:0], v, 10)
	for pad := width - len(text); pad > 0; pad-- {
		row = append(row, ' ')
	}
	return append(row, text...)
}

func jsonString(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return `""` // no string does this
	}
	return string(b)
}

// resumeOffset is the address of the file's first page in pages of the kernel, what
// a swap file's header page must be found by when the kernel resumes from disk.
func resumeOffset(path string, l extents.Layout) (int64, error) {
	page := extents.Bytes(os.Getpagesize())
	if len(l.Extents) == 0 || l.Extents[0].Logical != 0 || l.Extents[0].Physical%page != 0 || l.Extents[0].Length < page {
		return 0, &lifecycle.Error{Class: lifecycle.NotMappable, Subject: path,
			Message: "the first page of the file does not lie on a page of the device", Hint: "make the file anew: dmloop create"}
	}
	return int64(l.Extents[0].Physical / page), nil
}
