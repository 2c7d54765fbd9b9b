//go:build vmtest

package gate

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/vmtest"
)

// TestQemuGateCost prints what the gate adds to calls that it has nothing to do with. In virtual
// time (make bench-gate) a nanosecond is an instruction; otherwise the figures mean nothing, and
// the test only shows that the calls go through.
func TestQemuGateCost(t *testing.T) {
	vmtest.RequireGuest(t)
	disk := vmtest.Disk(t, 0)
	host := vmtest.DmsetupCreate(t, "host", "0 64 linear "+deviceOf(t, disk).String()+" 0\n")
	other := vmtest.Disk(t, 1)
	vmtest.Mkfs(t, "ext4", other)
	path := filepath.Join(vmtest.Mount(t, other), "file")
	vmtest.RandomFile(t, path, 4096, 1)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	conn, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	entry := Entry{Mapping: UUID{9}, Image: guard.FileID{Major: 1, Inode: 1}, Devices: []Device{{Number: deviceOf(t, host), Kind: Below, Name: "host",
		Rows: dmtable.Table{{Start: 0, Length: 64, Target: dmtable.Linear, Args: deviceOf(t, disk).String() + " 0"}}}}}
	buf := make([]byte, 512)
	calls := []struct {
		name string
		call func() error
	}{
		{"open and close", func() error {
			fd, err := unix.Open(path, unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}},
		{"ioctl of a file", func() error {
			_, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
			if err == unix.ENOTTY || err == unix.EOPNOTSUPP {
				err = nil
			}
			return err
		}},
		{"read", func() error { _, err := unix.Pread(int(f.Fd()), buf, 0); return err }},
		{"write", func() error { _, err := unix.Pwrite(int(f.Fd()), buf, 0); return err }},
		{"device-mapper: status of a device", func() error { _, err := conn.Info(dm.ByName("host")); return err }},
		{"device-mapper: the same table loaded", func() error { _, err := conn.Load(dm.ByName("host"), entry.Devices[0].Rows, false); return err }},
	}
	measure := func(call func() error) time.Duration {
		const rounds, each = 15, 300
		var took []time.Duration
		for range rounds {
			start := time.Now()
			for range each {
				if err := call(); err != nil {
					t.Fatal(err)
				}
			}
			took = append(took, time.Since(start)/each)
		}
		return slices.Min(took)
	}
	without := map[string]time.Duration{}
	for range 2 { // what is done for the first time takes longer
		for _, c := range calls {
			without[c.name] = measure(c.call)
		}
	}
	g := inForce(t)
	if err := Leave(); err != nil { // a process like any other
		t.Fatal(err)
	}
	if err := g.Put(entry); err != nil {
		t.Fatal(err)
	}
	with := map[string]time.Duration{}
	for _, c := range calls {
		with[c.name] = measure(c.call)
	}
	if err := g.Take(entry.Mapping); err != nil {
		t.Fatal(err)
	}
	for _, c := range calls {
		before, after := without[c.name], with[c.name]
		fmt.Printf("GATECOST|%s|%s|%d|%d|%.2f %%\n", vmtest.Kernel(t), c.name, before.Nanoseconds(), after.Nanoseconds(),
			100*(float64(after)/float64(before)-1))
	}
}
