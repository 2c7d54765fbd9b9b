// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

// The few members of the kernel's structures that the gate reads. Where each lies is looked
// up in the running kernel's own BTF when the programs are loaded (CO-RE), so that one
// object serves all kernels; the sizes and numbers of the requests are the kernel's ABI.
#ifndef DMLOOP_GATE_KERNEL_H
#define DMLOOP_GATE_KERNEL_H

#include <linux/bpf.h>

#define EPERM 1

#define S_SWAPFILE 0x100 // include/linux/fs.h: i_flags
#define S_IMMUTABLE 0x8

#define S_IFMT 0170000 // include/uapi/linux/stat.h
#define S_IFCHR 0020000
#define S_IFBLK 0060000

#define KERNEL_MINORS 20 // include/linux/kdev_t.h: a dev_t is 12 bits of major, 20 of minor
#define KERNEL_DEV(major, minor) ((__u32)(major) << KERNEL_MINORS | (minor))

#define DM_CONTROL KERNEL_DEV(10, 236) // include/linux/miscdevice.h: MAPPER_CTRL_MINOR

#define IOCTL_TYPE(cmd) ((cmd) >> 8 & 0xff) // include/uapi/asm-generic/ioctl.h
#define IOCTL_NUMBER(cmd) ((cmd) & 0xff)
#define DM_TYPE 0xfd // include/uapi/linux/dm-ioctl.h: the type, and the numbers of what changes something
#define DM_REMOVE_ALL 1
#define DM_DEV_REMOVE 4
#define DM_DEV_RENAME 5
#define DM_TABLE_LOAD 9
#define DM_UUID_FLAG (1 << 14)
#define DM_NAME_LEN 128
#define DM_UUID_LEN 129

#define BLKPG 0x1269 // include/uapi/linux/fs.h, blkpg.h
#define BLKPG_ADD_PARTITION 1
#define LOOP_SET_STATUS 0x4c02 // include/uapi/linux/loop.h
#define LOOP_SET_STATUS64 0x4c04
#define LOOP_CHANGE_FD 0x4c06

// include/uapi/linux/dm-ioctl.h: the request.
struct dm_request {
	__u32 version[3];
	__u32 data_size;
	__u32 data_start;
	__u32 target_count;
	__s32 open_count;
	__u32 flags;
	__u32 event_nr;
	__u32 padding;
	__u64 dev;
	char name[DM_NAME_LEN];
	char uuid[DM_UUID_LEN];
	char data[7];
};

// One row of the table that DM_TABLE_LOAD offers; the target's arguments come after it.
struct dm_row {
	__u64 start; // sectors
	__u64 length;
	__s32 status;
	__u32 next; // bytes from this row to the next
	char type[16];
};

// include/uapi/linux/blkpg.h, as 64-bit programs hand it over.
struct blkpg_request {
	__s32 op;
	__s32 flags;
	__s32 datalen;
	__s32 padding;
	__u64 data;
};

struct blkpg_part {
	__s64 start; // bytes
	__s64 length;
	__s32 number;
	__s32 padding;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct super_block {
	__u32 s_dev;
};

struct inode {
	__u16 i_mode;
	__u32 i_flags;
	struct super_block *i_sb;
	unsigned long i_ino;
	__u32 i_rdev;
	__u32 i_generation;
};

struct dentry {
	struct inode *d_inode;
};

struct file {
	struct inode *f_inode;
};

struct task_struct {
	int tgid;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	__u64 start_boottime;
};

#pragma clang attribute pop

#endif
