//go:build vmtest

package gate

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/vmtest"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// inForce loads the gate and lets the test's own process pass. Other programs are others.
func inForce(t *testing.T) *Gate {
	t.Helper()
	vmtest.RequireGuest(t)
	if err := Load(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Clear(); err != nil {
			t.Error(err)
		}
	})
	if err := Enter(); err != nil {
		t.Fatal(err)
	}
	g, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func idOf(t *testing.T, path string) guard.FileID {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	device := dmtable.DeviceOf(st.Dev)
	return guard.FileID{Major: device.Major, Minor: device.Minor, Inode: st.Ino}
}

func deviceOf(t *testing.T, path string) dmtable.Device {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return dmtable.DeviceOf(st.Rdev)
}

// attack is a command of somebody else's, and whether it gets through.
type attack struct {
	command string
	passes  bool
}

func (a attack) run(t *testing.T) {
	t.Helper()
	r := vmtest.Run(t, "sh", "-c", a.command)
	if (r.Code == 0) != a.passes {
		t.Errorf("%s: exit %d, should pass: %v\n%s%s", a.command, r.Code, a.passes, r.Stdout, r.Stderr)
	}
}

func TestQemuGateRefusesFiles(t *testing.T) {
	g := inForce(t)
	for i, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			disk := vmtest.Disk(t, i)
			vmtest.Mkfs(t, fstype, disk)
			dir := vmtest.Mount(t, disk)
			image, other := filepath.Join(dir, "image"), filepath.Join(dir, "other")
			vmtest.RandomFile(t, image, 1<<20, 1)
			vmtest.RandomFile(t, other, 1<<20, 2)
			older, err := os.OpenFile(image, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer older.Close()
			vmtest.Must(t, "chattr", "+i", image)
			vmtest.Must(t, "chattr", "+i", other)
			entry := Entry{Mapping: UUID{1, 2, byte(len(fstype))}, Image: idOf(t, image)}
			if err := g.Put(entry); err != nil {
				t.Fatal(err)
			}
			for _, a := range []attack{
				{"cat " + image, false}, {"echo x >>" + image, false}, {"chattr -i " + image, false}, {"lsattr " + image, false},
				{"cp --reflink=auto " + image + " " + dir + "/copy", false}, {"filefrag " + image, false},
				{"rm -f " + image, false}, {"mv " + image + " " + dir + "/moved", false}, {"mv -f " + dir + "/copy " + image, false},
				{"truncate -s 0 " + image, false}, {"chmod 0 " + image, false}, {"touch " + image, false},
				{"setfattr -n trusted.x -v 1 " + image, false}, {"setfattr -x trusted.x " + image, false},
				{"swapon " + image, false}, {"losetup -f " + image, false},
				{"cat " + other, true}, {"stat " + image, true}, {"chattr -i " + other, true}, {"mv " + other + " " + image, false},
				{"rm " + other, true},
			} {
				a.run(t)
			}
			t.Run("older descriptor", func(t *testing.T) {
				// Handed down to another program, which nobody lets pass.
				cmd := vmtest.Run(t, "sh", "-c", fmt.Sprintf("exec 3<>/proc/%d/fd/%d", os.Getpid(), older.Fd()))
				if cmd.Code == 0 {
					t.Error("opened again by /proc")
				}
				if err := Leave(); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := Enter(); err != nil {
						t.Error(err)
					}
				}()
				if _, err := unix.IoctlGetInt(int(older.Fd()), unix.FS_IOC_GETFLAGS); err != unix.EPERM {
					t.Errorf("ioctl of an older descriptor: %v", err)
				}
				if _, err := os.ReadFile(image); err == nil {
					t.Error("read, after the right was given back")
				}
			})
			if _, err := os.ReadFile(image); err != nil {
				t.Error(err)
			}
			denials, err := g.Recent()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(denials, func(d Denial) bool {
				return d.Program == "cat" && d.What == OpenFile && d.Mapping == entry.Mapping && d.UID == 0 && d.PID > 1
			}) {
				t.Errorf("cat's denial is not told: %+v", denials)
			}
			if err := g.Take(entry.Mapping); err != nil {
				t.Fatal(err)
			}
			vmtest.Must(t, "sh", "-c", "cat "+image+" >/dev/null && chattr -i "+image)
			// While it is being pinned it need have no pin.
			entry.Pinning = true
			if err := g.Put(entry); err != nil {
				t.Fatal(err)
			}
			attack{"cat " + image, false}.run(t)
			attack{"rm " + image, false}.run(t)
			entry.Pinning = false
			if err := g.Put(entry); err != nil {
				t.Fatal(err)
			}
			attack{"cat " + image, true}.run(t)
			if err := g.Take(entry.Mapping); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestQemuGateRefusesDeviceMapper(t *testing.T) {
	g := inForce(t)
	disk := vmtest.Disk(t, 0)
	number := deviceOf(t, disk).String()
	// A host of two rows, of which the second carries the image, and the mapping on it.
	table := fmt.Sprintf("0 2048 linear %s 2048\n2048 2048 linear %s 8192\n", number, number)
	host := vmtest.DmsetupCreate(t, "host", table)
	own := vmtest.DmsetupCreate(t, "own", "0 64 linear "+number+" 8200\n")
	base := vmtest.DmsetupCreate(t, "base", "0 100 linear "+number+" 0\n100 100 linear "+number+" 300\n")
	vmtest.DmsetupCreate(t, "other", "0 64 linear "+number+" 100\n")
	rows, err := dmtable.ParseText(table)
	if err != nil {
		t.Fatal(err)
	}
	uuid := UUID{7}
	entry := Entry{Mapping: uuid, Image: guard.FileID{Major: 8, Inode: 12}, Devices: []Device{
		{Number: deviceOf(t, own), Kind: Own, Name: "own"},
		{Number: deviceOf(t, host), Kind: Below, Name: "host", Rows: rows[1:]},
		{Number: deviceOf(t, base), Kind: Below, Name: "base", End: 150},
	}}
	if err := g.Put(entry); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Take(uuid); err != nil {
			t.Error(err)
		}
	})
	load := func(name, table string) string { return "echo '" + table + "' | dmsetup load " + name }
	row1, row2 := "0 2048 linear "+number+" 2048", "2048 2048 linear "+number+" 8192"
	for _, a := range []attack{
		{load("own", "0 64 error"), false}, {"dmsetup remove own", false}, {"dmsetup rename own owner", false},
		{fmt.Sprintf("dmsetup remove -j %d -m %d", deviceOf(t, own).Major, deviceOf(t, own).Minor), false},
		{"dmsetup remove_all; test -e /dev/mapper/other", true},
		{"dmsetup suspend own && dmsetup resume own", true}, {"dmsetup table own", true}, {"dmsetup message own 0 x", false},
		{"dmsetup remove host", false}, {load("host", row1+"\n"+row2), true}, {"dmsetup resume host", true},
		{load("host", "0 2048 linear "+number+" 0\n"+row2), true}, {"dmsetup clear host", true},
		{load("host", row1+"\n2048 4096 linear "+number+" 8192"), true}, {"dmsetup clear host", true}, // longer
		{load("host", row1+"\n"+row2+"\n4096 4096 linear "+number+" 20480"), true}, {"dmsetup clear host", true},
		{load("host", row1+"\n2048 1024 linear "+number+" 8192"), false}, // shorter
		{load("host", row1), false}, {load("host", row1+"\n2048 2048 linear "+number+" 8193"), false},
		{load("host", row1+"\n2048 2048 error"), false}, {load("host", "0 4096 linear "+number+" 6144"), false},
		{load("host", row1+"\n2048 2048 striped 1 8 "+number+" 8192"), false},
		// What the mapping's own rows name may show the same from elsewhere, and must not be cut.
		{load("base", "0 200 linear "+number+" 5000"), true}, {load("base", "0 150 linear "+number+" 0\n150 50 error"), true},
		{load("base", "0 149 linear "+number+" 0"), false}, {load("base", "0 100 linear "+number+" 0\n100 100 error"), false},
		{load("base", "0 200 zero"), false}, {"dmsetup wipe_table base", false}, {"dmsetup remove base", false}, {"dmsetup clear base", true},
		{load("other", "0 64 linear "+number+" 200") + " && dmsetup resume other", true},
		{"dmsetup rename other another && dmsetup remove another", true},
	} {
		a.run(t)
	}
	t.Run("allowed", func(t *testing.T) {
		if err := Leave(); err != nil {
			t.Fatal(err)
		}
		if err := Allow(deviceOf(t, host)); err != nil {
			t.Fatal(err)
		}
		for _, a := range []attack{{load("host", row1), true}, {"dmsetup clear host", true}, {load("own", "0 64 error"), false}} {
			a.run(t)
		}
		if err := Disallow(); err != nil {
			t.Fatal(err)
		}
		attack{load("host", row1), false}.run(t)
		if err := Enter(); err != nil {
			t.Fatal(err)
		}
	})
	// A host that no table was cleared of: a renaming after that makes Linux free a digest twice (dm-ima).
	late := deviceOf(t, vmtest.DmsetupCreate(t, "late", table))
	entry.Devices = append(entry.Devices, Device{Number: late, Kind: Below, Name: "late", Rows: rows[1:]})
	if err := g.Put(entry); err != nil {
		t.Fatal(err)
	}
	for _, a := range []attack{
		{"dmsetup rename late later", true}, {load("later", row1), false}, {"dmsetup remove later", false},
	} {
		a.run(t)
	}
	// Once the names of now are told, the old one is anybody's.
	vmtest.DmsetupCreate(t, "next", "0 64 linear "+number+" 400\n")
	names := map[dmtable.Device]string{deviceOf(t, host): "host", late: "later", deviceOf(t, own): "own", deviceOf(t, base): "base"}
	known := []UUID{entry.Mapping, {3}}
	if gone, left, err := g.Settle(known, func() (map[dmtable.Device]string, error) { return names, nil }); err != nil || gone != 0 || left != 1 {
		t.Fatalf("%d gone, %d left, %v", gone, left, err)
	}
	for _, a := range []attack{
		{"dmsetup rename next late", true}, {"echo '0 64 error' | dmsetup load late", true}, {"dmsetup remove late", true},
		{load("later", row1), false}, {"dmsetup rename later late", true}, {load("late", row1), false},
	} {
		a.run(t)
	}
	list, err := g.Mappings()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || !list[0].Image.SameFile(entry.Image) || !slices.ContainsFunc(list[0].Devices, func(d Device) bool { return d.Number == deviceOf(t, own) && d.Kind == Own }) || !slices.ContainsFunc(list[0].Devices, func(d Device) bool { return d.Name == "later" && d.Kind == Below }) { // as it was told last
		t.Errorf("guarded: %+v", list)
	}
	denials, err := g.Recent()
	if err != nil {
		t.Fatal(err)
	}
	var told strings.Builder
	for _, d := range denials {
		fmt.Fprintln(&told, d)
	}
	t.Log(told.String())
	if err := g.Take(uuid); err != nil { // before the devices made last are removed
		t.Fatal(err)
	}
}

// TestQemuGateReplaced puts the programs of other builds in the place of those in force, again and
// again, while somebody tries to get through.
func TestQemuGateReplaced(t *testing.T) {
	g := inForce(t)
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	image := filepath.Join(vmtest.Mount(t, disk), "image")
	vmtest.RandomFile(t, image, 4096, 1)
	vmtest.Must(t, "chattr", "+i", image)
	if err := g.Put(Entry{Mapping: UUID{1}, Image: idOf(t, image)}); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command("sh", "-c", fmt.Sprintf("while :; do cat %s >/dev/null 2>&1 && echo through >>%s; echo try >>%s; done", image, log, log))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	mine := edition
	for i := range 5 {
		edition = fmt.Sprintf("test%d", i)
		if err := Load(); err != nil {
			t.Fatal(err)
		}
		links, err := sets("links-")
		if err != nil || len(links) != 1 || links[0] != linksFolder() {
			t.Errorf("in force: %q, %v", links, err)
		}
		if _, err := os.ReadFile(image); err != nil {
			t.Errorf("the right that was given before does not count any more: %v", err)
		}
	}
	edition = mine
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	got, err := os.ReadFile(log)
	if err != nil || !strings.Contains(string(got), "try\ntry\n") || strings.Contains(string(got), "through") {
		t.Errorf("somebody got through, or did not try: %v\n%s", err, got)
	}
	// One of another format can be read by nobody.
	format++
	if _, err := Open(); !errors.Is(err, ErrOtherFormat) {
		t.Errorf("another format: %v", err)
	}
	if err := Load(); !errors.Is(err, ErrOtherFormat) {
		t.Errorf("another format: %v", err)
	}
	format--
	if err := g.Take(UUID{1}); err != nil {
		t.Fatal(err)
	}
}
