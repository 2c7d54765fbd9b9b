// Package hostfiles has the files that other programs of the host read: units of
// systemd, rules of udev, hooks of initramfs makers. It renders the output of the
// systemd generator, too. What belongs where is in Installed, once, for the packages
// and for make install.
package hostfiles

import "embed"

// Files has the files as they are shipped.
//
//go:embed systemd udev initramfs-tools dracut
var Files embed.FS
