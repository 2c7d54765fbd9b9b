package vm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// unpackImage takes the kernel out of the packed image in dir and writes it as
// dir/vmlinux. Done once here, it need not be done by an emulated processor at
// every boot, where it takes a third of the time.
func unpackImage(dir string) error {
	for _, glob := range []string{"boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"} {
		found, err := filepath.Glob(filepath.Join(dir, glob))
		if err != nil {
			return err
		}
		if len(found) != 1 {
			continue
		}
		image, err := os.ReadFile(found[0])
		if err != nil {
			return err
		}
		kernel := image
		if !plainArm64(image) {
			if kernel, err = UnpackKernel(image); err != nil {
				return fmt.Errorf("%s: %w", found[0], err)
			}
		}
		return os.WriteFile(filepath.Join(dir, "vmlinux"), kernel, 0o644)
	}
	return fmt.Errorf("no kernel image in %s", dir)
}

// plainArm64 reports whether image is a kernel of arm64 that nothing has packed, by the
// magic number of its header (Documentation/arch/arm64/booting.rst).
func plainArm64(image []byte) bool {
	const at, magic = 56, "ARMd"
	return len(image) > at+len(magic) && string(image[at:at+len(magic)]) == magic
}

// packers are the formats of Debian's kernels: first bytes and unpacker.
var packers = []struct {
	magic   string
	command []string
}{
	{"\xfd7zXZ\x00", []string{"xz", "-dc"}},
	{"\x28\xb5\x2f\xfd", []string{"zstd", "-dc"}},
}

// UnpackKernel unpacks the kernel that lies somewhere in image. What follows the
// packed data makes the unpackers complain, so only their output counts.
func UnpackKernel(image []byte) ([]byte, error) {
	for _, p := range packers {
		for rest := image; ; rest = rest[1:] {
			at := bytes.Index(rest, []byte(p.magic))
			if at < 0 {
				break
			}
			rest = rest[at:]
			cmd := exec.Command(p.command[0], p.command[1:]...)
			cmd.Stdin = bytes.NewReader(rest)
			if out, _ := cmd.Output(); wholeELF(out) {
				return out, nil
			}
		}
	}
	return nil, fmt.Errorf("no packed kernel in %d bytes", len(image))
}

// wholeELF reports whether data is an ELF file with nothing cut off.
func wholeELF(data []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return false
	}
	for _, s := range f.Sections {
		if s.Type != elf.SHT_NOBITS && s.Offset+s.FileSize > uint64(len(data)) {
			return false
		}
	}
	return true
}
