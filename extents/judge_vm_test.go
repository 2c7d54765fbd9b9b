//go:build vmtest

package extents_test

import (
	"path/filepath"
	"slices"
	"testing"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

// place is what a problem says apart from its words.
type place struct {
	rule           extents.Rule
	offset, length extents.Bytes
}

// TestProblemsOfRealFiles provokes each rule that a layout can break and looks for
// the right bytes. Delalloc cannot be seen: the read writes everything back first.
func TestProblemsOfRealFiles(t *testing.T) {
	const mib = 1 << 20
	tests := []struct {
		name, fs  string
		mkfs      []string
		mountOpts []string
		script    string // makes the file f
		want      []place
	}{
		{"good", "ext4", nil, nil, "head -c 4M /dev/urandom >f", nil},
		{"good with preallocation beyond the end", "xfs", nil, nil, "head -c 4M /dev/urandom >f; fallocate -n -o 4M -l 1M f", nil},
		{"dirty pages", "xfs", nil, nil, "head -c 4M /dev/zero >f", nil},
		{"holes", "ext4", nil, nil, "head -c 4M /dev/urandom >f; fallocate -p -o 1M -l 4096 f; fallocate -p -o 3M -l 1M f",
			[]place{{extents.Hole, mib, 4096}, {extents.Hole, 3 * mib, mib}}},
		{"only a hole", "xfs", nil, nil, "truncate -s 4M f", []place{{extents.Hole, 0, 4 * mib}}},
		{"unwritten", "xfs", nil, nil, "head -c 4M /dev/urandom >f; fallocate -z -o 2M -l 8192 f", []place{{extents.Unwritten, 2 * mib, 8192}}},
		{"all unwritten, 1 KiB blocks", "ext4", []string{"-b", "1024"}, nil, "fallocate -l 4M f", []place{{extents.Unwritten, 0, 4 * mib}}},
		{"shared", "xfs", nil, nil, `head -c 4M /dev/urandom >f; xfs_io -f -c "reflink f 1m 0 64k" g >/dev/null`, []place{{extents.Shared, mib, 65536}}},
		{"shared within itself", "xfs", nil, nil, `head -c 4M /dev/urandom >f; xfs_io -c "reflink f 0 2m 64k" f >/dev/null`,
			[]place{{extents.Shared, 0, 65536}, {extents.Shared, 2 * mib, 65536}}},
		{"shared on btrfs", "btrfs", nil, nil, "head -c 4M /dev/urandom >f; sync; cp --reflink=always f g", []place{{extents.Shared, 0, 4 * mib}}},
		{"inline on ext4", "ext4", []string{"-O", "inline_data", "-I", "256"}, nil, "printf x >f", []place{{extents.Inline, 0, 1}}},
		{"inline on f2fs", "f2fs", nil, nil, "printf x >f; sync f", []place{{extents.Inline, 0, 1}}},
		{"inline on btrfs", "btrfs", nil, nil, "printf x >f; sync f", []place{{extents.Inline, 0, 1}}},
		{"compressed", "btrfs", nil, []string{"-o", "compress-force=zlib"}, "head -c 128K /dev/zero >f", []place{{extents.Encoded, 0, 131072}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, tt.fs, disk, tt.mkfs...)
			dir := vmtest.Mount(t, disk, tt.mountOpts...)
			vmtest.Must(t, "sh", "-ec", "cd \"$0\"; "+tt.script, dir)
			layout := read(t, filepath.Join(dir, "f"))
			var got []place
			for _, p := range layout.Problems(512, 0) {
				got = append(got, place{p.Rule, p.Offset, p.Length})
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v, for %+v", got, tt.want, layout.Extents)
			}
		})
	}
}
