package boot

import (
	"fmt"
	"strings"

	"dmloop/dmtable"
)

// The kernel's limits of dm-mod.create= (drivers/md/dm-init.c): DM_MAX_TARGETS rows
// for each device, and DM_MAX_STR_SIZE bytes with the end mark.
const (
	cmdlineRows  = 256
	cmdlineBytes = 4096
)

// CmdlineOptions say what `dmloop boot cmdline` writes.
type CmdlineOptions struct {
	Device   string // names the device below the shim to the kernel; empty: by the manifest's PARTUUID, otherwise by its number
	ReadOnly bool   // the image is not to be written
	Verity   *Verity
}

// Verity is a dm-verity device on top of the image, which holds data and hash tree.
type Verity struct {
	Name       string
	HashOffset int64 // of the superblock in the image, in bytes
	RootHash   string
	Superblock VeritySuperblock
}

// LimitError says that something does not fit on a kernel command line.
type LimitError struct{ What string }

func (e *LimitError) Error() string { return e.What }

// Concise returns the devices in the format of dmsetup create --concise and
// dm-mod.create=, shim first, and the number of the last device, which is the one to
// mount. Minor numbers are given, since the kernel knows a device by /dev/dm-N only
// while it starts.
func Concise(m Manifest, o CmdlineOptions) (text string, last int, err error) {
	device := o.Device
	if device == "" {
		device = m.Host.Base.String()
		if m.Host.PartUUID != "" {
			device = "PARTUUID=" + m.Host.PartUUID
		}
	}
	if strings.ContainsAny(device, " \t,;\\\"#") {
		return "", 0, fmt.Errorf("the device %q cannot stand in dm-mod.create=", device)
	}
	shim := dmtable.ConciseDevice{Name: m.Host.Shim, UUID: m.Record.Base.UUID, HasMinor: true,
		Table: dmtable.Table{{Length: m.Host.Sectors, Target: dmtable.Linear, Args: device + " 0"}}}
	image := dmtable.ConciseDevice{Name: m.Record.Name, UUID: m.Record.UUID, Minor: 1, HasMinor: true, ReadOnly: o.ReadOnly || m.Record.ReadOnly}
	segments, err := m.Record.Table.Segments()
	if err != nil {
		return "", 0, err
	}
	start := dmtable.Sectors(0)
	for _, s := range segments {
		image.Table = append(image.Table, dmtable.Row{Start: start, Length: s.Length, Target: dmtable.Linear, Args: fmt.Sprintf("%s %d", device, s.Start)})
		start += s.Length
	}
	devices := []dmtable.ConciseDevice{shim, image}
	if o.Verity != nil {
		row, err := o.Verity.row("/dev/dm-1", image.Table.Size())
		if err != nil {
			return "", 0, err
		}
		devices = append(devices, dmtable.ConciseDevice{Name: o.Verity.Name, Minor: 2, HasMinor: true, ReadOnly: true, Table: dmtable.Table{row}})
	}
	text, err = format(devices)
	return text, len(devices) - 1, err
}

// format writes the devices and refuses what the kernel's reader would not take.
func format(devices []dmtable.ConciseDevice) (string, error) {
	for _, d := range devices {
		if strings.Contains(d.Name+d.UUID, `\`) {
			return "", fmt.Errorf("the name %s has a character that the kernel cannot read in dm-mod.create=: map the image under a plain name", d.Name)
		}
		if len(d.Table) > cmdlineRows {
			return "", &LimitError{fmt.Sprintf("the table has %d rows, and the kernel takes %d in dm-mod.create=", len(d.Table), cmdlineRows)}
		}
	}
	text, err := dmtable.FormatConcise(devices...)
	if err != nil {
		return "", err
	}
	if len(text) >= cmdlineBytes {
		return "", &LimitError{fmt.Sprintf("the table makes %d bytes, and the kernel takes less than %d in dm-mod.create=", len(text), cmdlineBytes)}
	}
	return text, nil
}

// Parameter quotes concise devices as one parameter of the kernel command line. The
// kernel knows no escapes inside of quotes; format lets no quote through.
func Parameter(concise string) string { return `dm-mod.create="` + concise + `"` }
