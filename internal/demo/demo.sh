#!/usr/bin/env bash
# Shows dmloop's main job on real input, in a guest: make demo. Every step
# either holds or ends the run with exit code 1.
#   demo.sh TREE    a folder with files
# HOSTFS is the type of the host file system, ext4 or xfs.
set -Eeuo pipefail
trap 'printf "\nDEMO FAILED: %s\n" "$BASH_COMMAND"' ERR
cd "$(dirname "$0")/../.."
# shellcheck source=internal/demo/lib.sh
. internal/demo/lib.sh
PATH=$PWD/bin:$PATH
tree=$1
hostfs=${HOSTFS:-ext4}
disk=${DMLOOP_DISKS%%:*}
image=/mnt/host/image.img

# Where the kernel cannot deny opens, a pin that needs a guard is not to be had
# (User Mode Linux with an xfs host): the weaker grade is accepted by hand.
options=()
if [ "$hostfs" = xfs ] && [ "${DMLOOP_GUEST:-}" = uml ]; then
	options=(--unsafe)
fi

prepare() {
	say "1. A host file system ($hostfs) that device-mapper can share: it stands on a shim of $disk"
	mkdir -p /mnt/host /mnt/inside
	show 0 dmloop shim "$disk" host
	mkfs."$hostfs" -q /dev/mapper/host
	show 0 mount /dev/mapper/host /mnt/host

	say "2. An image made of $tree, sparse as images are"
	show 0 mke2fs -q -t ext4 -d "$tree" "$image" 96M
	show 0 du -h --apparent-size "$image"
	show 0 du -h "$image"
	before=$(sum "$image")
	show 3 dmloop check "$image"
	passed "the sparse image is refused with reasons"

	say "3. Give every byte a block of its own; what the file reads stays the same"
	show 0 dmloop provision "$image"
	same "content unchanged by provision" "$(sum "$image")" "$before"
	show 0 dmloop check "$image"
	show 0 dmloop extents "$image"
	show 0 dmloop table "$image"
}

map() {
	say "4. Map it: a block device without the loop driver"
	local table
	table=$(dmloop table "$image")
	show 0 dmloop map "${options[@]}" "$image"
	show 0 dmloop list
	same "the kernel has the table that was printed" "$(dmsetup table image)" "$table"
	same "no loop device is in use" "$(losetup --list)" ""
	same "the device reads as the file did" "$(sum /dev/mapper/image)" "$before"

	say "5. While it is mapped, nobody can change the file or move its blocks"
	refused "removing the image" rm -f "$image"
	refused "cutting it short" truncate -s 1M "$image"
	refused "writing to it" dd if=/dev/zero of="$image" bs=4k count=1 conv=notrunc status=none
	show 0 dmloop verify image
}

compare() {
	say "6. Mount the device and compare with the source"
	show 0 mount /dev/mapper/image /mnt/inside
	show 0 diff -r --exclude=lost+found "$tree" /mnt/inside
	passed "$(find "$tree" -type f | wc -l) files equal their source"

	say "7. Write through the device, unmap, and read the file itself"
	cp -r internal/demo /tmp/new
	show 0 cp -r /tmp/new /mnt/inside/written
	show 5 dmloop unmap image
	show 0 umount /mnt/inside
	local device
	device=$(sum /dev/mapper/image)
	[ "$device" != "$before" ] || fail "nothing was written"
	show 0 dmloop unmap image
	same "the file reads as the device did" "$(sum "$image")" "$device"
	show 0 e2fsck -fn "$image"
	mkdir /tmp/read
	show 0 debugfs -R "rdump written /tmp/read" "$image"
	show 0 diff -r /tmp/new /tmp/read/written
	passed "what was written is in the file, read without any device"
}

finish() {
	say "8. Nothing is left behind"
	same "no mapping is listed" "$(dmloop list)" ""
	same "only the shim is left of device-mapper's devices" "$(dmsetup ls | cut -f1)" host
	case $(lsattr "$image") in ????i*) fail "the image is still immutable" ;; esac
	passed "the image is an ordinary file again"
	show 0 umount /mnt/host
	printf '\nDEMO PASSED: %d checks of an ext4 image on %s, kernel %s\n' "$count" "$hostfs" "$(uname -r)"
}

# Through a pipe, so that all programs print as they do for a script.
{
	prepare
	map
	compare
	finish
} 2>&1 | cat
