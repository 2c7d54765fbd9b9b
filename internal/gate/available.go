package gate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Lack is why the gate cannot be in force on this machine.
type Lack struct {
	Message   string
	Parameter string // for the kernel's command line, which would mend it; may be empty
	Err       error  // may be nil
}

func (l *Lack) Error() string {
	if l.Err != nil {
		return fmt.Sprintf("%s: %v", l.Message, l.Err)
	}
	return l.Message
}

func (l *Lack) Unwrap() error { return l.Err }

// Off has this process do without the gate. Tests set it, of what comes in its place.
var Off bool

const vmlinux = "/sys/kernel/btf/vmlinux"

// Unavailable returns a *Lack where the kernel, or what this process may do, stands
// in the way of a gate, and nil where Load can be expected to succeed.
func Unavailable() error {
	if Off {
		return &Lack{Message: "it is switched off"}
	}
	if _, err := os.Stat(vmlinux); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return &Lack{Message: "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"}
		}
		return &Lack{Message: "the kernel's BTF cannot be read", Err: err}
	}
	modules, err := securityModules()
	if err != nil {
		return &Lack{Message: "the list of the kernel's security modules cannot be read", Err: err}
	}
	if slices.Contains(modules, "bpf") {
		return nil
	}
	if known, err := os.ReadFile(vmlinux); err == nil && !bytes.Contains(known, []byte("bpf_lsm_file_open\x00")) {
		return &Lack{Message: "the kernel was built without CONFIG_BPF_LSM"}
	}
	return &Lack{Message: "bpf is not in lsm=", Parameter: "lsm=" + strings.Join(append(modules, "bpf"), ",")}
}

// securityModules reads the list from a mount of securityfs of its own, which nobody sees:
// an initramfs has none.
func securityModules() ([]string, error) {
	text, err := os.ReadFile("/sys/kernel/security/lsm")
	if errors.Is(err, fs.ErrNotExist) {
		text, err = unseen("securityfs", "lsm")
	}
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == ',' || r == '\n' }), nil
}

func unseen(filesystem, name string) ([]byte, error) {
	context, err := unix.Fsopen(filesystem, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen "+filesystem, err)
	}
	defer unix.Close(context) //nolint:errcheck // nothing is lost
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, os.NewSyscallError("fsconfig "+filesystem, err)
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount "+filesystem, err)
	}
	defer unix.Close(mount) //nolint:errcheck // nothing is lost
	fd, err := unix.Openat(mount, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open "+name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() //nolint:errcheck // nothing is lost
	return io.ReadAll(f)
}
