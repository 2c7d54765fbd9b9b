package image

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"dmloop/dmtable"

	"github.com/moby/sys/mountinfo"
)

// Mount is the line of /proc/self/mountinfo that a file was opened through.
type Mount struct {
	ID           uint64         `json:"id"`
	Type         string         `json:"type"`
	Source       string         `json:"source"`
	Device       dmtable.Device `json:"device"`
	Root         string         `json:"root"`  // directory of the file system that is mounted
	Point        string         `json:"point"` // where it is mounted
	Options      []string       `json:"options"`
	SuperOptions []string       `json:"superOptions"`
}

// HasSuperOption reports whether the file system was mounted with exactly option.
func (m Mount) HasSuperOption(option string) bool { return slices.Contains(m.SuperOptions, option) }

// unrecovered returns the option by which the file system was mounted without a look at
// its journal, as mountinfo shows it, or "".
func (m Mount) unrecovered() string {
	// ext4 shows noload as norecovery, and f2fs has the last one, too.
	for _, option := range []string{"norecovery", "noload", "disable_roll_forward"} {
		if m.HasSuperOption(option) {
			return option
		}
	}
	if rescue := m.superValue("rescue"); rescue != "" { // btrfs, nologreplay among them
		return "rescue=" + rescue
	}
	return ""
}

// superValue returns the value of the super option name=value, or "".
func (m Mount) superValue(name string) string {
	for _, option := range m.SuperOptions {
		if value, ok := strings.CutPrefix(option, name+"="); ok {
			return value
		}
	}
	return ""
}

// readMount finds the mount with the id that statx(2) tells. It reports false when
// there is none: mounts outside our root directory or mount namespace are not listed.
func readMount(id uint64) (Mount, bool, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Mount{}, false, err
	}
	defer f.Close()
	return findMount(f, id)
}

func findMount(r io.Reader, id uint64) (Mount, bool, error) {
	infos, err := mountinfo.GetMountsFromReader(r, func(info *mountinfo.Info) (skip, stop bool) {
		match := uint64(info.ID) == id
		return !match, match
	})
	if err != nil {
		return Mount{}, false, fmt.Errorf("mountinfo: %w", err)
	}
	if len(infos) == 0 {
		return Mount{ID: id}, false, nil
	}
	info := infos[0]
	return Mount{
		ID:           id,
		Type:         info.FSType,
		Source:       info.Source,
		Device:       dmtable.Device{Major: uint32(info.Major), Minor: uint32(info.Minor)},
		Root:         info.Root,
		Point:        info.Mountpoint,
		Options:      strings.Split(info.Options, ","),
		SuperOptions: strings.Split(info.VFSOptions, ","),
	}, true, nil
}
