package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// bootModules are what stands between a kernel and the host's files.
var bootModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "virtio_blk"}

// loadOrder returns the files of the named modules and of all they depend on,
// each after its own dependencies, relative to modulesDir. Modules that are
// built into the kernel have no file; a name that is neither is an error.
func loadOrder(modulesDir string, names []string) ([]string, error) {
	dep, err := os.ReadFile(filepath.Join(modulesDir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(modulesDir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	return orderFrom(string(dep), string(builtin), names)
}

// orderFrom is loadOrder on the text of modules.dep and modules.builtin.
func orderFrom(dep, builtin string, names []string) ([]string, error) {
	needs := map[string][]string{} // file -> files
	file := map[string]string{}    // module name -> file
	for line := range strings.Lines(dep) {
		path, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			return nil, fmt.Errorf("modules.dep: no colon in %q", line)
		}
		needs[path] = strings.Fields(rest)
		file[moduleName(path)] = path
	}
	inKernel := map[string]bool{}
	for _, path := range strings.Fields(builtin) {
		inKernel[moduleName(path)] = true
	}

	var order []string
	seen := map[string]bool{}
	var visit func(path string)
	visit = func(path string) {
		if seen[path] {
			return
		}
		seen[path] = true
		for _, need := range needs[path] {
			visit(need)
		}
		order = append(order, path)
	}
	for _, name := range names {
		switch {
		case file[name] != "":
			visit(file[name])
		case !inKernel[name]:
			return nil, fmt.Errorf("this kernel has no module %s", name)
		}
	}
	return order, nil
}

// moduleName is the name of the module in a file, with underscores only.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readModule returns a module's content, unpacked.
func readModule(path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(path)
	}
	out, err := exec.Command("xz", "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("xz -dc %s: %w", path, err)
	}
	return out, nil
}
