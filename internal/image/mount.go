package image

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/kernlist"
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

// refused returns what keeps a file system that is mounted so from lending blocks, as
// the end of a sentence about it, and what to do, or "". docs/rules.md lists all options.
func (m Mount) refused() (reason string, remedy extents.Remedy) {
	// ext4 shows noload as norecovery, and f2fs has disable_roll_forward, too.
	for _, option := range []string{"norecovery", "noload", "disable_roll_forward"} {
		if m.HasSuperOption(option) {
			return unrecovered(option)
		}
	}
	if rescue := m.superValue("rescue"); rescue != "" { // btrfs, nologreplay among them
		return unrecovered("rescue=" + rescue)
	}
	if value := m.superValue("checkpoint"); strings.HasPrefix(value, "disable") { // f2fs, with the space that it may hide
		return "is mounted with checkpoint=disable: after a power cut it goes back to what it was before, without the files that were made since",
			advice.EnableCheckpoint.Of(m.Point)
	}
	if m.Type == "ntfs3" && m.HasSuperOption("force") {
		return "is mounted although it is marked as not unmounted in order (force)", advice.CheckAndMount
	}
	for _, option := range []string{"emergency_ro", "shutdown"} { // ext4 since about 6.14
		if m.HasSuperOption(option) {
			return fmt.Sprintf("has stopped after an error (%s)", option), advice.CheckAndMount
		}
	}
	return "", usual
}

func unrecovered(option string) (reason string, remedy extents.Remedy) {
	return fmt.Sprintf("is mounted without recovery (%s), and by the journal that was not read its blocks may be another file's", option),
		advice.MountWithoutOption
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

// Mounts lists the mounts of this mount namespace below our root directory. Of those
// at one place the last one counts.
func Mounts() ([]Mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(text))
}

func parseMounts(text string) ([]Mount, error) {
	lines, err := kernlist.ParseMounts(text)
	if err != nil {
		return nil, err
	}
	mounts := make([]Mount, 0, len(lines))
	for _, l := range lines {
		mounts = append(mounts, Mount{
			ID: l.ID, Type: l.Type, Source: l.Source, Device: dmtable.Device{Major: l.Major, Minor: l.Minor},
			Root: l.Root, Point: l.Point, Options: l.Options, SuperOptions: l.SuperOptions,
		})
	}
	return mounts, nil
}

// MountsOf lists the mounts of the file systems with this device number.
func MountsOf(dev dmtable.Device) ([]Mount, error) {
	mounts, err := Mounts()
	return slices.DeleteFunc(mounts, func(m Mount) bool { return m.Device != dev }), err
}

// MountOf returns the mount that a descriptor of any kind was opened through; one that is
// not listed has no Point.
func MountOf(fd int) (Mount, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return Mount{}, os.NewSyscallError("statx", err)
	}
	m, _, err := readMount(st.Mnt_id)
	return m, err
}

// readMount finds the mount with the id that statx(2) tells. It reports false when
// there is none: mounts outside our root directory or mount namespace are not listed.
func readMount(id uint64) (Mount, bool, error) {
	mounts, err := Mounts()
	if err != nil {
		return Mount{}, false, err
	}
	m, found := findMount(mounts, id)
	return m, found, nil
}

func findMount(mounts []Mount, id uint64) (Mount, bool) {
	for _, m := range mounts {
		if m.ID == id {
			return m, true
		}
	}
	return Mount{ID: id}, false
}
