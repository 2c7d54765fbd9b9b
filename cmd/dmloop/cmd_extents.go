package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"

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
	defer e.Close()
	if svg != "" || resume {
		layout, err := e.Layout()
		if err != nil {
			return err
		}
		if svg != "" {
			return writeSVG(svg, e, layout)
		}
		offset, err := resumeOffset(path, layout)
		if err != nil {
			return err
		}
		fmt.Fprintln(env.stdout, offset)
		return nil
	}
	list := &extentList{out: bufio.NewWriterSize(env.stdout, 1<<16), file: e, device: e.Device.String()}
	list.begin, list.one, list.end = list.beginText, list.textRow, func() {}
	switch {
	case env.json:
		list.begin, list.one, list.end = list.beginJSON, list.jsonRow, list.endJSON
	case terminal(env.stdout):
		list.width = 16
	}
	return list.print()
}

// extentList prints extents as they are read: a file may have millions. Nothing is
// printed before the first of them is there, so that a file system that does not
// tell gives an error and no heading.
type extentList struct {
	out        *bufio.Writer
	file       *lifecycle.FileExtents
	device     string
	width      int // of a column; 0 for one blank between them
	count      int
	row        []byte
	flags      extents.Flags // of the row before, with their text
	names      []string
	begin, end func()
	one        func(extents.Extent)
}

func (l *extentList) print() error {
	err := l.file.Each(func(rows []extents.Extent) error {
		for _, e := range rows {
			if l.count == 0 {
				l.begin()
			}
			if l.count == 0 || e.Flags != l.flags {
				l.flags, l.names = e.Flags, e.Flags.Names()
			}
			l.row = l.row[:0]
			l.one(e)
			l.count++
			if _, err := l.out.Write(l.row); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		_ = l.out.Flush() // what was read before is worth seeing
		return err
	}
	if l.count == 0 {
		l.begin()
	}
	l.end()
	return l.out.Flush()
}

func (l *extentList) beginJSON() {
	fmt.Fprintf(l.out, "{\"image\":%s,\"size\":%d,\"filesystem\":%s,\"extents\":[",
		jsonString(l.file.Path), int64(l.file.Size), jsonString(l.file.Filesystem))
}

func (l *extentList) endJSON() { l.out.WriteString("\n]}\n") }

func (l *extentList) jsonRow(e extents.Extent) {
	if l.count > 0 {
		l.row = append(l.row, ',')
	}
	l.row = append(l.row, "\n{\"logical\":"...)
	l.row = strconv.AppendInt(l.row, int64(e.Logical), 10)
	l.row = append(l.row, ",\"length\":"...)
	l.row = strconv.AppendInt(l.row, int64(e.Length), 10)
	l.row = append(l.row, ",\"physical\":"...)
	l.row = strconv.AppendInt(l.row, int64(e.Physical), 10)
	l.row = append(append(append(l.row, ",\"device\":\""...), l.device...), "\",\"flags\":["...)
	for i, name := range l.names {
		if i > 0 {
			l.row = append(l.row, ',')
		}
		l.row = strconv.AppendQuote(l.row, name)
	}
	l.row = append(l.row, "]}"...)
}

// beginText and textRow write columns: aligned for people, parted by one blank otherwise.
func (l *extentList) beginText() {
	if l.width > 0 {
		fmt.Fprintf(l.out, "%*s %*s %*s FLAGS\n", l.width, "LOGICAL", l.width, "PHYSICAL", l.width, "LENGTH")
	} else {
		l.out.WriteString("LOGICAL PHYSICAL LENGTH DEVICE FLAGS\n")
	}
}

func (l *extentList) textRow(e extents.Extent) {
	for _, v := range [...]extents.Bytes{e.Logical, e.Physical, e.Length} {
		l.row = append(appendRight(l.row, int64(v), l.width), ' ')
	}
	if l.width == 0 {
		l.row = append(append(l.row, l.device...), ' ')
	}
	for i, name := range l.names {
		if i > 0 {
			l.row = append(l.row, ',')
		}
		l.row = append(l.row, name...)
	}
	if len(l.names) == 0 {
		l.row = append(l.row, '-')
	}
	l.row = append(l.row, '\n')
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
