package dm

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/internal/dm/wire"
)

// trace writes what one ioctl was asked and what it answered.
func (c *Conn) trace(call call, size int, reply wire.Header, err error) {
	if c.log == nil || !c.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "ioctl(%s, {%s", call.req.Name, call.ref)
	if call.newUUID != "" {
		fmt.Fprintf(&b, ", uuid %s", call.newUUID)
	}
	fmt.Fprintf(&b, ", flags %s", flagNames(call.flags))
	if call.eventNr != 0 {
		fmt.Fprintf(&b, ", event_nr %#x", call.eventNr)
	}
	if call.targets != 0 {
		fmt.Fprintf(&b, ", %d rows", call.targets)
	}
	fmt.Fprintf(&b, ", %d bytes})", size)
	if err != nil {
		fmt.Fprintf(&b, " = %v", errno(err))
	} else {
		fmt.Fprintf(&b, " = 0 {%s, flags %s, event_nr %d, open %d, %d rows}",
			reply.Device, flagNames(reply.Flags), reply.EventNr, reply.OpenCount, reply.TargetCount)
	}
	c.log.Debug(b.String())
}

// flagBits are the bits of dm_ioctl.flags under their names in linux/dm-ioctl.h,
// without DM_ and _FLAG.
var flagBits = []struct {
	bit  uint32
	name string
}{
	{unix.DM_READONLY_FLAG, "READONLY"},
	{unix.DM_SUSPEND_FLAG, "SUSPEND"},
	{unix.DM_PERSISTENT_DEV_FLAG, "PERSISTENT_DEV"},
	{unix.DM_STATUS_TABLE_FLAG, "STATUS_TABLE"},
	{unix.DM_ACTIVE_PRESENT_FLAG, "ACTIVE_PRESENT"},
	{unix.DM_INACTIVE_PRESENT_FLAG, "INACTIVE_PRESENT"},
	{unix.DM_BUFFER_FULL_FLAG, "BUFFER_FULL"},
	{unix.DM_SKIP_BDGET_FLAG, "SKIP_BDGET"},
	{unix.DM_SKIP_LOCKFS_FLAG, "SKIP_LOCKFS"},
	{unix.DM_NOFLUSH_FLAG, "NOFLUSH"},
	{unix.DM_QUERY_INACTIVE_TABLE_FLAG, "QUERY_INACTIVE_TABLE"},
	{unix.DM_UEVENT_GENERATED_FLAG, "UEVENT_GENERATED"},
	{unix.DM_UUID_FLAG, "UUID"},
	{unix.DM_SECURE_DATA_FLAG, "SECURE_DATA"},
	{unix.DM_DATA_OUT_FLAG, "DATA_OUT"},
	{unix.DM_DEFERRED_REMOVE, "DEFERRED_REMOVE"},
	{unix.DM_INTERNAL_SUSPEND_FLAG, "INTERNAL_SUSPEND"},
	{unix.DM_IMA_MEASUREMENT_FLAG, "IMA_MEASUREMENT"},
}

// flagNames returns the names of the bits with | between, what is unknown in hex,
// and 0 for none.
func flagNames(flags uint32) string {
	var names []string
	for _, f := range flagBits {
		if flags&f.bit != 0 {
			names = append(names, f.name)
			flags &^= f.bit
		}
	}
	if flags != 0 || len(names) == 0 {
		names = append(names, fmt.Sprintf("%#x", flags))
	}
	return strings.Join(names, "|")
}
