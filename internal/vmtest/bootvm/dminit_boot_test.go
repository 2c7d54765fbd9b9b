//go:build boot

package bootvm

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runUML runs a User Mode Linux kernel to its end and returns what it has printed.
func runUML(t *testing.T, kernel string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, kernel, append([]string{"mem=512M", "umid=g", "uml_dir=" + dir + "/", "con=null", "con0=null,fd:1", "panic=-1"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Run(); err != nil {
		t.Logf("%s ended: %v", filepath.Base(kernel), err)
	}
	return strings.ReplaceAll(out.String(), "\r", "")
}

// dmInitSetUp runs as process 1 with the host's tree as root. It installs a root file
// system of one program into an image on /dev/ubda1, and writes the kernel's
// parameters to /dev/ubdb. The parameters also have to be right for dmsetup.
const dmInitSetUp = `#!/bin/sh
fail() { echo "FAILED: $*"; poweroff -f; echo o >/proc/sysrq-trigger; sleep 100; }
set -e
trap 'fail line $LINENO' EXIT
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t tmpfs mnt /mnt
mkdir /mnt/host /mnt/root
DMLOOP shim /dev/ubda1 host
mkfs.ext4 -q -F /dev/mapper/host
mount /dev/mapper/host /mnt/host
DMLOOP create /mnt/host/root.img 24M
DMLOOP map --no-guard /mnt/host/root.img
mkfs.ext4 -q -F -E nodiscard -b 4096 /dev/mapper/root 4096
mount /dev/mapper/root /mnt/root
mkdir /mnt/root/bin /mnt/root/dev /mnt/root/proc /mnt/root/sys /mnt/root/host
cp /bin/busybox /mnt/root/bin/
cat >/mnt/root/init <<'END'
#!/bin/busybox sh
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs dev /dev 2>/dev/null
echo "ROOT IS $($busybox sed -n 's,^\([^ ]*\) / .*,\1,p' /proc/mounts | $busybox tail -n 1) $($busybox cat /sys/block/dm-1/dm/name)"
$busybox mount -t ext4 /dev/dm-0 /host && echo "HOST HAS $($busybox ls /host | $busybox tr '\n' ' ')"
echo written >/host/later && $busybox umount /host && echo "HOST WRITTEN"
echo alive >/alive && $busybox sync && echo "ROOT WRITTEN"
$busybox poweroff -f
END
chmod +x /mnt/root/init
umount /mnt/root
verity=
if [ -n "VERITY" ]; then
	hash=$(veritysetup format --data-blocks=4096 --hash-offset=16777216 /dev/mapper/root /dev/mapper/root | sed -n 's/^Root hash:[[:space:]]*//p')
	verity="--verity-root-hash $hash --verity-hash-offset 16777216"
fi
DMLOOP boot cmdline root --device /dev/ubda1 $verity >/tmp/line
DMLOOP boot cmdline root --concise --device "$(lsblk -dno MAJ:MIN /dev/ubda1 | tr -d ' ')" >/tmp/concise
dmsetup remove --noudevsync root
umount /mnt/host
dmsetup remove --noudevsync host
dmsetup create --noudevsync --concise "$(cat /tmp/concise)"
dmsetup mknodes
mount -o ro /dev/mapper/root /mnt/root
test -x /mnt/root/init
umount /mnt/root
dmsetup remove --noudevsync root
dmsetup remove --noudevsync host
echo "DMSETUP TOOK IT"
cat /tmp/line >/dev/ubdb
sync
trap - EXIT
echo "SET UP"
echo o >/proc/sysrq-trigger
sleep 100
`

// dmInit sets an image up and boots from it, and returns what both have printed.
func dmInit(t *testing.T, verity string) (setUp, booted string) {
	t.Helper()
	kernel := umlKernel(t)
	// In a folder that the guest sees: its /tmp and /run are its own.
	dir, err := os.MkdirTemp("/var/tmp", "dmloop-dminit-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	disk := PartitionedDisk(t, dir, "disk.raw", 128<<20)
	line := EmptyDisk(t, dir, "line.raw", 64<<10)
	script := filepath.Join(dir, "init")
	text := strings.NewReplacer("DMLOOP", filepath.Join(moduleRoot(t), "bin/dmloop"), "VERITY", verity).Replace(dmInitSetUp)
	write(t, script, []byte(text), 0o755)
	setUp = runUML(t, kernel, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init="+script, "ubd0="+disk, "ubd1="+line)
	if !strings.Contains(setUp, "SET UP") {
		t.Fatalf("the image was not set up:\n%s", setUp)
	}
	written, err := os.ReadFile(line)
	if err != nil {
		t.Fatal(err)
	}
	parameters := strings.TrimSpace(strings.Trim(string(written), "\x00"))
	t.Log(parameters)
	create, root, found := strings.Cut(parameters, " root=")
	if !found || !strings.HasPrefix(create, `dm-mod.create="`) {
		t.Fatalf("parameters: %q", parameters)
	}
	booted = runUML(t, kernel, create, "root="+root, "rootfstype=ext4", "rw", "init=/init", "ubd0="+disk)
	Fsck(t, disk)
	return setUp, booted
}

// TestDMInit boots a kernel with its root file system in a file and no initramfs.
func TestDMInit(t *testing.T) {
	setUp, booted := dmInit(t, "")
	contains(t, setUp, "DMSETUP TOOK IT")
	contains(t, booted, "dm-0 (host) is ready", "dm-1 (root) is ready", "ROOT IS /dev/root root", "HOST HAS ", "root.img", "HOST WRITTEN", "ROOT WRITTEN")
	t.Log(booted)
}

// TestDMInitVerity does so with dm-verity on top, and cannot write.
func TestDMInitVerity(t *testing.T) {
	_, booted := dmInit(t, "yes")
	contains(t, booted, "dm-2 (verity) is ready", "ROOT IS /dev/root", "HOST HAS ", "HOST WRITTEN", "Read-only file system")
	if strings.Contains(booted, "ROOT WRITTEN") {
		t.Errorf("verity was written to:\n%s", booted)
	}
}
