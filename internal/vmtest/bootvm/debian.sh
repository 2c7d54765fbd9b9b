#!/bin/sh
# Makes the tree of a small Debian with systemd and udev for the boot tests.
#
#   debian.sh SUITE MIRROR KERNEL TREE
#
# KERNEL is a folder with an unpacked kernel package (boot/ and lib/modules/). TREE
# appears when it is complete. Only the modules that a guest can need are taken, and
# apt's lists and caches are left out, which makes a tree of about 350 MB.
set -eu

suite=$1 mirror=$2 kernel=$3 tree=$4
new=$tree.new

rm -rf "$new"
debootstrap --variant=minbase \
	--include=systemd-sysv,udev,dbus,dmsetup,initramfs-tools,dracut-core,kmod,e2fsprogs,xfsprogs,util-linux,mount,fdisk,procps,busybox,zstd \
	"$suite" "$new" "$mirror" >"$tree.log" 2>&1 || { tail -n 20 "$tree.log" >&2; exit 1; }

# The kernel with the modules of disks, file systems and device-mapper.
mkdir -p "$new/boot" "$new/lib/modules"
cp "$kernel"/boot/* "$new/boot/"
version=$(ls "$kernel/lib/modules")
from=$kernel/lib/modules/$version to=$new/lib/modules/$version
mkdir -p "$to/kernel/drivers" "$to/kernel/fs"
cp "$from"/modules.order "$from"/modules.builtin* "$to/"
for part in arch/x86/crypto crypto lib drivers/md drivers/virtio drivers/block drivers/scsi drivers/cdrom drivers/ata drivers/char \
	fs/ext4 fs/jbd2 fs/mbcache.ko fs/xfs fs/f2fs fs/btrfs fs/nls fs/9p fs/netfs fs/fscache net/9p; do
	[ -e "$from/kernel/$part" ] || continue
	folder=$to/kernel/$(dirname "$part")
	mkdir -p "$folder"
	cp -r "$from/kernel/$part" "$folder/"
done
depmod -b "$new" "$version"

# An initramfs of what these guests have, made quickly.
cat >"$new/etc/initramfs-tools/conf.d/guest" <<'END'
MODULES=list
COMPRESS=zstd
RESUME=none
END
printf '%s\n' virtio_pci virtio_blk virtio_console ext4 xfs dm_mod crc32c_generic >>"$new/etc/initramfs-tools/modules"

# A guest that people's passwords and the network have nothing to do with.
echo guest >"$new/etc/hostname"
passwd -R "$new" -d root >/dev/null 2>&1 || sed -i 's/^root:[^:]*:/root::/' "$new/etc/shadow"
for unit in e2scrub_all.timer e2scrub_reap.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	fstrim.timer systemd-timesyncd.service systemd-pstore.service; do
	systemctl --root="$new" --quiet mask "$unit" 2>/dev/null || ln -sf /dev/null "$new/etc/systemd/system/$unit"
done
rm -rf "$new"/var/cache/apt/archives/*.deb "$new"/var/lib/apt/lists/* "$new"/usr/share/doc/* "$new"/usr/share/locale/* "$new"/usr/share/man/*
mkdir -p "$new/usr/share/man"

rm -rf "$tree"
mv "$new" "$tree"
rm -f "$tree.log"
