// Package size reads sizes as losetup does, for options of commands and of
// dmlooptab lines.
package size

import (
	"fmt"
	"math"
	"math/big"
	"strings"

	"dmloop/extents"
)

var units = map[string]int{"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}

// longest bounds the text of a size, so that no number takes long to read.
const longest = 64

// Parse reads a number of bytes, or one with a suffix: K, KiB, M, MiB and so on are
// powers of 1024, KB, MB and so on powers of 1000. Decimals are allowed where they
// give whole bytes.
func Parse(text string) (extents.Bytes, error) {
	number, err := parse(text)
	if err != nil {
		return 0, err
	}
	if !number.IsInt() {
		return 0, fmt.Errorf("%q is not a whole number of bytes", text)
	}
	return extents.Bytes(number.Num().Int64()), nil
}

// ParseDown is Parse where a number with decimals, such as 1.3G, is rounded down to whole
// blocks. It reports whether it was.
func ParseDown(text string, block extents.Bytes) (size extents.Bytes, rounded bool, err error) {
	number, err := parse(text)
	if err != nil {
		return 0, false, err
	}
	size = extents.Bytes(new(big.Int).Quo(number.Num(), number.Denom()).Int64())
	if strings.Contains(text, ".") && (size%block != 0 || !number.IsInt()) {
		return size - size%block, true, nil
	}
	return size, false, nil
}

// parse reads what Parse and ParseDown do, decimals included.
func parse(text string) (*big.Rat, error) {
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	suffix := strings.ToLower(text[len(digits):])
	base := int64(1024)
	switch {
	case strings.HasSuffix(suffix, "ib") && len(suffix) == 3:
		suffix = suffix[:1]
	case strings.HasSuffix(suffix, "b") && len(suffix) == 2:
		suffix, base = suffix[:1], 1000
	}
	power, known := units[suffix]
	if !known || len(text) > longest || strings.Trim(digits, "0123456789.") != "" {
		return nil, notSize(text)
	}
	number, ok := new(big.Rat).SetString(digits)
	if !ok {
		return nil, notSize(text)
	}
	for range power {
		number.Mul(number, new(big.Rat).SetInt64(base))
	}
	if number.Cmp(new(big.Rat).SetInt64(math.MaxInt64-(1<<20))) > 0 {
		return nil, fmt.Errorf("%q is more than a file can hold", text)
	}
	return number, nil
}

func notSize(text string) error {
	return fmt.Errorf("%q is not a size such as 4096, 64K, 64KiB, 10GB", text)
}
