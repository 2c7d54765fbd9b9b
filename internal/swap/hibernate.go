package swap

import (
	"fmt"
	"io/fs"
	"os"
	"strings"

	"dmloop/internal/kernlist"
)

// Hibernation says why suspending to disk might choose a claimed image: without
// a device to resume from the kernel takes the first swap area that it has
// (find_first_swap in mm/swapfile.c), and fails there, for it is one page.
type Hibernation struct {
	Configured bool
	Where      string // "resume=... on the kernel command line", "/sys/power/resume is 8:2"
}

// HibernationConfigured reports whether this system was told where to suspend to.
func HibernationConfigured() (Hibernation, error) { return hibernation(os.DirFS("/")) }

func hibernation(root fs.FS) (Hibernation, error) {
	line, err := fs.ReadFile(root, "proc/cmdline")
	if err != nil {
		return Hibernation{}, err
	}
	for _, w := range kernlist.Split(strings.TrimSuffix(string(line), "\n")) {
		if strings.HasPrefix(w, "resume=") {
			return Hibernation{true, w + " on the kernel command line"}, nil
		}
	}
	dev, err := fs.ReadFile(root, "sys/power/resume")
	if os.IsNotExist(err) { // kernel without CONFIG_HIBERNATION
		return Hibernation{}, nil
	}
	if err != nil {
		return Hibernation{}, err
	}
	if d := strings.TrimSpace(string(dev)); d != "" && d != "0:0" {
		return Hibernation{true, fmt.Sprintf("/sys/power/resume is %s", d)}, nil
	}
	return Hibernation{}, nil
}
