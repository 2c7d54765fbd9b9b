package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/helper"
	"dmloop/internal/image"
)

// ResizeInside has the file system on a device take all of it, by its own tool: resize2fs for
// ext4, xfs_growfs for an xfs that is mounted. For any other it does nothing and returns what there is
// to do by hand.
func (s *System) ResizeInside(ctx context.Context, device string) (byHand string, err error) {
	f, err := os.Open(device)
	if err != nil {
		return "", fault.Wrap(device, "", err)
	}
	defer f.Close()
	inside, err := blockdev.Local().Filesystem(blockdev.Device{Path: device})
	switch {
	case errors.Is(err, blockdev.ErrNoFilesystem):
		return "no file system that dmloop knows is on " + device + ": have its own tool take the new room", nil
	case err != nil:
		return "", fault.Wrap(device, "", err)
	case inside.Type == "ext4":
		return "", run(ctx, device, "resize2fs", device)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fault.Wrap(device, "", err)
	}
	mounts, err := image.MountsOf(dmtable.DeviceOf(st.Rdev))
	if err != nil {
		return "", fault.Wrap(device, "", err)
	}
	switch {
	case inside.Type == "xfs" && len(mounts) > 0:
		return "", run(ctx, device, "xfs_growfs", mounts[0].Point)
	case inside.Type == "xfs":
		return "xfs grows while it is mounted: mount it, and then: xfs_growfs MOUNTPOINT", nil
	case inside.Type == "btrfs":
		return "btrfs grows while it is mounted: btrfs filesystem resize max MOUNTPOINT", nil
	}
	return fmt.Sprintf("unmount it, and then: resize.%s %s", inside.Type, device), nil
}

// run runs a program to its end. What it said is in the error.
func run(ctx context.Context, subject, name string, args ...string) error {
	cmd, err := helper.Command(ctx, name, args...)
	if err != nil {
		return fault.Wrap(subject, "", err)
	}
	said, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if text := strings.Join(strings.Fields(string(said)), " "); text != "" {
		err = errors.New(text)
	}
	return &fault.Error{Class: fault.Failed, Subject: subject, Message: "it is longer, but not its file system: " + name, Err: err}
}
