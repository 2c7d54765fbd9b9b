//go:build vmtest

package dm_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/vmtest"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// connect opens the guest's control device.
func connect(t *testing.T) *dm.Conn {
	t.Helper()
	vmtest.RequireGuest(t)
	c, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// numbers returns the major:minor of a device node.
func numbers(t *testing.T, path string) dmtable.Device {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return dmtable.DeviceOf(st.Rdev)
}

// live makes a device with a live table. It is removed when the test ends.
func live(t *testing.T, c *dm.Conn, name, uuid string, table dmtable.Table, readOnly bool) (dm.Ref, dm.Info) {
	t.Helper()
	ref := dm.ByName(name)
	if _, err := c.Create(name, uuid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vmtest.DmsetupRemove(t, name) })
	if _, err := c.Load(ref, table, readOnly); err != nil {
		t.Fatal(err)
	}
	info, err := c.Resume(ref, dm.ResumeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ref, info
}

func node(info dm.Info) string { return fmt.Sprintf("/dev/dm-%d", info.Device.Minor) }

func parse(t *testing.T, text string) dmtable.Table {
	t.Helper()
	table, err := dmtable.ParseText(text)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// TestTablesAreDmsetups compares our text of tables with what dmsetup prints.
func TestTablesAreDmsetups(t *testing.T) {
	c := connect(t)
	a, b := numbers(t, vmtest.Disk(t, 0)), numbers(t, vmtest.Disk(t, 1))
	for name, text := range map[string]string{
		"linear":  fmt.Sprintf("0 8 linear %v 2048\n8 16 linear %v 0\n24 8 linear %[1]v 0\n", a, b),
		"striped": fmt.Sprintf("0 96 striped 2 24 %v 2048 %v 4096\n", a, b),
		"mixed":   fmt.Sprintf("0 8 error \n8 16 zero \n24 96 striped 1 24 %v 0\n120 8 linear %v 8\n", a, b),
	} {
		t.Run(name, func(t *testing.T) {
			table := parse(t, text)
			ref, info := live(t, c, name, "DMLOOP-"+name, table, false)
			printed := vmtest.Must(t, "dmsetup", "table", name)
			if table.String() != text || printed != text {
				t.Errorf("ours:\n%swanted:\n%sdmsetup's:\n%s", table, text, printed)
			}
			got, err := c.Table(ref)
			if err != nil || !got.Equal(table) {
				t.Errorf("%s, %v", table.Diff(got), err)
			}
			concise, err := dmtable.FormatConcise(dmtable.ConciseDevice{
				Name: name, UUID: "DMLOOP-" + name, Minor: info.Device.Minor, HasMinor: true, Table: table})
			if err != nil {
				t.Fatal(err)
			}
			printed = vmtest.Must(t, "dmsetup", "table", "--concise", name)
			if strings.TrimSuffix(printed, "\n") != concise {
				t.Errorf("ours:\n%s\ndmsetup's:\n%s", concise, printed)
			}
			status, err := c.Status(ref)
			if want := vmtest.Must(t, "dmsetup", "status", name); err != nil || status.String() != want {
				t.Errorf("status, ours:\n%sdmsetup's:\n%s%v", status, want, err)
			}
			var deps []string
			list, err := c.Deps(ref)
			for _, d := range list {
				deps = append(deps, fmt.Sprintf("(%d, %d)", d.Major, d.Minor))
			}
			want := vmtest.Must(t, "dmsetup", "deps", "-o", "devno", name)
			for _, d := range deps {
				if !strings.Contains(want, d) {
					t.Errorf("dependency %s is not in %q", d, want)
				}
			}
			if !strings.HasPrefix(want, fmt.Sprintf("%d dependencies", len(deps))) || err != nil {
				t.Errorf("%d dependencies, dmsetup says %q, %v", len(deps), want, err)
			}
		})
	}
}

// TestConciseIsUnderstood gives our concise text to dmsetup and reads the devices
// back.
func TestConciseIsUnderstood(t *testing.T) {
	c := connect(t)
	a := numbers(t, vmtest.Disk(t, 0))
	spaced, err := dmtable.Mangle("two words, and a comma")
	if err != nil {
		t.Fatal(err)
	}
	devices := []dmtable.ConciseDevice{
		{Name: "first", UUID: "DMLOOP-first", Table: parse(t, fmt.Sprintf("0 8 linear %v 2048\n8 8 linear %v 0", a, a))},
		{Name: spaced, ReadOnly: true, Minor: 77, HasMinor: true, Table: parse(t, "0 8 zero\n8 8 error")},
	}
	text, err := dmtable.FormatConcise(devices...)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		t.Cleanup(func() { vmtest.DmsetupRemove(t, d.Name) })
	}
	vmtest.Must(t, "dmsetup", "create", "--concise", text)
	for _, d := range devices {
		info, table, err := c.State(dm.ByName(d.Name))
		if err != nil || !table.Equal(d.Table) || info.UUID != d.UUID || info.ReadOnly != d.ReadOnly || d.HasMinor && info.Device.Minor != d.Minor {
			t.Errorf("%+v became %+v, %v, %v", d, info, table, err)
		}
	}
}

// TestLongNames uses names and uuids of the greatest length.
func TestLongNames(t *testing.T) {
	c := connect(t)
	first, second := strings.Repeat("n", 127), strings.Repeat("m", 123)+`\x20`
	uuid := strings.Repeat("u", 128)
	ref, info := live(t, c, first, uuid, parse(t, "0 8 zero"), false)
	if info.Name != first || info.UUID != uuid {
		t.Errorf("Resume: %+v", info)
	}
	if !strings.Contains(vmtest.Must(t, "dmsetup", "ls"), first) {
		t.Error("dmsetup does not list the device")
	}
	t.Cleanup(func() { vmtest.DmsetupRemove(t, second) })
	if _, err := c.Rename(ref, second, 0); err != nil {
		t.Fatal(err)
	}
	got, err := c.Info(dm.ByUUID(uuid))
	if err != nil || got.Name != second || got.Device != info.Device {
		t.Errorf("after Rename: %+v, %v", got, err)
	}
	if _, err := c.Info(ref); !errors.Is(err, dm.ErrNotFound) {
		t.Errorf("the old name: %v", err)
	}
	list, err := c.List()
	if err != nil || len(list) != 1 || list[0].Name != second || list[0].UUID != uuid || list[0].Device != info.Device {
		t.Errorf("List: %+v, %v", list, err)
	}
}

// TestListMany lists more devices than fit into the first buffer.
func TestListMany(t *testing.T) {
	c := connect(t)
	want := map[string]string{}
	for i := range 150 {
		name, uuid := fmt.Sprintf("%s-%d", strings.Repeat("n", i%100), i), ""
		if i%2 == 0 {
			uuid = fmt.Sprintf("%s-%d", strings.Repeat("u", i%100), i)
		}
		if _, err := c.Create(name, uuid); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := c.Remove(dm.ByName(name), dm.RemoveOptions{}); err != nil {
				t.Error(err)
			}
		})
		want[name] = uuid
	}
	list, err := c.List()
	if err != nil || len(list) != len(want) {
		t.Fatalf("%d devices, %v", len(list), err)
	}
	for _, e := range list {
		uuid, ok := want[e.Name]
		info, err := c.Info(dm.ByName(e.Name))
		if !ok || uuid != e.UUID || err != nil || info.Device != e.Device || info.UUID != uuid {
			t.Errorf("%+v, but %+v, %v", e, info, err)
		}
	}
}

// TestRemove removes devices in use, at once and deferred.
func TestRemove(t *testing.T) {
	c := connect(t)
	ref, info := live(t, c, "used", "", parse(t, "0 8 zero"), false)
	f, err := os.Open(node(info))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := c.Info(ref); err != nil || got.OpenCount != 1 {
		t.Errorf("open count: %+v, %v", got, err)
	}
	if _, err := c.Remove(ref, dm.RemoveOptions{}); !errors.Is(err, dm.ErrBusy) {
		t.Errorf("removal of an open device: %v", err)
	}
	got, err := c.Remove(ref, dm.RemoveOptions{Deferred: true})
	if err != nil || !got.DeferredRemove || got.UeventGenerated {
		t.Errorf("deferred removal: %+v, %v", got, err)
	}
	if got, err = c.Info(ref); err != nil || !got.DeferredRemove {
		t.Errorf("while it waits: %+v, %v", got, err)
	}
	f.Close()
	for range 100 {
		if _, err = c.Info(ref); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !errors.Is(err, dm.ErrNotFound) {
		t.Errorf("after the last close: %v", err)
	}
	idle, _ := live(t, c, "idle", "", parse(t, "0 8 zero"), false)
	if got, err := c.Remove(idle, dm.RemoveOptions{Deferred: true}); err != nil || got.DeferredRemove || !got.UeventGenerated {
		t.Errorf("deferred removal of an idle device: %+v, %v", got, err)
	}
}

// TestSuspend checks that I/O waits while the device is suspended, that a table of
// errors replaces a live one in one step, and what Resume reports.
func TestSuspend(t *testing.T) {
	c := connect(t)
	a := numbers(t, vmtest.Disk(t, 0))
	ref, info := live(t, c, "halt", "", parse(t, fmt.Sprintf("0 2048 linear %v 4096", a)), false)
	if !info.UeventGenerated || info.Suspended || !info.ActiveTable {
		t.Errorf("first Resume: %+v", info)
	}
	if info, err := c.Resume(ref, dm.ResumeOptions{}); err != nil || info.UeventGenerated {
		t.Errorf("Resume of a running device: %+v, %v", info, err)
	}
	for _, o := range []dm.SuspendOptions{{}, {NoFlush: true}, {SkipLockFS: true}, {NoFlush: true, SkipLockFS: true}} {
		if info, err := c.Suspend(ref, o); err != nil || !info.Suspended {
			t.Fatalf("%+v: %+v, %v", o, info, err)
		}
		done := make(chan error, 1)
		go func() { done <- readDirect(node(info)) }()
		select {
		case err := <-done:
			t.Errorf("%+v: a read of the suspended device ended: %v", o, err)
		case <-time.After(200 * time.Millisecond):
		}
		if info, err := c.Resume(ref, dm.ResumeOptions{}); err != nil || info.Suspended || !info.UeventGenerated {
			t.Fatalf("%+v: Resume: %+v, %v", o, info, err)
		}
		if err := <-done; err != nil {
			t.Errorf("%+v: the read failed: %v", o, err)
		}
	}
	if _, err := c.ReplaceNow(ref, dmtable.ErrorTable(2048), 0); err != nil {
		t.Fatal(err)
	}
	if err := readDirect(node(info)); !errors.Is(err, unix.EIO) {
		t.Errorf("read from the error table: %v", err)
	}
	if deps, err := c.Deps(ref); err != nil || len(deps) != 0 {
		t.Errorf("the error table still names %v, %v", deps, err)
	}
}

// readDirect reads a block past the page cache.
func readDirect(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(buf) }()
	_, err = unix.Pread(fd, buf, 0)
	return err
}

// TestSlots checks the active and the inactive slot.
func TestSlots(t *testing.T) {
	c := connect(t)
	ref, _ := live(t, c, "slots", "", parse(t, "0 8 zero"), false)
	next := parse(t, "0 16 error")
	if info, err := c.Load(ref, next, false); err != nil || !info.InactiveTable || !info.ActiveTable {
		t.Errorf("Load: %+v, %v", info, err)
	}
	if got, err := c.InactiveTable(ref); err != nil || !got.Equal(next) {
		t.Errorf("InactiveTable: %v, %v", got, err)
	}
	if info, got, err := c.State(ref); err != nil || got.String() != "0 8 zero \n" || !info.InactiveTable {
		t.Errorf("State: %+v, %v, %v", info, got, err)
	}
	if info, err := c.Clear(ref); err != nil || info.InactiveTable {
		t.Errorf("Clear: %+v, %v", info, err)
	}
	if got, err := c.InactiveTable(ref); err != nil || len(got) != 0 {
		t.Errorf("InactiveTable after Clear: %v, %v", got, err)
	}
	created, err := c.Create("bare", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "bare") })
	info, table, err := c.State(dm.ByDevice(created.Device))
	if err != nil || info.ActiveTable || len(table) != 0 {
		t.Errorf("without a table: %+v, %v, %v", info, table, err)
	}
}

func TestReadOnly(t *testing.T) {
	c := connect(t)
	a := numbers(t, vmtest.Disk(t, 0))
	_, info := live(t, c, "ro", "", parse(t, fmt.Sprintf("0 2048 linear %v 4096", a)), true)
	if !info.ReadOnly {
		t.Errorf("%+v", info)
	}
	if f, err := os.OpenFile(node(info), os.O_RDWR, 0); err == nil {
		if _, err := f.Write(make([]byte, 4096)); err == nil {
			if err := f.Sync(); err == nil {
				t.Error("a read-only device was written")
			}
		}
		f.Close()
	}
}

// TestKernelErrors provokes what the errors table says.
func TestKernelErrors(t *testing.T) {
	c := connect(t)
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	vmtest.Mount(t, disk)
	a := numbers(t, disk)
	ref, _ := live(t, c, "here", "DMLOOP-here", parse(t, "0 8 zero"), false)
	tests := []struct {
		name string
		call func() error
		is   error
		no   unix.Errno
	}{
		{"name taken", func() error { _, err := c.Create("here", ""); return err }, dm.ErrExists, unix.EBUSY},
		{"uuid taken", func() error { _, err := c.Create("new", "DMLOOP-here"); return err }, dm.ErrExists, unix.EBUSY},
		{"no such name", func() error { _, err := c.Info(dm.ByName("gone")); return err }, dm.ErrNotFound, unix.ENXIO},
		{"no such uuid", func() error { _, err := c.Table(dm.ByUUID("gone")); return err }, dm.ErrNotFound, unix.ENXIO},
		{"no such device", func() error {
			_, err := c.Suspend(dm.ByDevice(dmtable.Device{Major: 254, Minor: 4711}), dm.SuspendOptions{})
			return err
		}, dm.ErrNotFound, unix.ENXIO},
		{"not a device-mapper device", func() error { _, err := c.Info(dm.ByDevice(a)); return err }, dm.ErrNotFound, unix.ENXIO},
		{"mounted", func() error { _, err := c.Load(ref, parse(t, fmt.Sprintf("0 8 linear %v 0", a)), false); return err }, dm.ErrBusy, unix.EBUSY},
		{"mounted, to read", func() error { _, err := c.Load(ref, parse(t, fmt.Sprintf("0 8 linear %v 0", a)), true); return err }, dm.ErrBusy, unix.EBUSY},
		{"unknown target", func() error { _, err := c.Load(ref, parse(t, "0 8 nonsense"), false); return err }, nil, unix.EINVAL},
	}
	for _, test := range tests {
		err := test.call()
		if test.is != nil && !errors.Is(err, test.is) || !errors.Is(err, test.no) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if info, err := c.Info(ref); err != nil || info.InactiveTable {
		t.Errorf("a table was left: %+v, %v", info, err)
	}
}

// TestOpenMakesTheNode removes the control device's node and opens it.
func TestOpenMakesTheNode(t *testing.T) {
	vmtest.RequireGuest(t)
	const control = "/dev/mapper/control"
	before := numbers(t, control)
	if err := os.Rename(control, filepath.Join("/dev", "control.moved")); err != nil {
		t.Fatal(err)
	}
	defer os.Remove("/dev/control.moved")
	c := connect(t)
	if v, err := c.Version(); err != nil || v[0] != 4 {
		t.Errorf("%v, %v", v, err)
	}
	if after := numbers(t, control); after != before {
		t.Errorf("made %v, was %v", after, before)
	}
	if info, err := os.Stat(control); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
