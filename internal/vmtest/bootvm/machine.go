package bootvm

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest/vm"
)

// Machine is a guest that runs.
type Machine struct {
	t       testing.TB
	cmd     *exec.Cmd
	console *console
	stdin   *os.File
	agent   net.Conn
	reader  *bufio.Reader
	monitor string // socket of qemu's monitor or User Mode Linux's management console
	uml     bool
	calls   int
	gone    chan struct{}
}

// Boot says what a machine is started with.
type Boot struct {
	Kernel, Initrd string   // an empty Kernel is User Mode Linux
	Append         string   // kernel parameters besides the console's
	Disks          []string // raw files: /dev/vda and so on, /dev/ubda in User Mode Linux
}

// Patience bounds a boot on a busy machine: under emulation, and in User Mode Linux.
const (
	Patience    = 20 * time.Minute
	PatienceUML = 5 * time.Minute
)

// patience is the machine's own.
func (m *Machine) patience() time.Duration {
	if m.uml {
		return PatienceUML
	}
	return Patience
}

// memory of a machine.
const memory = "768M"

// Start starts a machine. It is killed when the test ends.
func Start(t testing.TB, b Boot) *Machine {
	t.Helper()
	dir := t.TempDir()
	b.Append += " " + os.Getenv(AppendVariable)
	m := &Machine{t: t, console: newConsole(t), monitor: filepath.Join(dir, "monitor"), uml: b.Kernel == "", gone: make(chan struct{})}
	ours, theirs := socketPair(t)
	if m.uml {
		m.cmd, m.monitor = umlCommand(t, b, dir), filepath.Join(dir, "g", "mconsole")
	} else {
		m.cmd = qemuCommand(b, m.monitor)
	}
	m.agent, m.reader = ours, bufio.NewReaderSize(ours, 1<<20)
	m.cmd.ExtraFiles = []*os.File{theirs}
	m.cmd.Stdout, m.cmd.Stderr = m.console, m.console
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	m.cmd.Stdin, m.stdin = in, out
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	release := func() {}
	if m.uml {
		runtime.LockOSThread()
		release, err = vm.OneCPU(m.cmd.Start)
		runtime.UnlockOSThread()
	} else {
		err = m.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	theirs.Close()
	go func() { _ = m.cmd.Wait(); release(); close(m.gone) }()
	if m.uml {
		go vm.KeepTime(m.cmd.Process, m.gone)
	}
	t.Cleanup(func() {
		m.Kill()
		out.Close()
		if t.Failed() {
			t.Logf("--- console ---\n%s\n--- end of console ---", m.console.tail(150))
		}
	})
	return m
}

// qemuCommand boots a Debian kernel. Descriptor 3 is the agent's port. The kernel is to
// end the machine when it panics, and an initramfs that would read panic= as well is to
// give its shell.
func qemuCommand(b Boot, monitor string) *exec.Cmd {
	argv := []string{
		"-accel", "tcg,thread=multi", "-cpu", vm.Processor, "-smp", "2", "-m", memory,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", b.Kernel, "-initrd", b.Initrd,
		"-append", "console=ttyS0 sysctl.kernel.panic=-1 oops=panic mitigations=off nokaslr audit=0 no_timer_check tsc=reliable " + b.Append,
		"-serial", "stdio", "-monitor", "unix:" + monitor + ",server=on,wait=off",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,fd=3", "-device", "virtserialport,chardev=agent,name=bootvm",
	}
	for i, disk := range b.Disks {
		argv = append(argv, "-drive", fmt.Sprintf("file=%s,if=none,id=disk%d,format=raw,cache=unsafe", disk, i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i))
	}
	return exec.Command("qemu-system-x86_64", argv...)
}

// umlCommand boots the kernel that uml.sh builds. The second of its consoles is the
// kernel's, and the one that an initramfs has its shell on. The sixth is the agent's
// port: nobody logs in there. The others are pseudo-terminals: one on /dev/null always
// has something to be read and can keep the kernel in its signal handler for good.
func umlCommand(t testing.TB, b Boot, dir string) *exec.Cmd {
	t.Helper()
	argv := []string{
		"mem=" + memory, "initrd=" + b.Initrd, "umid=g", "uml_dir=" + dir + "/",
		"console=tty1", "con=pts", "con1=fd:0,fd:1", "con5=fd:3,fd:3", "ssl=null", "sysctl.kernel.panic=-1", "bootvm=tty5",
	}
	for i, disk := range b.Disks {
		argv = append(argv, fmt.Sprintf("ubd%d=%s", i, disk))
	}
	cmd := exec.Command(umlKernel(t), append(argv, strings.Fields(b.Append)...)...)
	cmd.Env = append(os.Environ(), "TMPDIR=/dev/shm")
	return cmd
}

// socketPair returns both ends of the line to the agent.
func socketPair(t testing.TB) (ours net.Conn, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fds[0]), "agent")
	defer file.Close()
	if ours, err = net.FileConn(file); err != nil {
		t.Fatal(err)
	}
	return ours, os.NewFile(uintptr(fds[1]), "agent's port")
}

// WaitUp waits for the agent, which starts with multi-user.target.
func (m *Machine) WaitUp() {
	m.t.Helper()
	if err := m.agent.SetReadDeadline(time.Now().Add(m.patience())); err != nil {
		m.t.Fatal(err)
	}
	line, err := m.reader.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "READY" {
		m.t.Fatalf("the guest did not come up: %q, %v", line, err)
	}
}

// Run runs a script in the guest and returns its output and exit code.
func (m *Machine) Run(script string) (string, int) {
	m.t.Helper()
	m.calls++
	if err := m.agent.SetDeadline(time.Now().Add(m.patience())); err != nil {
		m.t.Fatal(err)
	}
	fmt.Fprintf(m.agent, "%d %s\n", m.calls, base64.StdEncoding.EncodeToString([]byte(script)))
	line, err := m.reader.ReadString('\n')
	f := strings.Fields(line)
	if err != nil || len(f) < 2 || f[0] != strconv.Itoa(m.calls) {
		m.t.Fatalf("no answer to %q: %q, %v", script, line, err)
	}
	code, err := strconv.Atoi(f[1])
	if err != nil {
		m.t.Fatal(err)
	}
	if len(f) == 2 {
		return "", code
	}
	out, err := base64.StdEncoding.DecodeString(f[2])
	if err != nil {
		m.t.Fatal(err)
	}
	return string(out), code
}

// Must runs a script that has to succeed and returns its output without its end.
func (m *Machine) Must(script string) string {
	m.t.Helper()
	out, code := m.Run("set -e\n" + script)
	if code != 0 {
		m.t.Fatalf("exit code %d of:\n%s\n%s", code, script, out)
	}
	return strings.TrimSpace(out)
}

// Type types on the console.
func (m *Machine) Type(text string) {
	m.t.Helper()
	if _, err := m.stdin.WriteString(text); err != nil {
		m.t.Fatal(err)
	}
}

// Console returns what the console has shown.
func (m *Machine) Console() string { return m.console.text() }

// WaitConsole waits until the console has shown text.
func (m *Machine) WaitConsole(text string) {
	m.t.Helper()
	for deadline := time.Now().Add(m.patience()); !strings.Contains(m.Console(), text); time.Sleep(200 * time.Millisecond) {
		select {
		case <-m.gone:
			m.t.Fatalf("the guest ended without %q on its console", text)
		default:
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%q did not appear on the console", text)
		}
	}
}

// PowerOff shuts the guest down in order and waits for its end.
func (m *Machine) PowerOff() {
	m.t.Helper()
	fmt.Fprintf(m.agent, "0 %s\n", base64.StdEncoding.EncodeToString([]byte("systemctl --no-block poweroff")))
	m.WaitEnd()
}

// WaitEnd waits until the guest has ended by itself.
func (m *Machine) WaitEnd() {
	m.t.Helper()
	select {
	case <-m.gone:
	case <-time.After(m.patience()):
		m.t.Fatal("the guest did not end")
	}
}

// Kill is a power cut.
func (m *Machine) Kill() {
	select {
	case <-m.gone:
	default:
		_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
		<-m.gone
	}
	m.agent.Close()
}

// HotPlug adds a disk to the running guest, as the one with this index.
func (m *Machine) HotPlug(file string, index int) {
	m.t.Helper()
	if m.uml {
		m.manage(fmt.Sprintf("config ubd%d=%s", index, file))
		return
	}
	conn, err := net.Dial("unix", m.monitor)
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "drive_add 0 file=%s,if=none,id=plugged,format=raw,cache=unsafe\ndevice_add virtio-blk-pci,drive=plugged,id=plugged\n", file)
	time.Sleep(time.Second)
}

// manage sends a command to User Mode Linux's management console: a datagram of magic
// number, version, length and 512 bytes of text, answered by error, more, length and
// text (arch/um/drivers/mconsole.h).
func (m *Machine) manage(command string) {
	m.t.Helper()
	const textSize = 512
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer unix.Close(fd)
	request := make([]byte, 12+textSize)
	binary.NativeEndian.PutUint32(request, 0xcafebabe)
	binary.NativeEndian.PutUint32(request[4:], 2)
	binary.NativeEndian.PutUint32(request[8:], uint32(copy(request[12:12+textSize-1], command)))
	reply := make([]byte, 12+textSize)
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrUnix{}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}),
		unix.Sendto(fd, request, 0, &unix.SockaddrUnix{Name: m.monitor}))
	if err != nil {
		m.t.Fatalf("%s: %v", command, err)
	}
	n, _, err := unix.Recvfrom(fd, reply, 0)
	if err != nil || n < 12 || binary.NativeEndian.Uint32(reply) != 0 {
		m.t.Fatalf("%s: %v, %q", command, err, reply[:max(n, 0)])
	}
}

// AppendVariable names the environment variable with more kernel parameters.
const AppendVariable = "DMLOOP_BOOT_APPEND"

// LogVariable names the environment variable with a folder that keeps the consoles of
// all machines, to be watched while they run.
const LogVariable = "DMLOOP_BOOT_LOG"

// console keeps all that a guest writes.
type console struct {
	mu  sync.Mutex
	buf bytes.Buffer
	log *os.File // may be nil
}

func newConsole(t testing.TB) *console {
	c := &console{}
	if dir := os.Getenv(LogVariable); dir != "" {
		f, err := os.CreateTemp(dir, strings.ReplaceAll(t.Name(), "/", "-")+"-*.log")
		if err != nil {
			t.Fatal(err)
		}
		c.log = f
	}
	return c
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log != nil {
		if _, err := c.log.Write(p); err != nil {
			return 0, err
		}
	}
	return c.buf.Write(p)
}

func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

func (c *console) tail(lines int) string {
	all := strings.Split(c.text(), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
