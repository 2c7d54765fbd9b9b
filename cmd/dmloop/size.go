package main

import (
	"fmt"
	"math"
	"math/big"
	"strings"

	"dmloop/extents"
)

var sizeUnits = map[string]int{"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}

// parseSize reads a size as losetup does: a number of bytes, or one with a suffix:
// K, KiB, M, MiB ... are powers of 1024, KB, MB ... powers of 1000. Decimals are
// allowed where they give whole bytes.
func parseSize(text string) (extents.Bytes, error) {
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	suffix := strings.ToLower(text[len(digits):])
	base := int64(1024)
	switch {
	case strings.HasSuffix(suffix, "ib") && len(suffix) == 3:
		suffix = suffix[:1]
	case strings.HasSuffix(suffix, "b") && len(suffix) == 2:
		suffix, base = suffix[:1], 1000
	}
	power, known := sizeUnits[suffix]
	number, ok := new(big.Rat).SetString(digits)
	if !known || !ok || strings.ContainsAny(digits, "+-/_eExXpP") {
		return 0, fmt.Errorf("%q is not a size such as 4096, 64K, 64KiB, 10GB", text)
	}
	for range power {
		number.Mul(number, new(big.Rat).SetInt64(base))
	}
	if !number.IsInt() {
		return 0, fmt.Errorf("%q is not a whole number of bytes", text)
	}
	if !number.Num().IsInt64() || number.Num().Int64() > math.MaxInt64-(1<<20) {
		return 0, fmt.Errorf("%q is more than a file can hold", text)
	}
	return extents.Bytes(number.Num().Int64()), nil
}

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
	b, err := parseSize(text)
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
