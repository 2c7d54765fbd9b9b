package size

import (
	"strings"
	"testing"

	"dmloop/extents"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]extents.Bytes{
		"0": 0, "4096": 4096, "512b": 512, "64K": 64 << 10, "64k": 64 << 10, "64KiB": 64 << 10, "64KB": 64_000,
		"1.5M": 3 << 19, "10GB": 10_000_000_000, "2T": 2 << 40, ".5K": 512,
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "K", "-1", "+1", "1e3", "0x10", "1/2", "1_000", "1.3", "9E", "1KX", "1 K", "1KiBB", "1..2", strings.Repeat("9", 65),
	} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%q was read as %d", text, got)
		}
	}
}

func TestParseDown(t *testing.T) {
	for text, want := range map[string]struct {
		size    extents.Bytes
		rounded bool
	}{
		"1.3G": {1395863552, true}, "1.5M": {3 << 19, false}, "0.3": {0, true}, "1.3K": {0, true}, "4097": {4097, false}, "8K": {8192, false},
		"1.0001K": {0, true}, "10.7GB": {10_699_997_184, true},
	} {
		if got, rounded, err := ParseDown(text, 4096); err != nil || got != want.size || rounded != want.rounded {
			t.Errorf("%s: %d, %v, %v; want %+v", text, got, rounded, err, want)
		}
	}
	for _, text := range []string{"", "1e3", "9E", "1.3.4", "8.5E"} {
		if got, _, err := ParseDown(text, 4096); err == nil {
			t.Errorf("%q was read as %d", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("1.5MiB")
	f.Add("9223372036854775807")
	f.Fuzz(func(t *testing.T, text string) {
		if b, err := Parse(text); err == nil && b < 0 {
			t.Errorf("%q was read as %d", text, b)
		}
	})
}
