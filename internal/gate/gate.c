//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

// The gate: what it refuses, with EPERM, to everybody but dmloop's own processes.
// docs/gate.md has the reason for each hook. None of them is on the way of a read or a
// write, and on the way of an open only two flags of the inode are looked at.
//
// Programs of kernels before 6.7 are verified as if bpf_loop called back once: what one
// call leaves for the next must not be a number that the verifier knows. All of it lies
// in a map's value here ("struct desk"), of which the verifier knows nothing.

#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char _license[] SEC("license") = "Dual BSD/GPL";

#define ROWS_MAX 65536  // rows of a table that is judged; a longer one is refused
#define TEXT_MAX 1024   // bytes of a row's arguments; longer ones are refused
#define PARENTS 12      // how far an --allow reaches down
#define RECENT 256      // denials that are kept for "status"

// What a device is to the mappings.
enum kind {
	OWN = 1,   // a mapping's own device
	BELOW = 2, // a device that a mapping's rows, or its host file system, stand on
	DISK = 4,  // a disk that has one of them as a partition
	LOOP = 8,  // one of them is a loop device
};

// What was refused. Numbers are for ever: an older dmloop may read them.
enum what {
	OPEN = 1,
	SETATTR = 2,
	FILE_SETATTR = 3,
	UNLINK = 4,
	RENAME = 5,
	SETXATTR = 6,
	IOCTL = 7,
	DM_LOAD = 8,
	DM_REMOVE = 9,
	DM_RENAME = 10,
	DM_WIPE = 11,
	PARTITION = 12,
	LOOP_CHANGE = 13,
};

struct inode_key {
	__u64 number;
	__u32 device; // as the kernel has it
	__u32 generation;
};

struct device {
	__u32 kinds;
	__u32 rows; // rows of its table that "rows" has, all of which a new table must have
	__u64 end;  // a new table must lead somewhere up to here, in sectors
};

struct row_key {
	__u64 start; // sectors
	__u32 device;
	__u32 zero;
};

struct row {
	__u64 end;    // the table offered must reach as far, in sectors
	__u64 digest; // of target and arguments
};

struct part_key {
	__u32 disk;
	__u32 number;
};

struct name_key {
	__u8 kind; // n: a name, u: a uuid
	__u8 text[131];
};

// What user space notes of each mapping, some facts to a page; the programs look at what is
// made of it, the maps "inodes" to "names". Few large values, since reading a whole map takes the
// longer the more entries it may have.
struct page_key {
	__u8 uuid[16];
	__u32 number; // 0 and up
};

struct fact {
	__u32 kind; // 0: none, and none after it
	__u32 device;
	__u64 a;
	__u64 b;
	__u64 c;
	struct name_key name;
	__u32 zero;
};

struct page {
	struct fact facts[16];
};

struct process {
	__u64 start; // nanoseconds after boot: with the thread group's number, never used again
	__u32 tgid;
	__u32 zero;
};

struct denial {
	__u64 number; // 1 and up
	__u64 time;   // nanoseconds after boot
	__u64 inode;  // 0: a device
	__u32 device;
	__u32 what;
	__u32 tgid;
	__u32 uid;
	__u8 program[16];
};

// Where a request is laid out while it is judged: one for each task, since a task makes one at a time.
struct desk {
	struct dm_request request;
	struct dm_row row;
	struct row_key row_key;
	struct name_key name;
	char text[2 * TEXT_MAX]; // a row's target and its arguments
	__u64 user;              // the request's address
	__u64 at;                // the row's place in it, in bytes
	__u64 digest;
	__u32 length;  // bytes of text
	__u32 device;  // whose table it is
	__u32 ended;   // the text had its NUL
	__u64 end;     // of the table offered, in sectors
	__u64 needed;  // the device's end
	__u32 matched; // rows
	__u32 wrong;
};

// Room is taken when an entry is made.
#define TABLE(name, entries, key_type, value_type) \
	struct { \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(max_entries, entries); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, key_type); \
		__type(value, value_type); \
	} name SEC(".maps")

TABLE(pages, 8192, struct page_key, struct page);
TABLE(inodes, 4096, struct inode_key, __u32);
TABLE(devices, 16384, __u32, struct device);
TABLE(rows, 262144, struct row_key, struct row);
TABLE(parts, 4096, struct part_key, __u64);
TABLE(names, 16384, struct name_key, __u32);
TABLE(own, 4096, struct process, __u32);
TABLE(allowed, 1024, struct process, __u32);

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct desk);
} desks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} denials SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RECENT);
	__type(key, __u32);
	__type(value, struct denial);
} recent SEC(".maps");

// PINNING: images whose pins are being set or cleared. DEVICES: those in "devices". LEARNT: names that
// the gate has put in "names" itself. User space's own: SEEN, how many of these it has looked at, and
// CHANGING, which is not 0 while a change has not come to its end.
enum counter { REFUSED, PINNING, DEVICES, LEARNT, SEEN, CHANGING, COUNTERS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __attribute__((always_inline)) __u64 *counter(__u32 which)
{
	return bpf_map_lookup_elem(&counters, &which);
}

static void process_of(struct task_struct *task, struct process *p)
{
	struct task_struct *leader = task->group_leader;

	p->start = leader->start_boottime;
	p->tgid = task->tgid;
	p->zero = 0;
}

static int is_own(void)
{
	struct process p;

	process_of(bpf_get_current_task_btf(), &p);
	return bpf_map_lookup_elem(&own, &p) != 0;
}

// is_allowed: this process, or one that started it, was given the right to the device.
static int is_allowed(__u32 device)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct process p;
	__u32 *right;

#pragma unroll
	for (int i = 0; i < PARENTS; i++) {
		process_of(task, &p);
		right = bpf_map_lookup_elem(&allowed, &p);
		if (right && *right == device)
			return 1;
		task = task->real_parent;
	}
	return 0;
}

static void fill(struct denial *d, __u64 number, __u32 what, __u64 inode, __u32 device)
{
	d->number = number;
	d->time = bpf_ktime_get_boot_ns();
	d->inode = inode;
	d->device = device;
	d->what = what;
	d->tgid = bpf_get_current_pid_tgid() >> 32;
	d->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(d->program, sizeof d->program);
}

// refuse notes what was refused, for whoever wonders, and says EPERM.
static int refuse(__u32 what, __u64 inode, __u32 device)
{
	__u64 *count = counter(REFUSED);
	__u64 number = 0;
	__u32 slot;
	struct denial *d;

	if (count)
		number = __sync_fetch_and_add(count, 1) + 1;
	slot = number % RECENT;
	d = bpf_map_lookup_elem(&recent, &slot);
	if (d)
		fill(d, number, what, inode, device);
	d = bpf_ringbuf_reserve(&denials, sizeof *d, 0);
	if (d) {
		fill(d, number, what, inode, device);
		bpf_ringbuf_submit(d, 0);
	}
	return -EPERM;
}

// judge looks an inode up. It is a function of its own, so that the way of all other inodes
// saves no registers for it.
static __attribute__((noinline)) int judge(struct inode *inode, __u32 what)
{
	struct inode_key key;

	key.number = inode->i_ino;
	key.device = inode->i_sb->s_dev;
	key.generation = inode->i_generation;
	if (!bpf_map_lookup_elem(&inodes, &key)) {
		key.generation = 0; // of a file system that tells nobody the generation
		if (!bpf_map_lookup_elem(&inodes, &key))
			return 0;
	}
	if (is_own())
		return 0;
	return refuse(what, key.number, key.device);
}

// gated judges what is about to be done to an inode. All but pinned files end at the flags,
// unless a file is being pinned right now: swapon takes none that is immutable.
static __attribute__((always_inline)) int gated(struct inode *inode, __u32 what)
{
	__u64 *pinning;

	if (inode->i_flags & (S_IMMUTABLE | S_SWAPFILE))
		return judge(inode, what);
	pinning = counter(PINNING);
	if (pinning && *pinning)
		return judge(inode, what);
	return 0;
}

static __attribute__((always_inline)) int gated_dentry(struct dentry *dentry, __u32 what)
{
	struct inode *inode = dentry->d_inode;

	return inode ? gated(inode, what) : 0;
}

SEC("lsm/file_open")
int BPF_PROG(file_open, struct file *file)
{
	return gated(file->f_inode, OPEN);
}

SEC("lsm/inode_setattr")
int BPF_PROG(setattr_6_1, struct dentry *dentry, void *attr)
{
	return gated_dentry(dentry, SETATTR);
}

SEC("lsm/inode_setattr")
int BPF_PROG(setattr, void *idmap, struct dentry *dentry, void *attr)
{
	return gated_dentry(dentry, SETATTR);
}

SEC("lsm/inode_file_setattr")
int BPF_PROG(file_setattr, struct dentry *dentry, void *attr)
{
	return gated_dentry(dentry, FILE_SETATTR);
}

SEC("lsm/inode_unlink")
int BPF_PROG(unlink, struct inode *dir, struct dentry *dentry)
{
	return gated_dentry(dentry, UNLINK);
}

SEC("lsm/inode_rename")
int BPF_PROG(rename, struct inode *from_dir, struct dentry *from, struct inode *to_dir, struct dentry *to)
{
	int refused = gated_dentry(from, RENAME);

	if (refused)
		return refused;
	return gated_dentry(to, RENAME);
}

SEC("lsm/inode_setxattr")
int BPF_PROG(setxattr, void *idmap, struct dentry *dentry)
{
	return gated_dentry(dentry, SETXATTR);
}

SEC("lsm/inode_removexattr")
int BPF_PROG(removexattr, void *idmap, struct dentry *dentry)
{
	return gated_dentry(dentry, SETXATTR);
}

// A word of user space's device number, as DM_* requests have it (new_decode_dev).
static __u32 decoded(__u64 dev)
{
	return KERNEL_DEV((dev & 0xfff00) >> 8, (dev & 0xff) | (dev >> 12 & 0xfff00));
}

// copy_name copies up to 131 bytes of a name, without what lies after its end.
static long name_byte(__u64 i, struct desk **of)
{
	struct desk *desk = *of;
	__u64 at = i;
	char c;

	if (!desk)
		return 1;
	asm volatile("" : "+r"(at));
	at &= TEXT_MAX - 1;
	c = desk->text[at];
	asm volatile("" : "+r"(at));
	if (at >= sizeof desk->name.text)
		return 1;
	if (desk->ended || !c) {
		desk->ended = 1;
		c = 0;
	}
	desk->name.text[at] = c;
	return 0;
}

// name_key makes the key of the text: a name, n, or a uuid, u. False where there is none.
static int make_name(struct desk *desk, char kind)
{
	desk->name.kind = kind;
	desk->ended = 0;
	bpf_loop(sizeof desk->name.text, name_byte, &desk, 0);
	return desk->name.text[0] != 0;
}

// find tells the device of the request, by what of uuid, name and number it has (the kernel
// takes one, and none where there are two; to rename it takes the name alone), and 0 where it
// is none that matters.
static __u32 find(struct desk *desk, int by_name)
{
	__u32 *device;
	__u32 number;

	if (by_name)
		goto name;
	__builtin_memcpy(desk->text, desk->request.uuid, DM_UUID_LEN);
	desk->text[DM_UUID_LEN] = 0;
	if (make_name(desk, 'u') && (device = bpf_map_lookup_elem(&names, &desk->name)))
		return *device;
name:
	__builtin_memcpy(desk->text, desk->request.name, DM_NAME_LEN);
	desk->text[DM_NAME_LEN] = 0;
	if (make_name(desk, 'n') && (device = bpf_map_lookup_elem(&names, &desk->name)))
		return *device;
	if (by_name)
		return 0;
	number = decoded(desk->request.dev);
	return number && bpf_map_lookup_elem(&devices, &number) ? number : 0;
}

// The digest is FNV-1a, over the target's name and its arguments with a NUL after each.
static long digest_byte(__u64 i, struct desk **of)
{
	struct desk *desk = *of;
	__u64 at = i;
	__u8 c;

	if (!desk)
		return 1;
	if (i >= desk->length || desk->ended)
		return 1;
	asm volatile("" : "+r"(at));
	at &= 2 * TEXT_MAX - 1;
	c = desk->text[at];
	if (!c)
		desk->ended = 1;
	desk->digest = (desk->digest ^ c) * 0x100000001b3ULL;
	return 0;
}

static void digest_text(struct desk *desk, __u32 length)
{
	desk->length = length;
	desk->ended = 0;
	bpf_loop(TEXT_MAX, digest_byte, &desk, 0);
	if (!desk->ended)
		desk->wrong = 1;
}

// leads_nowhere: the targets "error" and "zero" have no device below.
static int leads_nowhere(const char *type)
{
	return (type[0] == 'e' && type[1] == 'r' && type[2] == 'r' && type[3] == 'o' && type[4] == 'r' && !type[5]) ||
	       (type[0] == 'z' && type[1] == 'e' && type[2] == 'r' && type[3] == 'o' && !type[4]);
}

// judge_row looks at one row of the table offered: one that must be as it was, is it?
static long judge_row(__u64 i, struct desk **of)
{
	struct desk *desk = *of;
	struct row *row;
	__u64 length;

	if (!desk)
		return 1;
	if (desk->wrong)
		return 1;
	if (desk->at + sizeof desk->row > desk->request.data_size ||
	    bpf_copy_from_user(&desk->row, sizeof desk->row, (void *)(desk->user + desk->at))) {
		desk->wrong = 1;
		return 1;
	}
	desk->row_key.start = desk->row.start;
	desk->row_key.device = desk->device;
	desk->row_key.zero = 0;
	row = bpf_map_lookup_elem(&rows, &desk->row_key);
	if (row) {
		desk->digest = 0xcbf29ce484222325ULL;
		__builtin_memcpy(desk->text, desk->row.type, sizeof desk->row.type);
		desk->text[sizeof desk->row.type] = 0;
		digest_text(desk, sizeof desk->row.type + 1);
		length = desk->request.data_size - desk->at - sizeof desk->row;
		if (length > TEXT_MAX)
			length = TEXT_MAX;
		asm volatile("" : "+r"(length));
		if (length > TEXT_MAX)
			length = TEXT_MAX;
		if (bpf_copy_from_user(desk->text, length, (void *)(desk->user + desk->at + sizeof desk->row)))
			desk->wrong = 1;
		digest_text(desk, length);
		if (desk->digest != row->digest || desk->row.start + desk->row.length < row->end)
			desk->wrong = 1;
		desk->matched++;
	}
	if (desk->row.start < desk->needed && leads_nowhere(desk->row.type))
		desk->wrong = 1;
	desk->end = desk->row.start + desk->row.length;
	desk->at += desk->row.next;
	return 0;
}

// judge_table: a new table may be loaded where every row that matters is as it was. Rows
// follow one another in a table that the kernel takes, so one that is found by its first
// sector, and is as long as it must be, is what the mapping stands on. Of the host device
// the rows matter, since the mapping's go past it; of a device that the mapping's rows name
// only how far it reaches: whoever moves what it shows moves it for the mapping as well.
static int judge_table(struct desk *desk, struct device *device)
{
	if (desk->request.target_count > ROWS_MAX)
		return 0;
	desk->at = desk->request.data_start;
	desk->end = 0;
	desk->needed = device->end;
	desk->matched = 0;
	desk->wrong = 0;
	bpf_loop(desk->request.target_count, judge_row, &desk, 0);
	return !desk->wrong && desk->matched == device->rows && desk->end >= device->end;
}

// rename_below: the device keeps its number and its table, so it may have another name,
// which is remembered. Should the kernel refuse the name, it stays remembered until
// dmloop looks at the list the next time.
static int rename_below(struct desk *desk, __u32 device)
{
	__u64 start = desk->request.data_start;
	__u64 length = desk->request.data_size - start;
	char kind = desk->request.flags & DM_UUID_FLAG ? 'u' : 'n';
	__u64 *learnt;

	if (start > desk->request.data_size)
		return 0;
	if (length > sizeof desk->name.text)
		length = sizeof desk->name.text;
	asm volatile("" : "+r"(length));
	if (length > sizeof desk->name.text)
		length = sizeof desk->name.text;
	desk->text[sizeof desk->name.text - 1] = 0;
	if (bpf_copy_from_user(desk->text, length, (void *)(desk->user + start)))
		return 0;
	asm volatile("" : "+r"(length));
	if (length < sizeof desk->name.text)
		desk->text[length] = 0;
	if (!make_name(desk, kind))
		return 1; // no name: the kernel refuses it
	learnt = counter(LEARNT);
	if (!learnt)
		return 0;
	__sync_fetch_and_add(learnt, 1);
	return !bpf_map_update_elem(&names, &desk->name, &device, BPF_ANY);
}

// guards_devices: without any, nobody needs to be refused anything about devices.
static int guards_devices(void)
{
	__u64 *count = counter(DEVICES);

	return count && *count;
}

static int dm_ioctl(__u32 number, unsigned long arg)
{
	struct device *device;
	struct desk *desk;
	__u32 dev;

	if (number != DM_REMOVE_ALL && number != DM_DEV_REMOVE && number != DM_DEV_RENAME && number != DM_TABLE_LOAD)
		return 0;
	if (!guards_devices() || is_own())
		return 0;
	if (number == DM_REMOVE_ALL)
		return refuse(DM_WIPE, 0, 0);
	desk = bpf_task_storage_get(&desks, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!desk)
		return refuse(number == DM_TABLE_LOAD ? DM_LOAD : DM_REMOVE, 0, 0);
	if (bpf_copy_from_user(&desk->request, sizeof desk->request, (void *)arg))
		return 0; // the kernel cannot read it either
	dev = find(desk, number == DM_DEV_RENAME);
	if (!dev)
		return 0;
	device = bpf_map_lookup_elem(&devices, &dev);
	if (!device || !(device->kinds & (OWN | BELOW)))
		return 0;
	if (device->kinds & OWN)
		return refuse(number == DM_TABLE_LOAD ? DM_LOAD : number == DM_DEV_RENAME ? DM_RENAME : DM_REMOVE, 0, dev);
	if (is_allowed(dev))
		return 0;
	desk->user = arg;
	desk->device = dev;
	if (number == DM_DEV_RENAME)
		return rename_below(desk, dev) ? 0 : refuse(DM_RENAME, 0, dev);
	if (number == DM_TABLE_LOAD)
		return judge_table(desk, device) ? 0 : refuse(DM_LOAD, 0, dev);
	return refuse(DM_REMOVE, 0, dev);
}

// blkpg: a partition that carries a mapping stays, and gets no shorter.
static int blkpg(__u32 disk, unsigned long arg)
{
	struct blkpg_request request;
	struct blkpg_part part;
	struct part_key key;
	__u64 *least;

	if (bpf_copy_from_user(&request, sizeof request, (void *)arg) || request.op == BLKPG_ADD_PARTITION)
		return 0;
	if (bpf_copy_from_user(&part, sizeof part, (void *)request.data))
		return 0;
	key.disk = disk;
	key.number = part.number;
	least = bpf_map_lookup_elem(&parts, &key);
	if (!least)
		return 0;
	if (request.op == 3 && part.length >= 0 && (__u64)part.length >= *least)
		return 0;
	return is_own() || is_allowed(disk) ? 0 : refuse(PARTITION, 0, disk);
}

static int block_ioctl(struct inode *inode, __u32 cmd, unsigned long arg, int compat)
{
	__u32 dev = inode->i_rdev;
	struct device *device = bpf_map_lookup_elem(&devices, &dev);

	if (!device)
		return 0;
	if (device->kinds & DISK && cmd == BLKPG)
		return compat ? refuse(PARTITION, 0, dev) : blkpg(dev, arg);
	if (device->kinds & LOOP && (cmd == LOOP_SET_STATUS || cmd == LOOP_SET_STATUS64 || cmd == LOOP_CHANGE_FD))
		return is_own() || is_allowed(dev) ? 0 : refuse(LOOP_CHANGE, 0, dev);
	return 0;
}

SEC("lsm.s/file_ioctl")
int BPF_PROG(file_ioctl, struct file *file, unsigned int cmd, unsigned long arg)
{
	struct inode *inode = file->f_inode;
	__u16 type = inode->i_mode & S_IFMT;

	if (type == S_IFCHR)
		return inode->i_rdev == DM_CONTROL && IOCTL_TYPE(cmd) == DM_TYPE ? dm_ioctl(IOCTL_NUMBER(cmd), arg) : 0;
	if (type == S_IFBLK)
		return cmd == BLKPG || cmd >> 8 == 0x4c ? block_ioctl(inode, cmd, arg, 0) : 0;
	return gated(inode, IOCTL);
}

// 32-bit programs on a 64-bit kernel, where they have a hook of their own: it may not wait for
// a page of theirs, so nothing can be judged.
SEC("lsm/file_ioctl_compat")
int BPF_PROG(file_ioctl_compat, struct file *file, unsigned int cmd, unsigned long arg)
{
	struct inode *inode = file->f_inode;
	__u16 type = inode->i_mode & S_IFMT;
	__u32 number = IOCTL_NUMBER(cmd);

	if (type == S_IFCHR) {
		if (inode->i_rdev != DM_CONTROL || IOCTL_TYPE(cmd) != DM_TYPE || !guards_devices() || is_own())
			return 0;
		if (number == DM_REMOVE_ALL)
			return refuse(DM_WIPE, 0, 0);
		if (number == DM_DEV_REMOVE || number == DM_DEV_RENAME || number == DM_TABLE_LOAD)
			return refuse(number == DM_TABLE_LOAD ? DM_LOAD : number == DM_DEV_RENAME ? DM_RENAME : DM_REMOVE, 0, 0);
		return 0;
	}
	if (type == S_IFBLK)
		return cmd == BLKPG || cmd >> 8 == 0x4c ? block_ioctl(inode, cmd, arg, 1) : 0;
	return gated(inode, IOCTL);
}

// What a process of root's asks for by running "enter": of itself only, since it is run in
// the process's own time. This structure is for ever, so that every dmloop can enter every gate.
struct right {
	__u32 op; // 1: be dmloop's own, 2: no more; 3: have the right to a device, 4: no more
	__u32 device;
};

SEC("syscall")
int enter(struct right *right)
{
	struct process p;
	__u32 device = right->device;

	process_of(bpf_get_current_task_btf(), &p);
	switch (right->op) {
	case 1:
		return bpf_map_update_elem(&own, &p, &device, BPF_ANY);
	case 2:
		return bpf_map_delete_elem(&own, &p);
	case 3:
		return bpf_map_update_elem(&allowed, &p, &device, BPF_ANY);
	case 4:
		return bpf_map_delete_elem(&allowed, &p);
	}
	return -EPERM;
}
