package main

import (
	"fmt"
	"math"

	"dmloop/extents"
	"dmloop/internal/size"
)

// sizeValue is a flag that takes a size.
type sizeValue struct{ bytes *extents.Bytes }

func (v sizeValue) String() string {
	if v.bytes == nil {
		return "0"
	}
	return fmt.Sprint(int64(*v.bytes))
}
func (v sizeValue) Type() string { return "size" }
func (v sizeValue) Set(text string) error {
	b, err := size.Parse(text)
	if err != nil {
		return err
	}
	*v.bytes = b
	return nil
}

// humanSize prints a size with one decimal in powers of 1024, as lsblk does.
func humanSize(b extents.Bytes) string {
	const units = "BKMGTPE"
	v, i := float64(b), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 || v == math.Trunc(v) {
		return fmt.Sprintf("%.0f%c", v, units[i])
	}
	return fmt.Sprintf("%.1f%c", v, units[i])
}
