package persist

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dmloop/internal/advice"
	"dmloop/internal/helper"
	"dmloop/internal/tab"
)

// Initramfs is what stands in one, as far as a shim under the root needs it.
type Initramfs struct {
	Path    string
	Program bool   // dmloop itself
	Hook    bool   // what runs it
	Tab     string // its copy of dmlooptab, empty when there is none
}

// lacks says what keeps an initramfs from making the plan's shim, or nothing.
func (p Plan) lacks(i Initramfs) string {
	table, err := tab.Parse(i.Tab)
	e, found := table.Find(p.Name)
	switch {
	case !i.Program:
		return "the program dmloop is not in it"
	case !i.Hook:
		return "nothing in it runs dmloop"
	case i.Tab == "":
		return "there is no dmlooptab in it"
	case err != nil:
		return "the dmlooptab in it cannot be read: " + err.Error()
	case !found || e.Kind != tab.Shim || !e.Initrd || e.Source != "UUID="+p.UUID:
		return "the dmlooptab in it does not have the line of the shim " + p.Name
	}
	return ""
}

// proveInitramfs looks into every initramfs that the machine may be booted with. Its maker
// is not believed: it may be switched off, and say that it has done its work.
func (m Machine) proveInitramfs(p Plan) error {
	if p.Maker == "" {
		return nil
	}
	m.Step("look into each initramfs")
	all, err := m.Initramfs(p.Maker)
	if err != nil {
		return err
	}
	again := advice.UpdateInitramfs.Of(strings.Join(p.Maker.Command(), " "))
	if len(all) == 0 {
		return &RefusedError{"no initramfs is found in /boot, and only an initramfs can make the shim of " + p.Point, again}
	}
	for _, i := range all {
		if lacks := p.lacks(i); lacks != "" {
			return &RefusedError{fmt.Sprintf("%s would not make the shim: %s; fstab is left as it is", i.Path, lacks), again}
		}
	}
	return nil
}

// images lists the initramfs images that a boot loader can choose: those of the kernels in
// the folder boot, or all where no kernel is there. A kernel without one is an error. Rescue
// images hold no configuration of this machine and are left out.
func images(boot string) ([]string, error) {
	kernels, err := filepath.Glob(filepath.Join(boot, "vmlinu[xz]-*"))
	if err != nil {
		return nil, err
	}
	var found []string
	for _, kernel := range kernels {
		_, version, _ := strings.Cut(filepath.Base(kernel), "-")
		if strings.HasPrefix(version, "0-rescue") {
			continue
		}
		path := filepath.Join(boot, "initrd.img-"+version)
		if !exists(path) {
			path = filepath.Join(boot, "initramfs-"+version+".img")
		}
		if !exists(path) {
			return nil, &RefusedError{fmt.Sprintf("the kernel %s has no initramfs beside it, and only an initramfs can make the shim", kernel), advice.RemoveKernel}
		}
		found = append(found, path)
	}
	if len(kernels) > 0 {
		return found, nil
	}
	for _, pattern := range []string{"initrd.img-*", "initramfs-*.img"} {
		more, err := filepath.Glob(filepath.Join(boot, pattern))
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// ReadInitramfs unpacks every initramfs in /boot with the maker's own tool and looks at what is
// in it. It needs room in /var/tmp for one at a time.
func ReadInitramfs(maker Maker) ([]Initramfs, error) {
	paths, err := images("/boot")
	if err != nil {
		return nil, err
	}
	var all []Initramfs
	for _, path := range paths {
		i, err := unpack(maker, path)
		if err != nil {
			return nil, fmt.Errorf("looking into %s: %w", path, err)
		}
		all = append(all, i)
	}
	return all, nil
}

func unpack(maker Maker, path string) (i Initramfs, err error) {
	dir, err := os.MkdirTemp("/var/tmp", "dmloop-initramfs-")
	if err != nil {
		return i, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	name, args := "unmkinitramfs", []string{path, dir}
	if maker == Dracut {
		name, args = "lsinitrd", []string{"--unpack", path}
	}
	cmd, err := helper.Command(context.Background(), name, args...)
	if err != nil {
		return i, err
	}
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return i, fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return look(path, dir)
}

// look finds in an unpacked initramfs what Initramfs tells. With microcode before it the
// main part is in a folder of its own.
func look(path, dir string) (Initramfs, error) {
	i := Initramfs{Path: path}
	roots, err := filepath.Glob(filepath.Join(dir, "main*"))
	if err != nil {
		return i, err
	}
	for _, root := range append(roots, dir) {
		in := func(names ...string) bool {
			for _, name := range names {
				if info, err := os.Lstat(filepath.Join(root, name)); err == nil && info.Mode().IsRegular() {
					return true
				}
			}
			return false
		}
		i.Program = i.Program || in("sbin/dmloop", "usr/sbin/dmloop", "usr/bin/dmloop")
		i.Hook = i.Hook || in("scripts/local-top/dmloop", "usr/lib/dracut/hooks/initqueue/finished/90-dmloop-finished.sh", "lib/dracut/hooks/initqueue/finished/90-dmloop-finished.sh",
			"var/lib/dracut/hooks/initqueue/finished/90-dmloop-finished.sh")
		if name := "etc/dmlooptab"; i.Tab == "" && in(name) {
			text, err := os.ReadFile(filepath.Join(root, name))
			if err != nil {
				return i, err
			}
			i.Tab = string(text)
		}
	}
	return i, nil
}
