package blockdev_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/dm/dmtest"
)

func TestReadStack(t *testing.T) {
	sysfs := snapshot(t)
	_, c := kernel(t)
	part1 := blockdev.Base{Device: vda1, Name: "vda1", Size: 409600, LogicalBlock: 512}
	part2 := blockdev.Base{Device: vda2, Name: "vda2", Size: 204800, LogicalBlock: 512}
	disk := blockdev.Base{Device: vdb, Name: "vdb", Size: 4194304, LogicalBlock: 512}
	tests := []struct {
		name string
		host dmtable.Device
		want []blockdev.Base
	}{
		{"shim", shim, []blockdev.Base{part1}},
		{"seg", seg, []blockdev.Base{part2, disk}},
		{"stripe", stripe, []blockdev.Base{disk, part2}},
		{"top", top, []blockdev.Base{{Device: shim, Name: "dm-0", Size: 409600, LogicalBlock: 512}}},
		{"fourk", fourk, []blockdev.Base{{Device: loop1, Name: "loop1", Size: 32768, LogicalBlock: 4096}}},
		{"ro", ro, []blockdev.Base{disk}},
		{"big", big, []blockdev.Base{{Device: dmtable.Device{Major: 7}, Name: "loop0", Size: 0, LogicalBlock: 512}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, problem, err := blockdev.ReadStack(sysfs, c, test.host)
			if err != nil || problem != nil {
				t.Fatal(problem, err)
			}
			table, err := c.Table(dm.ByName(test.name))
			if err != nil {
				t.Fatal(err)
			}
			if s.Host != test.host || s.HostName != test.name || !s.HostTable.Equal(table) || !reflect.DeepEqual(s.Base, test.want) {
				t.Errorf("got %+v", s)
			}
		})
	}
}

// TestShrunkBase resolves through a table that reaches beyond its base device,
// which the kernel allows when the device was empty at the time.
func TestShrunkBase(t *testing.T) {
	_, c := kernel(t)
	s, problem, err := blockdev.ReadStack(snapshot(t), c, big)
	if err != nil || problem != nil {
		t.Fatal(problem, err)
	}
	if _, problems := s.Resolve(layout(0, 8), 0); len(problems) != 1 || problems[0].Rule != extents.OutOfRange {
		t.Errorf("%v", problems)
	}
}

func TestReadStackRefuses(t *testing.T) {
	sysfs := snapshot(t)
	tests := []struct {
		name  string
		host  dmtable.Device
		spoil func(t *testing.T, c *dm.Conn)
		rule  extents.Rule
		says  string // in the message
		to    extents.Remedy
	}{
		{"partition", vda1, nil, extents.MountedDirectly, "/dev/vda1", advice.MountThroughShim.Of("/dev/vda1")},
		{"disk", vdb, nil, extents.MountedDirectly, "/dev/vdb", advice.MountThroughShim.Of("/dev/vdb")},
		{"zero target", zero, nil, extents.UnresolvableStack, "/dev/mapper/zero has a zero target (sectors 0-8191)", advice.ShimOnTop.Of("/dev/mapper/zero")},
		{"suspended", shim, func(t *testing.T, c *dm.Conn) {
			if _, err := c.Suspend(dm.ByDevice(shim), dm.SuspendOptions{}); err != nil {
				t.Fatal(err)
			}
		}, extents.UnresolvableStack, "/dev/mapper/shim is suspended", advice.ResumeChanged.Of("shim")},
		{"second table", shim, func(t *testing.T, c *dm.Conn) {
			if _, err := c.Load(dm.ByDevice(shim), dmtable.ErrorTable(409600), false); err != nil {
				t.Fatal(err)
			}
		}, extents.UnresolvableStack, "second table", advice.ClearTable.Of("shim")},
		{"mixed targets", shim, reload("0 8 linear 254:1 0\n8 409592 snapshot-origin 254:1"), extents.UnresolvableStack, "snapshot-origin target (sectors 8-409599)", advice.ShimOnTop.Of("/dev/mapper/shim")},
		{"size", shim, reload("0 8 linear 254:1 0"), extents.UnresolvableStack, "409600 sectors and its table 8", advice.TryDeviceAgain},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, c := kernel(t)
			if test.spoil != nil {
				test.spoil(t, c)
			}
			s, problem, err := blockdev.ReadStack(sysfs, c, test.host)
			if err != nil || problem == nil || problem.Rule != test.rule {
				t.Fatalf("got %+v, %+v, %v", s, problem, err)
			}
			if !strings.Contains(problem.Message, test.says) || problem.Remedy != test.to {
				t.Errorf("%+v does not say %q, or something else than %v", problem, test.says, test.to)
			}
		})
	}
}

func reload(text string) func(t *testing.T, c *dm.Conn) {
	return func(t *testing.T, c *dm.Conn) {
		table, err := dmtable.ParseText(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Load(dm.ByDevice(shim), table, false); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Resume(dm.ByDevice(shim), dm.ResumeOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadStackErrors(t *testing.T) {
	t.Run("no source", func(t *testing.T) {
		sysfs := snapshot(t)
		if _, problem, err := blockdev.ReadStack(sysfs, nil, shim); !errors.Is(err, blockdev.ErrNoTables) || problem != nil {
			t.Errorf("%v, %v", problem, err)
		}
		if _, problem, err := blockdev.ReadStack(sysfs, nil, vda1); err != nil || problem == nil {
			t.Errorf("a partition: %v, %v", problem, err)
		}
	})
	t.Run("the kernel fails", func(t *testing.T) {
		k := dmtest.New()
		k.FailNth(1, unix.ENXIO)
		if _, problem, err := blockdev.ReadStack(snapshot(t), k.Conn(), shim); !errors.Is(err, dm.ErrNotFound) || problem != nil {
			t.Errorf("%v, %v", problem, err)
		}
	})
	const pci = "devices/pci0000:00/0000:00:05.0/virtio3/block/vda/"
	for name, spoil := range map[string]struct{ file, text string }{
		"no such device":      {"dev/block/254:1", ""},
		"bad size":            {pci + "vda1/size", "many\n"},
		"no size":             {pci + "vda1/size", ""},
		"no ro":               {pci + "vda1/ro", ""},
		"odd block size":      {pci + "queue/logical_block_size", "1000\n"},
		"no block size":       {pci + "queue/logical_block_size", ""},
		"small block size":    {pci + "queue/logical_block_size", "256\n"},
		"no name of the host": {"devices/virtual/block/dm-0/uevent", "MAJOR=253\n"},
	} {
		t.Run(name, func(t *testing.T) {
			sysfs := snapshot(t)
			_, c := kernel(t)
			path := filepath.Join(sysfs, spoil.file)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if spoil.text != "" {
				if err := os.WriteFile(path, []byte(spoil.text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if s, problem, err := blockdev.ReadStack(sysfs, c, shim); err == nil {
				t.Errorf("got %+v, %v", s, problem)
			}
		})
	}
}
