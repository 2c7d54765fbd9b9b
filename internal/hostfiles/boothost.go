package hostfiles

import (
	"fmt"
	"strings"
)

// BootHost is the host file system of an image that the initramfs mapped.
type BootHost struct {
	Name   string // of the mapping
	Device string // that holds the file system, such as /dev/mapper/host
	Type   string // of the file system
	Point  string // where it is, or is to be, mounted
	Image  string // path of the image below Point
	// Mounted says that the initramfs left it mounted there. Otherwise the image was
	// mapped from its manifest alone and is verified once it is mounted.
	Mounted bool
}

// host renders what the real root does about such a host: it mounts what the
// initramfs did not, has the image verified, and starts the guard, which needs the
// image's path.
func (o Output) host(h BootHost) {
	mount := mountUnit(h.Point)
	if !h.Mounted {
		o.Files[mount] = header + fmt.Sprintf(`[Unit]
Description=Host file system of the image %s
Documentation=man:dmloop-boot(8)
DefaultDependencies=no
Conflicts=umount.target
Before=umount.target
Requires=%[3]s
After=%[3]s
Wants=systemd-fsck@%[6]s.service
After=systemd-fsck@%[6]s.service

[Mount]
What=%[2]s
Where=%[4]s
Type=%[5]s
`, percent(h.Name), percent(h.Device), deviceUnit(h.Device), percent(h.Point), h.Type,
			strings.TrimSuffix(deviceUnit(h.Device), ".device"))
		o.Links["local-fs.target.wants/"+mount] = "../" + mount
	}
	verify := "dmloop-boot@" + instance(h.Name) + ".service"
	after := mount
	if swap := swapUnit(h.Point + h.Image); len(swap) <= maxUnitName {
		after += " " + swap
	}
	o.Files[verify+".d/50-host.conf"] = header + fmt.Sprintf("[Unit]\nRequires=%s\nAfter=%s\n", mount, after)
	o.Links["sysinit.target.wants/"+verify] = unitDir + "/dmloop-boot@.service"
	// The guard looks at images by their path, and must release them before the mount ends.
	o.Files[GuardUnit+".d/50-boot-"+instance(h.Name)+".conf"] = header + fmt.Sprintf("[Unit]\nAfter=%s %s\n", mount, verify)
	o.Links["sysinit.target.wants/"+GuardUnit] = unitDir + "/" + GuardUnit
}
