package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// An architecture is a kind of machine that qemu emulates.
type architecture struct {
	name     string   // as Go and Debian call it
	emulator string   // qemu's program
	machine  []string // its options
	kernel   []string // for the kernel's command line
}

// amd64's processor is a plain one: each feature costs an emulated kernel time at boot.
// arm64's is the plainest of qemu's that knows pages of 16 KiB.
var (
	amd64 = architecture{"amd64", "qemu-system-x86_64", []string{"-cpu", Processor},
		[]string{"console=ttyS0", "no_timer_check", "tsc=reliable"}}
	arm64 = architecture{"arm64", "qemu-system-aarch64", []string{"-machine", "virt,gic-version=3", "-cpu", "cortex-a76"},
		[]string{"console=ttyAMA0"}}
)

// foreign reports whether this machine cannot run a's programs, so that the guest
// needs its own.
func (a architecture) foreign() bool { return a.name != runtime.GOARCH }

// GOARCH returns what the programs for a kernel have to be built for.
func GOARCH(kernel string) string {
	if src, ok := sources[kernel]; ok {
		return src.arch.name
	}
	return runtime.GOARCH
}

// firstProgram returns the program that becomes the guest's process 1: this one, or
// the runner built for the guest's architecture, in dir.
func firstProgram(a architecture, dir string) (string, error) {
	if !a.foreign() {
		return os.Executable()
	}
	path := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "dmloop/internal/cmd/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+a.name)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("the runner for %s: %w\n%s", a.name, err, out)
	}
	return path, nil
}
