package dm_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/dm/dmtest"
)

func build(t *testing.T, segs ...dmtable.Segment) dmtable.Table {
	t.Helper()
	table, err := dmtable.Build(segs)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestLife(t *testing.T) {
	k := dmtest.New()
	c := k.Conn()
	img := dm.ByName("img")
	if _, err := c.Info(img); !errors.Is(err, dm.ErrNotFound) || !errors.Is(err, unix.ENXIO) {
		t.Fatalf("Info of a missing device: %v", err)
	}
	info, err := c.Create("img", "DMLOOP-x")
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != "img" || info.UUID != "DMLOOP-x" || info.Device.Major != dmtest.Major || info.ActiveTable {
		t.Fatalf("Create: %+v", info)
	}
	if _, err := c.Create("img", ""); !errors.Is(err, dm.ErrExists) {
		t.Fatalf("Create twice: %v", err)
	}
	table := build(t, dmtable.Segment{Device: dmtable.Device{Major: 8, Minor: 1}, Start: 2048, Length: 8})
	if info, err = c.Load(img, table, true); err != nil || !info.InactiveTable {
		t.Fatalf("Load: %+v, %v", info, err)
	}
	if got, err := c.InactiveTable(img); err != nil || !got.Equal(table) {
		t.Fatalf("InactiveTable: %v, %v", got, err)
	}
	info, err = c.Resume(img, dm.ResumeOptions{EventNr: 0x400000})
	if err != nil || !info.UeventGenerated || !info.ReadOnly || info.InactiveTable || info.TargetCount != 1 {
		t.Fatalf("Resume: %+v, %v", info, err)
	}
	if got, err := c.Table(dm.ByUUID("DMLOOP-x")); err != nil || !got.Equal(table) {
		t.Fatalf("Table: %v, %v", got, err)
	}
	deps, err := c.Deps(dm.ByDevice(info.Device))
	if err != nil || len(deps) != 1 || deps[0] != (dmtable.Device{Major: 8, Minor: 1}) {
		t.Fatalf("Deps: %v, %v", deps, err)
	}
	if _, err := c.ReplaceNow(img, dmtable.ErrorTable(table.Size()), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Rename(img, "other", 0); err != nil {
		t.Fatal(err)
	}
	k.SetOpen("other", 1)
	if _, err := c.Remove(dm.ByName("other"), dm.RemoveOptions{}); !errors.Is(err, dm.ErrBusy) {
		t.Fatalf("Remove of an open device: %v", err)
	}
	info, err = c.Remove(dm.ByName("other"), dm.RemoveOptions{Deferred: true})
	if err != nil || !info.DeferredRemove || info.UeventGenerated {
		t.Fatalf("deferred Remove: %+v, %v", info, err)
	}
	list, err := c.List()
	if err != nil || len(list) != 1 || list[0].Name != "other" || list[0].UUID != "DMLOOP-x" {
		t.Fatalf("List: %+v, %v", list, err)
	}
	k.SetOpen("other", 0)
	if list, err := c.List(); err != nil || len(list) != 0 {
		t.Fatalf("List: %+v, %v", list, err)
	}
}
