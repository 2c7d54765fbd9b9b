package lifecycle

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/blockdev"
	"dmloop/internal/record"
	"dmloop/internal/survey"
	"dmloop/internal/vmtest/partcorpus"
)

// The reader of partition tables gets the device's own size and block size, and what it
// notes gets into the log, each on a line of its own whatever the table says.
func TestPartitionsOfADevice(t *testing.T) {
	for _, c := range partcorpus.Cases() {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, c.Image(), 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		job := &mapJob{System: NewSystem("", slog.New(slog.NewTextHandler(&log, nil))), m: record.Record{Size: partcorpus.Size},
			survey: &survey.Report{Place: survey.Place{Stack: blockdev.Stack{Base: []blockdev.Base{{LogicalBlock: extents.Bytes(c.Block)}}}}}}
		got, err := job.readPartitions(path)
		if want := len(strings.Fields(strings.Trim(c.Shown(), "-"))); c.Refuse == "" && (err != nil || len(got) != want) {
			t.Errorf("%s: %v (%v), want %s", c.Name, got, err, c.Shown())
		}
		if c.Refuse != "" && (err == nil || !strings.Contains(err.Error(), c.Refuse)) {
			t.Errorf("%s: %v (%v), want %q", c.Name, got, err, c.Refuse)
		}
		if notes := log.String(); c.Name == "mbr, ends beyond the end" && strings.Count(notes, "level=WARN") != 2 {
			t.Errorf("%s", notes)
		}
	}
}
