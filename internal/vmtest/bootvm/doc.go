// Package bootvm boots whole Debian guests in qemu, with systemd and udev, from disks
// that it makes: for what only a boot can show. The tests carry the build tag boot and
// run with make test-boot; they need root on the host, for debootstrap and chroot.
package bootvm
