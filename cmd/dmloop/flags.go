package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"dmloop/dmtable"
	"dmloop/internal/survey"
)

// surveyFlags are the flags of every command that judges an image.
func surveyFlags(cmd *cobra.Command, o *survey.Options) {
	f := cmd.Flags()
	f.VarP(sizeValue{&o.Window.Offset}, "offset", "o", "start at this byte of the image")
	f.Var(sizeValue{&o.Window.Limit}, "sizelimit", "use at most this many bytes")
	o.MaxExtents = survey.DefaultMaxExtents
	f.Var(rowsValue{&o.MaxExtents}, "max-extents", "refuse an image with more extents")
}

// rowsValue is a flag that takes a number of rows that a table can have.
type rowsValue struct{ n *int }

func (v rowsValue) String() string {
	if v.n == nil {
		return "0"
	}
	return strconv.Itoa(*v.n)
}

func (v rowsValue) Type() string { return "int" }

func (v rowsValue) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > dmtable.MaxRows {
		return fmt.Errorf("the limit of extents must lie between 1 and %d", dmtable.MaxRows)
	}
	*v.n = n
	return nil
}
