package dm

import (
	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

// The requests of linux/dm-ioctl.h that this package makes.
var (
	reqVersion = ioctl.Request{Number: unix.DM_VERSION, Name: "DM_VERSION"}
	reqList    = ioctl.Request{Number: unix.DM_LIST_DEVICES, Name: "DM_LIST_DEVICES"}
	reqCreate  = ioctl.Request{Number: unix.DM_DEV_CREATE, Name: "DM_DEV_CREATE"}
	reqRemove  = ioctl.Request{Number: unix.DM_DEV_REMOVE, Name: "DM_DEV_REMOVE"}
	reqRename  = ioctl.Request{Number: unix.DM_DEV_RENAME, Name: "DM_DEV_RENAME"}
	reqSuspend = ioctl.Request{Number: unix.DM_DEV_SUSPEND, Name: "DM_DEV_SUSPEND"}
	reqInfo    = ioctl.Request{Number: unix.DM_DEV_STATUS, Name: "DM_DEV_STATUS"}
	reqLoad    = ioctl.Request{Number: unix.DM_TABLE_LOAD, Name: "DM_TABLE_LOAD"}
	reqClear   = ioctl.Request{Number: unix.DM_TABLE_CLEAR, Name: "DM_TABLE_CLEAR"}
	reqDeps    = ioctl.Request{Number: unix.DM_TABLE_DEPS, Name: "DM_TABLE_DEPS"}
	reqTable   = ioctl.Request{Number: unix.DM_TABLE_STATUS, Name: "DM_TABLE_STATUS"}
)
