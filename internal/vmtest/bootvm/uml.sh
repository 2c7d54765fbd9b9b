#!/bin/sh
# Builds a User Mode Linux kernel with everything that the boot tests want built in,
# CONFIG_DM_INIT above all, from Debian's source of the running release.
#
#   uml.sh KERNEL
#
# KERNEL appears when it is complete. Ten minutes on two processors.
set -eu

kernel=$1
work=$kernel.build

rm -rf "$work"
mkdir -p "$work"
cd "$work"
package=$(apt-cache depends linux-source | sed -n 's/.*Depends: \(linux-source-[0-9.]*\)$/\1/p' | head -n 1)
apt-get -q download "$package" >/dev/null
dpkg -x "$package"_*.deb package
mkdir linux
tar -C linux --strip-components=1 -xf package/usr/src/linux-source-*.tar.xz
cd linux
make -s ARCH=um defconfig
# Debug information is half of the time that a build takes. With stacks in vmalloc memory
# a kernel thread now and then unmaps its own and hangs.
scripts/config -e DEBUG_INFO_NONE -d DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT -d MODULES -d VMAP_STACK \
	-d NETDEVICES -d HID -d HID_SUPPORT -d INPUT -d SERIO -d INET_DIAG -d REISERFS_FS -d ISO9660_FS -d MINIX_FS -d BLK_DEV_NBD -d IOSCHED_BFQ -d IO_URING -d ETHTOOL_NETLINK -d UML_NET \
	-e MD -e BLK_DEV_DM -e DM_INIT -e DM_VERITY -e DM_CRYPT -e DM_SNAPSHOT -e DM_FLAKEY \
	-e EXT4_FS -e EXT4_FS_POSIX_ACL -e EXT4_FS_SECURITY -e XFS_FS -e XFS_POSIX_ACL -e F2FS_FS \
	-e BLK_DEV_LOOP -e PARTITION_ADVANCED -e MSDOS_PARTITION -e EFI_PARTITION \
	-e DEVTMPFS -e TMPFS -e TMPFS_XATTR -e TMPFS_POSIX_ACL -e HOSTFS -e SECURITY -e FANOTIFY -e FANOTIFY_ACCESS_PERMISSIONS \
	-e CRYPTO_SHA256 -e SWAP -e BLK_DEV_INITRD -e RD_ZSTD -e RD_GZIP -e FHANDLE -e AUTOFS_FS -e SYSVIPC -e POSIX_MQUEUE \
	-e CGROUPS -e CGROUP_PIDS -e MEMCG -e BPF_SYSCALL -e CGROUP_BPF -e NAMESPACES -e UTS_NS -e IPC_NS -e PID_NS -e NET_NS -e USER_NS
make -s ARCH=um olddefconfig
# An option that is gone or renamed is not to be missed in a guest.
for option in DM_INIT DM_VERITY BLK_DEV_INITRD RD_ZSTD EFI_PARTITION FANOTIFY_ACCESS_PERMISSIONS AUTOFS_FS CGROUP_BPF SECCOMP_FILTER XFS_FS; do
	grep -q "^CONFIG_$option=y" .config || { echo "CONFIG_$option is not to be had" >&2; exit 1; }
done
make -s ARCH=um -j"$(nproc)" linux
strip linux
mv linux "$kernel"
cd /
rm -rf "$work"
