//go:build vmtest

package dm_test

import (
	"testing"
	"time"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/vmtest"
)

// TestHundredThousandRows loads, reads and removes a large table, and prints the
// times.
func TestHundredThousandRows(t *testing.T) {
	c := connect(t)
	a := numbers(t, vmtest.Disk(t, 0))
	const rows = 100_000
	segs := make([]dmtable.Segment, rows)
	for i := range segs {
		segs[i] = dmtable.Segment{Device: a, Start: dmtable.Sectors((i*7919)%rows) * 24, Length: 8}
	}
	clock := time.Now()
	lap := func(what string) {
		t.Logf("%-8s %8.1f ms", what, float64(time.Since(clock).Microseconds())/1000)
		clock = time.Now()
	}
	table, err := dmtable.Build(segs)
	if err != nil {
		t.Fatal(err)
	}
	lap("Build")
	if _, err := c.Create("large", ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "large") })
	ref := dm.ByName("large")
	clock = time.Now()
	if _, err := c.Load(ref, table, false); err != nil {
		t.Fatal(err)
	}
	lap("Load")
	if _, err := c.Resume(ref, dm.ResumeOptions{}); err != nil {
		t.Fatal(err)
	}
	lap("Resume")
	got, err := c.Table(ref)
	if err != nil || !got.Equal(table) {
		t.Fatalf("%s, %v", table.Diff(got), err)
	}
	lap("Table")
	if text := vmtest.Must(t, "dmsetup", "table", "large"); text != table.String() {
		t.Error("dmsetup prints something else")
	}
	lap("dmsetup")
	if _, err := c.ReplaceNow(ref, dmtable.ErrorTable(table.Size()), 0); err != nil {
		t.Fatal(err)
	}
	lap("Replace")
	if _, err := c.Remove(ref, dm.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	lap("Remove")
}
