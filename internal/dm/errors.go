package dm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What callers tell apart. Match them with errors.Is; the errno can be matched
// too.
var (
	// ErrNoDeviceMapper means that the running kernel has no device-mapper, or
	// its module is not loaded.
	ErrNoDeviceMapper = errors.New("the kernel has no device-mapper (is the module dm-mod loaded?)")
	// ErrPermission means that this process may not use device-mapper: it takes
	// CAP_SYS_ADMIN in the initial user namespace.
	ErrPermission = errors.New("not permitted to use device-mapper")
	// ErrNotFound means that there is no such device.
	ErrNotFound = errors.New("no such device-mapper device")
	// ErrExists means that the name or the uuid is taken.
	ErrExists = errors.New("name or uuid is taken")
	// ErrBusy means that the device, or one that the table names, is in use.
	ErrBusy = errors.New("in use")
	// ErrUnsupported means that the kernel's device-mapper is there but speaks
	// another version of the interface.
	ErrUnsupported = errors.New("unknown version of the device-mapper interface")
)

// Error is a failed operation on the control device.
type Error struct {
	Op   string // the ioctl's name in linux/dm-ioctl.h, or "open"
	Name string // the device concerned, as the caller named it, or the control device's path
	Err  error  // the errno, or what was wrong with the request or the reply
}

func (e *Error) Error() string {
	text := fmt.Sprintf("device-mapper: %s %s: %v", e.Op, e.Name, e.Err)
	if why := e.why(); why.text != "" {
		text += " (" + why.text + ")"
	}
	return text
}

// Unwrap returns the errno, or what was wrong with the request or the reply.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the sentinel that the errno of this operation
// stands for.
func (e *Error) Is(target error) bool { return target == e.why().is }

// meaning is what an errno says when it comes from one operation.
type meaning struct {
	is   error // nil when no sentinel fits
	text string
}

type cause struct {
	op    string // "" is any operation without an entry of its own
	errno unix.Errno
}

// meanings is read from drivers/md/dm-ioctl.c, dm.c and dm-table.c of Linux 6.1
// to 7.3.
var meanings = map[cause]meaning{
	{"", unix.ENXIO}:  {ErrNotFound, "there is no such device"},
	{"", unix.EACCES}: {ErrPermission, "it takes root in the initial user namespace"},
	{"", unix.EPERM}:  {ErrPermission, "it takes root in the initial user namespace"},
	{"", unix.ENOTTY}: {ErrUnsupported, "the kernel does not know this request"},
	{"", unix.ENOMEM}: {nil, "the kernel does not have enough memory"},

	{"open", unix.ENOENT}: {ErrNoDeviceMapper, "is the module dm-mod loaded?"},
	{"open", unix.ENODEV}: {ErrNoDeviceMapper, "is the module dm-mod loaded?"},
	{"open", unix.ENXIO}:  {ErrNoDeviceMapper, "is the module dm-mod loaded?"},

	{"DM_VERSION", unix.EINVAL}: {ErrUnsupported, "the kernel refuses interface version 4"},

	{"DM_DEV_CREATE", unix.EBUSY}:  {ErrExists, "name or uuid is taken"},
	{"DM_DEV_CREATE", unix.EINVAL}: {nil, "the kernel does not accept the name"},

	{"DM_TABLE_LOAD", unix.EBUSY}:     {ErrBusy, "a device that the table names is in exclusive use, for example mounted"},
	{"DM_TABLE_LOAD", unix.EINVAL}:    {nil, "the kernel does not accept the table; its log says why"},
	{"DM_TABLE_LOAD", unix.EOVERFLOW}: {nil, "the table has too many rows"},
	{"DM_TABLE_LOAD", unix.EPERM}:     {ErrPermission, "the device cgroup of this service may forbid the base device"},
	{"DM_TABLE_LOAD", unix.EACCES}:    {nil, "a device that the table names is read-only"},
	{"DM_TABLE_LOAD", unix.ENODEV}:    {nil, "a device that the table names is gone"},

	{"DM_DEV_RENAME", unix.EBUSY}:  {ErrExists, "the new name or uuid is taken"},
	{"DM_DEV_RENAME", unix.EINVAL}: {nil, "the kernel does not accept the new name, or the uuid is set already"},

	{"DM_DEV_REMOVE", unix.EBUSY}: {ErrBusy, "the device is open"},

	{"DM_DEV_SUSPEND", unix.EINVAL}: {nil, "there is no table to resume, or the device is suspended already"},
}

func (e *Error) why() meaning {
	var n unix.Errno
	if !errors.As(e.Err, &n) {
		return meaning{}
	}
	if m, ok := meanings[cause{e.Op, n}]; ok {
		return m
	}
	return meanings[cause{"", n}]
}

// errno returns the errno in err without the wrapping of the ioctl package, whose
// words *Error repeats.
func errno(err error) error {
	var n unix.Errno
	if errors.As(err, &n) {
		return n
	}
	return err
}
