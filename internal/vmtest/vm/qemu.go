package vm

import (
	"fmt"
	"slices"
	"strings"
)

// The 9p mount tags of the host's root, and of the folder with a guest's own tools.
const (
	HostTag  = "host"
	ToolsTag = "tools"
)

// Processor is what qemu emulates on amd64. The kernel's code for AES multiplies without
// carry and does not ask whether it can.
const Processor = "Nehalem,+rdrand,+aes,+pclmulqdq"

// qemuCommand returns the argument vector that boots a Debian kernel. The
// kernel log goes to a file in dir, the channels to the inherited descriptors. tools is
// empty, or the folder that hides the host's programs.
func qemuCommand(c Config, dir string, arch architecture, k kernelFiles, initrd, tools, jobFile string) []string {
	accel, cpus := []string{"-accel", c.Accel}, c.CPUs
	if c.Virtual {
		accel, cpus = []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"}, 1
	}
	argv := slices.Concat([]string{arch.emulator}, arch.machine, accel)
	argv = append(argv,
		"-smp", fmt.Sprint(cpus), "-m", fmt.Sprint(c.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.image, "-initrd", initrd,
		"-append", strings.Join(slices.Concat(arch.kernel, qemuKernelArgs(jobFile), c.KernelArgs), " "),
		"-chardev", "file,id=klog,path="+kernelLog(dir), "-serial", "chardev:klog",
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
	)
	argv = append(argv, qemuShare(HostTag, "/")...)
	if tools != "" {
		argv = append(argv, qemuShare(ToolsTag, tools)...)
	}
	for i, name := range Channels {
		argv = append(argv,
			"-chardev", fmt.Sprintf("file,id=ch%d,path=/proc/self/fd/%d", i, i+3),
			"-device", fmt.Sprintf("virtserialport,chardev=ch%d,name=%s", i, name))
	}
	for i := range c.Disks {
		// The guest's disk need not outlive it, so no flush has to reach the host's disk.
		drive := fmt.Sprintf("file=%s,if=none,id=disk%d,format=raw,cache=unsafe,discard=unmap", diskFile(dir, i), i)
		if i == c.Disks-1 && c.DiskMBs > 0 {
			drive += fmt.Sprintf(",throttling.bps-total=%d", c.DiskMBs*1_000_000)
		}
		argv = append(argv, "-drive", drive,
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,logical_block_size=%d,physical_block_size=%d",
				i, c.SectorSize, max(c.SectorSize, 512)))
	}
	return argv
}

// qemuShare has the guest find a folder of the host under a tag, for reading.
func qemuShare(tag, folder string) []string {
	return []string{
		"-fsdev", fmt.Sprintf("local,id=%s,path=%s,security_model=none,readonly=on,multidevs=remap", tag, folder),
		"-device", fmt.Sprintf("virtio-9p-pci,fsdev=%s,mount_tag=%s", tag, tag),
	}
}

func qemuKernelArgs(jobFile string) []string {
	return []string{
		// A serial line costs time per character; process 1 raises the level again.
		"loglevel=5",
		// A broken kernel must end the guest, not hang it.
		"oops=panic", "panic=-1",
		// None of these helps a guest that lives for a minute.
		"mitigations=off", "nokaslr", "audit=0",
		JobVariable + "=" + jobFile,
	}
}

// qemuDisks names the disks as the guest sees them.
func qemuDisks(n int) []string {
	var names []string
	for i := range n {
		names = append(names, "/dev/vd"+string(rune('a'+i)))
	}
	return names
}
