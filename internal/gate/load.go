package gate

import (
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// sums are those of the source and the objects, from which no sum is made at every start.
//
//go:embed gate.sum
var sums []byte

var programsSum = sync.OnceValue(func() string {
	sum := sha256.Sum256(sums)
	return fmt.Sprintf("%x", sum[:6])
})

// hooks are the kernel's functions that the programs are attached to. One that an older kernel
// does not have is about something that this kernel cannot do.
var hooks = map[string]struct {
	function string
	since    bool // not on every kernel from 6.1
}{
	gateProgFileOpen:        {"bpf_lsm_file_open", false},
	gateProgSetattr:         {"bpf_lsm_inode_setattr", false},
	gateProgSetattr61:       {"bpf_lsm_inode_setattr", false},
	gateProgFileSetattr:     {"bpf_lsm_inode_file_setattr", true},
	gateProgUnlink:          {"bpf_lsm_inode_unlink", false},
	gateProgRename:          {"bpf_lsm_inode_rename", false},
	gateProgSetxattr:        {"bpf_lsm_inode_setxattr", false},
	gateProgRemovexattr:     {"bpf_lsm_inode_removexattr", false},
	gateProgFileIoctl:       {"bpf_lsm_file_ioctl", false},
	gateProgFileIoctlCompat: {"bpf_lsm_file_ioctl_compat", true},
}

// Load puts the gate in force, or this version's programs in the place of another's, which
// go on until the new ones are in force. Where the gate is in force already it does nothing.
func Load() error {
	if links, err := sets("links-"); err == nil && len(links) == 1 && links[0] == linksFolder() {
		return nil
	}
	if why := Unavailable(); why != nil {
		return why
	}
	if err := mountBPF(); err != nil {
		return err
	}
	// The folder goes with the last mapping, which another process may be about to unmap.
	for tries := 10; ; tries-- {
		err := loadInto()
		if !errors.Is(err, ErrNotLoaded) || tries == 0 {
			return err
		}
	}
}

func loadInto() error {
	if err := os.Mkdir(Folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making a place for the gate: %w", err)
	}
	folder, err := os.Open(Folder)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotLoaded
	}
	if err != nil {
		return err
	}
	g := Gate{lock: folder}
	return errors.Join(g.locked(load), g.Close())
}

func load() error {
	maps, err := sets("maps-")
	if err != nil {
		return err
	}
	if len(maps) > 1 || len(maps) == 1 && maps[0] != mapsFolder() {
		return ErrOtherFormat
	}
	if _, err := os.Stat(linksFolder()); err == nil {
		return dropOthers()
	}
	if err := dropUnfinished(); err != nil {
		return err
	}
	spec, err := loadGate()
	if err != nil {
		return err
	}
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("reading what the kernel says of itself (BTF): %w", err)
	}
	if err := forThisKernel(spec, kernel); err != nil {
		return err
	}
	// Maps stay in the collection's care, closed with it; what is pinned goes on.
	shared := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range shared {
			_ = m.Close()
		}
	}()
	if len(maps) == 1 {
		for name := range spec.Maps {
			if shared[name], err = ebpf.LoadPinnedMap(filepath.Join(mapsFolder(), name), nil); err != nil {
				return fmt.Errorf("opening the gate's map %s: %w", name, err)
			}
		}
	}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared,
		Programs: ebpf.ProgramOptions{KernelTypes: kernel}})
	if err != nil {
		return fmt.Errorf("the kernel does not accept the gate's programs: %w", err)
	}
	defer loaded.Close()
	if len(maps) == 0 {
		if err := pinAll(mapsFolder(), loaded.Maps); err != nil {
			return err
		}
	}
	if err := attach(loaded); err != nil {
		return err
	}
	return dropOthers()
}

// forThisKernel leaves out the programs whose hooks the kernel does not have, or has with other
// arguments.
func forThisKernel(spec *ebpf.CollectionSpec, kernel *btf.Spec) error {
	for name, hook := range hooks {
		var f *btf.Func
		err := kernel.TypeByName(hook.function, &f)
		if errors.Is(err, btf.ErrNotFound) && hook.since {
			delete(spec.Programs, name)
			continue
		}
		if err != nil {
			return fmt.Errorf("the kernel does not have the hook %s: %w", hook.function, err)
		}
		proto, ok := f.Type.(*btf.FuncProto)
		if !ok {
			return fmt.Errorf("the kernel's hook %s is not understood", hook.function)
		}
		// inode_setattr(dentry, attr) until 6.2, inode_setattr(idmap, dentry, attr) since then.
		if name == gateProgSetattr && len(proto.Params) != 3 || name == gateProgSetattr61 && len(proto.Params) != 2 {
			delete(spec.Programs, name)
		}
	}
	if spec.Programs[gateProgSetattr] == nil && spec.Programs[gateProgSetattr61] == nil {
		return errors.New("the kernel's hook inode_setattr is not understood")
	}
	return nil
}

// pinner is a map, a program or a link.
type pinner interface{ Pin(path string) error }

// pinAll pins under another name first: a folder that has its own name is complete.
func pinAll[P pinner](folder string, things map[string]P) error {
	making := filepath.Join(Folder, "new-"+filepath.Base(folder))
	if err := os.Mkdir(making, 0o700); err != nil {
		return err
	}
	for name, thing := range things {
		if err := thing.Pin(filepath.Join(making, name)); err != nil {
			return fmt.Errorf("pinning the gate's %s: %w", name, err)
		}
	}
	return os.Rename(making, folder)
}

// attach puts the programs in force. A process that is killed before the pins are
// complete takes the links with it, except for those in the directory that the next one drops.
func attach(loaded *ebpf.Collection) error {
	pins := map[string]pinner{}
	for name, program := range loaded.Programs {
		if name == gateProgEnter {
			pins[name] = program
			continue
		}
		l, err := link.AttachLSM(link.LSMOptions{Program: program})
		if err != nil {
			return fmt.Errorf("putting the gate's %s in force: %w", name, err)
		}
		defer l.Close() //nolint:errcheck // the pin holds it
		pins[name] = l
	}
	return pinAll(linksFolder(), pins)
}

// dropOthers ends the programs of other versions, whose maps these share.
func dropOthers() error {
	links, err := sets("links-")
	if err != nil {
		return err
	}
	for _, folder := range links {
		if folder != linksFolder() {
			err = errors.Join(err, drop(folder))
		}
	}
	return err
}

func dropUnfinished() error {
	unfinished, err := sets("new-")
	for _, folder := range unfinished {
		err = errors.Join(err, drop(folder))
	}
	return err
}

// drop takes a set of pins away, under another name first: what has its own name is complete.
func drop(folder string) error {
	if !strings.HasPrefix(filepath.Base(folder), "new-") {
		going := filepath.Join(Folder, "new-gone-"+filepath.Base(folder))
		if err := os.Rename(folder, going); err != nil {
			return err
		}
		folder = going
	}
	return os.RemoveAll(folder)
}

// Unload takes the gate away if nothing is guarded any more.
func (g *Gate) Unload() error {
	return g.locked(func() error {
		guarded, err := g.pages()
		if err != nil || len(guarded) > 0 {
			return err
		}
		return clearAll()
	})
}

// Clear takes every gate of dmloop's away, of whatever version, and whatever it guards.
func Clear() error {
	folder, err := os.Open(Folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer folder.Close() //nolint:errcheck // nothing is lost
	return withLock(folder, clearAll)
}

// Tidy takes away what a process left that was killed while it put the gate in force, or took
// it away. A gate that is in force stays.
func Tidy() error {
	folder, err := os.Open(Folder)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer folder.Close() //nolint:errcheck // nothing is lost
	return withLock(folder, func() error {
		links, err := sets("links-")
		if errors.Is(err, fs.ErrNotExist) || len(links) > 0 {
			return nil
		}
		if err != nil {
			return err
		}
		return clearAll()
	})
}

// clearAll ends programs before it takes their maps away.
func clearAll() error {
	for _, prefix := range []string{"links-", "new-", "maps-"} {
		folders, err := sets(prefix)
		for _, folder := range folders {
			err = errors.Join(err, drop(folder))
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(Folder)
}

// mountBPF mounts the file system that the gate is pinned in where it always is.
func mountBPF() error {
	const point = "/sys/fs/bpf"
	var s unix.Statfs_t
	if err := unix.Statfs(point, &s); err != nil {
		return &os.PathError{Op: "statfs", Path: point, Err: err}
	}
	if uint64(s.Type)&0xffffffff == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", point, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mounting %s, where the gate would be pinned: %w", point, err)
	}
	return nil
}

// sweep forgets the rights of processes that have ended, which nobody could use again.
// Only who sees all processes may judge that.
func (g *Gate) sweep() error {
	const initial = 0xeffffffc // include/linux/proc_ns.h: PROC_PID_INIT_INO
	var s unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &s); err != nil || s.Ino != initial {
		return nil
	}
	for _, name := range []string{gateMapOwn, gateMapAllowed} {
		have, err := all[gateProcess, uint32](g, name)
		if err != nil {
			return err
		}
		alive := maps.Clone(have)
		maps.DeleteFunc(alive, func(p gateProcess, _ uint32) bool { return !lives(p) })
		if err := remove(g, name, have, alive); err != nil {
			return err
		}
	}
	return nil
}

// lives reports whether a process with this number has this start, in the unit of
// /proc/PID/stat, which is a hundredth of a second.
func lives(p gateProcess) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Tgid))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH)
	}
	// The program's name, in parentheses, may have anything in it.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return true
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	return err != nil || ticks == p.Start/1e7
}
