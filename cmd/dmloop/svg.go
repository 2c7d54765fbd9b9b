package main

import (
	"bufio"
	"errors"
	"fmt"
	"html"
	"os"

	"dmloop/extents"
	"dmloop/internal/fault"
	"dmloop/internal/lifecycle"
)

// The picture: the file on top, the device below, a band from each extent in the
// one to its place in the other.
const (
	svgWidth  = 1000
	svgMargin = 20
	svgFile   = 70  // y of the file's bar
	svgDevice = 230 // y of the device's bar
	svgBar    = 24
)

// writeSVG draws where a file lies into a new file.
func writeSVG(path string, e *lifecycle.FileExtents, l extents.Layout) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return &fault.Error{Class: fault.ClassOf(err), Subject: path, Message: "the picture cannot be written", Err: errors.Unwrap(err)}
	}
	out := bufio.NewWriter(f)
	drawSVG(out, e, l)
	if err := errors.Join(out.Flush(), f.Close()); err != nil {
		return &fault.Error{Class: fault.Failed, Subject: path, Message: "the picture cannot be written", Err: errors.Join(err, os.Remove(path))}
	}
	return nil
}

func drawSVG(out *bufio.Writer, e *lifecycle.FileExtents, l extents.Layout) {
	low, high := span(l.Extents)
	inFile := scale{0, max(l.Size, 1)}
	onDevice := scale{low, max(high-low, 1)}
	fmt.Fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d 320\" font-family=\"sans-serif\" font-size=\"13\">\n", svgWidth)
	fmt.Fprintln(out, `<rect width="100%" height="100%" fill="white"/>`)
	fmt.Fprintf(out, "<text x=\"%d\" y=\"30\" font-size=\"16\">%s</text>\n", svgMargin, html.EscapeString(printable(e.Path)))
	fmt.Fprintf(out, "<text x=\"%d\" y=\"%d\">file: %s, %s, %s</text>\n", svgMargin, svgFile-8,
		humanSize(l.Size), plural(len(l.Extents), "extent"), html.EscapeString(e.Filesystem))
	fmt.Fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#888\"/>\n", svgMargin, svgFile, svgWidth-2*svgMargin, svgBar)
	fmt.Fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#888\"/>\n", svgMargin, svgDevice, svgWidth-2*svgMargin, svgBar)
	for i, x := range l.Extents {
		drawExtent(out, i, x, inFile, onDevice)
	}
	fmt.Fprintf(out, "<text x=\"%d\" y=\"%d\">device %s: bytes %d to %d</text>\n", svgMargin, svgDevice+svgBar+18, e.Device, int64(low), int64(high))
	fmt.Fprintln(out, "</svg>")
}

func drawExtent(out *bufio.Writer, i int, x extents.Extent, inFile, onDevice scale) {
	colour := fmt.Sprintf("hsl(%d,60%%,55%%)", i*47%360)
	if x.Flags&(extents.FlagUnwritten|extents.FlagShared|extents.FlagUnknown) != 0 {
		colour = "#c00"
	}
	f0, f1 := inFile.x(x.Logical), inFile.x(x.Logical+x.Length)
	d0, d1 := onDevice.x(x.Physical), onDevice.x(x.Physical+x.Length)
	fmt.Fprintf(out, "<g fill=\"%s\"><title>%d bytes at %d, on the device at %d</title>", colour, int64(x.Length), int64(x.Logical), int64(x.Physical))
	fmt.Fprintf(out, "<rect x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"%d\"/>", f0, svgFile, max(f1-f0, 0.5), svgBar)
	fmt.Fprintf(out, "<path d=\"M%.2f %d L%.2f %d L%.2f %d L%.2f %d Z\" fill-opacity=\"0.3\"/>", f0, svgFile+svgBar, f1, svgFile+svgBar, d1, svgDevice, d0, svgDevice)
	fmt.Fprintf(out, "<rect x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"%d\"/></g>\n", d0, svgDevice, max(d1-d0, 0.5), svgBar)
}

// scale maps bytes to the width of the picture.
type scale struct{ from, length extents.Bytes }

func (s scale) x(b extents.Bytes) float64 {
	at := min(max(float64(b-s.from)/float64(s.length), 0), 1)
	return svgMargin + at*(svgWidth-2*svgMargin)
}

// span returns the lowest and highest address.
func span(all []extents.Extent) (low, high extents.Bytes) {
	for i, x := range all {
		if i == 0 || x.Physical < low {
			low = x.Physical
		}
		high = max(high, x.Physical+x.Length)
	}
	return low, high
}
