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

func FuzzParse(f *testing.F) {
	f.Add("1.5MiB")
	f.Add("9223372036854775807")
	f.Fuzz(func(t *testing.T, text string) {
		if b, err := Parse(text); err == nil && b < 0 {
			t.Errorf("%q was read as %d", text, b)
		}
	})
}
