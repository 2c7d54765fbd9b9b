package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fault"
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
		if err == nil && svg != "" {
			err = writeSVG(svg, e, layout)
		}
		if err == nil && resume {
			return printResumeOffset(env, e, layout)
		}
		if err != nil || !env.json {
			return err
		}
	}
	list := &extentList{out: env.stdout, file: e, device: e.Device.String(), text: make([]byte, 0, listBuffer)}
	list.begin, list.one, list.end = list.beginText, list.textRow, func() {}
	switch {
	case env.json:
		list.begin, list.one, list.end = list.beginJSON, list.jsonRow, list.endJSON
	case terminal(env.stdout):
		list.width = columnWidth
	}
	return list.print()
}

// Of a number, and of the device, on a terminal.
const (
	columnWidth = 16
	deviceWidth = 8
)

// listBuffer is how much text is written at a time. A row is shorter than maxRow.
const (
	listBuffer = 1 << 16
	maxRow     = 1 << 10
)

// extentList prints extents as they are read: a file may have millions. Nothing is
// printed before the first of them is there, so that a file system that does not
// tell gives an error and no heading.
type extentList struct {
	out        io.Writer
	file       *lifecycle.FileExtents
	device     string
	width      int // of a column; 0 for one blank between them
	count      int
	text       []byte        // not written yet
	flags      extents.Flags // of the row before
	names      string        // their names, as the rows have them
	begin, end func()
	one        func(extents.Extent)
}

func (l *extentList) print() error {
	err := l.file.Each(func(rows []extents.Extent) error {
		for _, e := range rows {
			if l.count == 0 {
				l.begin()
			}
			l.one(e)
			l.count++
			if len(l.text) > listBuffer-maxRow {
				if err := l.flush(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		_ = l.flush() // what was read before is worth seeing
		return err
	}
	if l.count == 0 {
		l.begin()
	}
	l.end()
	return l.flush()
}

func (l *extentList) flush() error {
	_, err := l.out.Write(l.text)
	l.text = l.text[:0]
	return err
}

func (l *extentList) beginJSON() {
	l.text = fmt.Appendf(l.text, "{\"image\":%s,\"size\":%d,\"filesystem\":%s,\"extents\":[",
		jsonString(l.file.Path), int64(l.file.Size), jsonString(l.file.Filesystem))
}

func (l *extentList) endJSON() { l.text = append(l.text, "\n]}\n"...) }

func (l *extentList) jsonRow(e extents.Extent) {
	if l.count > 0 {
		l.text = append(l.text, ',')
	}
	if l.count == 0 || e.Flags != l.flags {
		l.flags, l.names = e.Flags, ""
		if names := e.Flags.Names(); len(names) > 0 {
			l.names = `"` + strings.Join(names, `","`) + `"`
		}
	}
	l.text = append(l.text, "\n{\"logical\":"...)
	l.text = strconv.AppendInt(l.text, int64(e.Logical), 10)
	l.text = append(l.text, ",\"length\":"...)
	l.text = strconv.AppendInt(l.text, int64(e.Length), 10)
	l.text = append(l.text, ",\"physical\":"...)
	l.text = strconv.AppendInt(l.text, int64(e.Physical), 10)
	l.text = append(append(append(l.text, ",\"device\":\""...), l.device...), "\",\"flags\":["...)
	l.text = append(append(l.text, l.names...), "]}"...)
}

// beginText and textRow write columns: aligned for people, separated by a space otherwise.
func (l *extentList) beginText() {
	if l.width > 0 {
		l.text = fmt.Appendf(l.text, "%*s %*s %*s %-*s FLAGS\n", l.width, "LOGICAL", l.width, "PHYSICAL", l.width, "LENGTH", deviceWidth, "DEVICE")
	} else {
		l.text = append(l.text, "LOGICAL PHYSICAL LENGTH DEVICE FLAGS\n"...)
	}
}

func (l *extentList) textRow(e extents.Extent) {
	if l.count == 0 || e.Flags != l.flags {
		l.flags, l.names = e.Flags, strings.Join(e.Flags.Names(), ",")
		if l.names == "" {
			l.names = "-"
		}
		width := 0
		if l.width > 0 {
			width = deviceWidth
		}
		l.names = fmt.Sprintf("%-*s %s", width, l.device, l.names)
	}
	l.number(e.Logical)
	l.number(e.Physical)
	l.number(e.Length)
	l.text = append(append(l.text, l.names...), '\n')
}

// number appends a column: v, right-aligned, and a blank.
func (l *extentList) number(v extents.Bytes) {
	from := len(l.text)
	l.text = strconv.AppendInt(l.text, int64(v), 10)
	if pad := l.width - (len(l.text) - from); pad > 0 {
		l.text = slices.Insert(l.text, from, blanks[:pad]...)
	}
	l.text = append(l.text, ' ')
}

var blanks = bytes.Repeat([]byte{' '}, columnWidth)

func jsonString(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return `""` // no string does this
	}
	return string(b)
}

func printResumeOffset(env *cliEnv, file *lifecycle.FileExtents, l extents.Layout) error {
	path := file.Path
	l, err := firstPage(path, l)
	if err == nil {
		l, err = file.OnHost(l)
	}
	if err != nil {
		return err
	}
	offset, err := resumeOffset(path, l)
	if err != nil {
		return err
	}
	if env.json {
		return printJSON(env, struct {
			Image  string `json:"image"`
			Offset int64  `json:"resume_offset"`
		}{path, offset})
	}
	_, err = fmt.Fprintln(env.stdout, offset)
	return err
}

// firstPage is the layout of the file's first page, if it has an address of its own.
func firstPage(path string, l extents.Layout) (extents.Layout, error) {
	const nowhere = extents.FlagUnknown | extents.FlagDelalloc | extents.FlagEncoded | extents.FlagNotAligned | extents.FlagInline | extents.FlagTail
	page := extents.Bytes(os.Getpagesize())
	if len(l.Extents) == 0 || l.Extents[0].Logical != 0 || l.Extents[0].Length < page || l.Extents[0].Flags&nowhere != 0 {
		return l, noPage(path)
	}
	return extents.Layout{Size: page, Extents: l.Extents[:1]}, nil
}

// resumeOffset is the address of the file's first page in pages of the kernel, what
// a swap file's header page must be found by when the kernel resumes from disk.
func resumeOffset(path string, l extents.Layout) (int64, error) {
	page := extents.Bytes(os.Getpagesize())
	if first := l.Extents[0]; first.Physical%page != 0 || first.Length < page {
		return 0, noPage(path)
	}
	return int64(l.Extents[0].Physical / page), nil
}

func noPage(path string) error {
	return &fault.Error{Class: fault.NotMappable, Subject: path,
		Message: "the first page of the file does not lie on a page of the device", Remedy: advice.MakeAnew}
}
