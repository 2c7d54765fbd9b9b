//go:build vmtest

package live

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/backing"
	"dmloop/internal/vmtest"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// byHand makes a device of a file as a program without dmloop would: extents, a table, and
// dmsetup.
func byHand(t *testing.T) Mapping {
	t.Helper()
	host := vmtest.Shim(t, vmtest.Disk(t, 0), "host")
	vmtest.Mkfs(t, "ext4", host)
	path := filepath.Join(vmtest.Mount(t, host), "image.img")
	if err := backing.Create(t.Context(), path, 4<<20, backing.Options{}); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	layout, err := extents.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/dev/mapper/host", &st); err != nil {
		t.Fatal(err)
	}
	// The rows lie on what the shim stands on, since the shim itself is mounted.
	slaves, err := os.ReadDir(filepath.Join("/sys/dev/block", dmtable.DeviceOf(st.Rdev).String(), "slaves"))
	if err != nil || len(slaves) != 1 {
		t.Fatal(slaves, err)
	}
	number, err := os.ReadFile(filepath.Join("/sys/class/block", slaves[0].Name(), "dev"))
	if err != nil {
		t.Fatal(err)
	}
	below, err := dmtable.ParseDevice(string(bytes.TrimSpace(number)))
	if err != nil {
		t.Fatal(err)
	}
	var segments []dmtable.Segment
	for _, e := range layout.Clip().Merge().Extents {
		segments = append(segments, dmtable.Segment{Device: below, Start: dmtable.Sectors(e.Physical / dmtable.SectorSize), Length: dmtable.Sectors(e.Length / dmtable.SectorSize)})
	}
	table, err := dmtable.Build(segments)
	if err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "dmsetup", "create", "byhand", "--uuid", "BYHAND-1", "--table", table.String())
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "byhand") })
	return Mapping{Image: path, UUID: "BYHAND-1", Table: table}
}

// A program that makes its own device hears of whatever moves the blocks below it, and a
// table that is not that of the file is refused.
func TestWatchOfAMappingByHand(t *testing.T) {
	m := byHand(t)
	log := slog.New(slog.DiscardHandler)
	wrong := m
	wrong.Table = dmtable.Table{{Length: m.Table[0].Length, Target: dmtable.Linear, Args: "7:1 0"}}
	if w, err := New(t.Context(), wrong, log); err == nil {
		w.Close()
		t.Error("a table that is not the file's was taken")
	}
	w, err := New(t.Context(), m, log)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if found := w.Check(t.Context()); len(found) != 0 {
		t.Fatalf("at first: %v", found)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	reports := make(chan guard.Report, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Watch(ctx, guard.Pace{Tick: 50 * time.Millisecond, Bound: time.Second, Share: 1}, func(r guard.Report) { reports <- r })
	}()
	if r := <-reports; r.Decision.State != guard.Healthy {
		t.Fatalf("%+v", r)
	}
	file, err := os.OpenFile(m.Image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	file.Close()
	select {
	case r := <-reports:
		decision := guard.Decide(r.Findings, guard.OnChangeError)
		if guard.Worst(r.Findings) != guard.Different || decision.Act != guard.OnChangeError {
			t.Errorf("%+v, %+v", r, decision)
		}
	case <-time.After(30 * time.Second):
		t.Error("nobody was told of the hole")
	}
	stop()
	<-done
	w2, err := New(t.Context(), m, log)
	var broken *extents.Refusal
	if !errors.As(err, &broken) {
		t.Errorf("a file with a hole: %v", err)
	}
	if w2 != nil {
		w2.Close()
	}
}
