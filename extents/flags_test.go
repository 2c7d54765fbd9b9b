package extents

import (
	"slices"
	"testing"
)

func TestFlagNames(t *testing.T) {
	tests := []struct {
		flags Flags
		want  []string
	}{
		{0, []string{}},
		{FlagLast, []string{"last"}},
		{FlagDelalloc | FlagUnknown, []string{"unknown_loc", "delalloc"}},
		{0x3f8f, []string{
			"last", "unknown_loc", "delalloc", "encoded", "encrypted", "not_aligned", "inline",
			"tail_packed", "unwritten", "merged", "shared",
		}},
		{FlagShared | 0x4000, []string{"shared", "0x4000"}},
		{0xffff0000, []string{"0xffff0000"}},
	}
	for _, tt := range tests {
		got := tt.flags.Names()
		if got == nil || !slices.Equal(got, tt.want) {
			t.Errorf("Flags(%#x).Names() = %#v, want %#v", uint32(tt.flags), got, tt.want)
		}
	}
}
