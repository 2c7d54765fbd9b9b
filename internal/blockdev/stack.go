package blockdev

import (
	"errors"
	"fmt"
	"slices"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
)

// TableSource reads live device-mapper devices; *dm.Conn is one.
type TableSource interface {
	// State returns a device's state and its active table from one request.
	State(ref dm.Ref) (dm.Info, dmtable.Table, error)
	// Deps returns the devices that the active table names.
	Deps(ref dm.Ref) ([]dmtable.Device, error)
}

// ErrNoTables means that the host device is a device-mapper device and its table
// cannot be read, because ReadStack was given no TableSource.
var ErrNoTables = errors.New("the host device's table can only be read through device-mapper")

// Stack is a host device with the base devices that its own table names, as they
// were when it was read.
type Stack struct {
	Host      dmtable.Device
	HostName  string // the host device's name in /dev/mapper, mangled
	HostTable dmtable.Table
	Base      []Base // each once, in the order in which HostTable first names them
}

// Base is a device one layer below the host device.
type Base struct {
	Device       dmtable.Device
	Name         string // the kernel's name, such as "vda1" or "dm-2"
	Size         dmtable.Sectors
	LogicalBlock extents.Bytes
	ReadOnly     bool // itself, or one that its writes go to
}

// LogicalBlock returns the largest logical block size of the base devices in
// bytes: what every piece of a table on this stack must be a multiple of.
func (s *Stack) LogicalBlock() extents.Bytes {
	block := extents.Bytes(dmtable.SectorSize)
	for i := range s.Base {
		block = max(block, s.Base[i].LogicalBlock)
	}
	return block
}

// ReadOnly reports whether a base device is read-only, and with it every table on
// this stack.
func (s *Stack) ReadOnly() bool {
	return slices.ContainsFunc(s.Base, func(b Base) bool { return b.ReadOnly })
}

// ReadStack reads the stack under the device that a file system is mounted from,
// exactly one layer deep. Sysfs is /sys except in tests. A stack on which nothing
// can be mapped is a Problem: mounted-directly when the host is not a device-mapper
// device, unresolvable-stack when its table has targets other than linear and
// striped, is changing, or is not understood. Src is not needed for a host that is
// no device-mapper device; where it is needed and nil, the error is ErrNoTables.
func ReadStack(sysfs string, src TableSource, host dmtable.Device) (Stack, *extents.Problem, error) {
	d, err := openFolder(sysfs, host)
	if err != nil {
		return Stack{}, nil, err
	}
	path, err := d.path()
	if err != nil {
		return Stack{}, nil, err
	}
	mapped, err := d.has("dm")
	if err != nil {
		return Stack{}, nil, err
	}
	if !mapped {
		return Stack{}, mountedDirectly(path), nil
	}
	if src == nil {
		return Stack{}, nil, fmt.Errorf("%s: %w", path, ErrNoTables)
	}
	info, table, err := src.State(dm.ByDevice(host))
	if err != nil {
		return Stack{}, nil, err
	}
	path = "/dev/mapper/" + info.Name // dm-3 says nothing to people
	if problem := judgeHost(path, info, table); problem != nil {
		return Stack{}, problem, nil
	}
	size, err := d.size()
	if err != nil {
		return Stack{}, nil, err
	}
	if size != table.Size() {
		return Stack{}, unresolvable(fmt.Sprintf("%s has %d sectors and its table %d", path, size, table.Size()),
			advice.TryDeviceAgain), nil
	}
	s := Stack{Host: host, HostName: info.Name, HostTable: table}
	for _, number := range namedDevices(table) {
		base, err := readBase(sysfs, src, number)
		if err != nil {
			return Stack{}, nil, fmt.Errorf("base device of %s: %w", path, err)
		}
		s.Base = append(s.Base, base)
	}
	return s, nil, nil
}

func readBase(sysfs string, src TableSource, number dmtable.Device) (Base, error) {
	d, err := openFolder(sysfs, number)
	if err != nil {
		return Base{}, err
	}
	size, err := d.size()
	if err != nil {
		return Base{}, err
	}
	readOnly, err := ReadOnly(sysfs, src, number)
	if err != nil {
		return Base{}, err
	}
	block, err := d.logicalBlock()
	if err != nil {
		return Base{}, err
	}
	return Base{Device: number, Name: d.name(), Size: size, LogicalBlock: block, ReadOnly: readOnly}, nil
}

// judgeHost says why nothing can be mapped through the host's table, or nil.
func judgeHost(path string, info dm.Info, table dmtable.Table) *extents.Problem {
	name := info.Name
	for i := range table {
		if target := table[i].Target; target != dmtable.Linear && target != dmtable.Striped {
			return unresolvable(fmt.Sprintf("%s has a %s target (sectors %d-%d); only linear and striped ones can be looked through",
				path, target, table[i].Start, table[i].End()-1), advice.ShimOnTop.Of(path))
		}
	}
	switch {
	case len(table) == 0:
		return unresolvable(path+" has no table", extents.Remedy{})
	case info.Suspended:
		return unresolvable(path+" is suspended: its table is about to change",
			advice.ResumeChanged.Of(name))
	case info.InactiveTable:
		return unresolvable(path+" has a second table loaded that is to replace its own",
			advice.ClearTable.Of(name))
	}
	if err := table.Validate(dmtable.Limits{}); err != nil {
		return unresolvable(fmt.Sprintf("the table of %s is not understood: %v", path, err), advice.ShimOnTop.Of(path))
	}
	return nil
}

// namedDevices returns the devices of a table of linear and striped rows that
// Validate has found sound, each once.
func namedDevices(table dmtable.Table) []dmtable.Device {
	var devices []dmtable.Device
	seen := map[dmtable.Device]bool{}
	for _, row := range compile(table) {
		for _, area := range row.Areas {
			if !seen[area.Device] {
				seen[area.Device] = true
				devices = append(devices, area.Device)
			}
		}
	}
	return devices
}

func mountedDirectly(path string) *extents.Problem {
	return &extents.Problem{
		Rule:    extents.MountedDirectly,
		Message: fmt.Sprintf("the host file system is mounted straight from %s, which device-mapper cannot share with it", path),
		Remedy:  advice.MountThroughShim.Of(path),
	}
}

func unresolvable(message string, remedy extents.Remedy) *extents.Problem {
	return &extents.Problem{Rule: extents.UnresolvableStack, Message: message, Remedy: remedy}
}
