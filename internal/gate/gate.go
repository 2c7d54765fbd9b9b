package gate

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/guard"
)

// Folder is where the gate's maps and programs are pinned, and what keeps them in force.
const Folder = "/sys/fs/bpf/dmloop"

// format is the version of the maps and of what is written in them. Programs of the same
// format share them, so that a newer dmloop replaces programs without a moment between.
var format = 2

// edition tells the programs of one build from those of another: empty for the sum of them.
// Tests pretend.
var edition string

func mapsFolder() string { return filepath.Join(Folder, fmt.Sprintf("maps-%d", format)) }
func linksFolder() string {
	return filepath.Join(Folder, fmt.Sprintf("links-%d-%s", format, cmp.Or(edition, programsSum())))
}

// ErrNotLoaded means that no gate is in force.
var ErrNotLoaded = errors.New("no gate is loaded")

// ErrOtherFormat means that another version of dmloop's gate is in force, which this one cannot read.
var ErrOtherFormat = errors.New("the gate of another version of dmloop is in force: unmap what it guards with that version, or remove it (dmloop gate --clear)")

// Gate is the gate in force. Its methods are for one goroutine at a time.
type Gate struct {
	lock   *os.File             // the folder, open
	opened map[string]*ebpf.Map // by their names in gate.c; opened when they are needed
}

// Open opens the gate that is in force. It returns ErrNotLoaded where none is, and
// ErrOtherFormat for one that this version cannot read.
func Open() (*Gate, error) {
	folder, err := os.Open(Folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotLoaded
	}
	if err != nil {
		return nil, err
	}
	g := &Gate{lock: folder, opened: map[string]*ebpf.Map{}}
	if err := isInForce(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// isInForce reports whether there is a gate, and one that this version can read.
func isInForce() error {
	all, err := sets("")
	if err != nil {
		return err
	}
	links, maps, ours := false, 0, false
	for _, folder := range all {
		switch name := filepath.Base(folder); {
		case strings.HasPrefix(name, "links-"):
			links = true
		case strings.HasPrefix(name, "maps-"):
			maps++
			ours = ours || folder == mapsFolder()
		}
	}
	switch {
	case maps == 0 || !links:
		return ErrNotLoaded
	case maps > 1 || !ours:
		return ErrOtherFormat
	}
	return nil
}

// open opens one of the maps.
func (g *Gate) open(name string) (*ebpf.Map, error) {
	if m := g.opened[name]; m != nil {
		return m, nil
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(mapsFolder(), name), nil)
	if err != nil {
		return nil, fmt.Errorf("opening the gate's map %s: %w", name, err)
	}
	g.opened[name] = m
	return m, nil
}

// sets lists the folders of pins that are complete; one that is being made is called new-.
func sets(prefix string) (paths []string, err error) {
	entries, err := os.ReadDir(Folder)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			paths = append(paths, filepath.Join(Folder, e.Name()))
		}
	}
	return paths, nil
}

// Close closes the maps. The gate stays in force.
func (g *Gate) Close() error {
	err := g.lock.Close()
	for _, m := range g.opened {
		err = errors.Join(err, m.Close())
	}
	return err
}

// locked has one process at a time change the gate, as long as it is the one in force:
// ErrNotLoaded says that it has been taken away meanwhile.
func (g *Gate) locked(change func() error) error {
	return withLock(g.lock, func() error {
		if here, err := inPlace(g.lock); err != nil || !here {
			return errors.Join(err, ErrNotLoaded)
		}
		return change()
	})
}

// inPlace reports whether folder is still the one that has the gate.
func inPlace(folder *os.File) (bool, error) {
	var mine unix.Stat_t
	if err := unix.Fstat(int(folder.Fd()), &mine); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	return mine.Ino == present(), nil
}

// present returns the inode number of the gate's folder, which each gate has another of; 0 where
// there is none.
func present() uint64 {
	var now unix.Stat_t
	if unix.Stat(Folder, &now) != nil {
		return 0
	}
	return now.Ino
}

func withLock(folder *os.File, change func() error) error {
	for {
		err := unix.Flock(int(folder.Fd()), unix.LOCK_EX)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("locking %s: %w", Folder, err)
		}
		break
	}
	defer unix.Flock(int(folder.Fd()), unix.LOCK_UN) //nolint:errcheck // ends with the descriptor at the latest
	return change()
}

// What a process asks for of itself (gate.c: enter).
const (
	beOwn uint32 = iota + 1
	beOwnNoMore
	haveRight
	haveNoRight
)

// Enter makes this process one of dmloop's own, which every gate that is in force lets
// pass until it ends, or has called Leave as often. Where no gate is loaded there is nothing
// to pass. Only root may ask.
func Enter() error {
	entered.Lock()
	defer entered.Unlock()
	entered.times++
	return pass()
}

// Leave takes back what Enter gave.
func Leave() error {
	entered.Lock()
	defer entered.Unlock()
	if entered.times--; entered.times > 0 {
		return nil
	}
	entered.gate = 0
	_, err := ask(gateRight{Op: beOwnNoMore})
	return err
}

// Again has this process, if it has called Enter, pass a gate that was put in force since.
func Again() error {
	entered.Lock()
	defer entered.Unlock()
	if entered.times == 0 || entered.gate == present() {
		return nil
	}
	return pass()
}

// entered counts how often this process has asked to pass, and knows which gate it passes.
var entered struct {
	sync.Mutex
	times int
	gate  uint64 // as present has it; 0 for none
}

func pass() error {
	entered.gate = 0
	asked := present()
	links, err := ask(gateRight{Op: beOwn})
	if err == nil && links > 0 {
		entered.gate = asked
	}
	return err
}

// Allow lets this process, and those that it starts, change the table of one device that
// a mapping stands on, and remove it.
func Allow(device dmtable.Device) error {
	_, err := ask(gateRight{Op: haveRight, Device: kernelNumber(device)})
	return err
}

// Disallow takes back what Allow gave.
func Disallow() error {
	_, err := ask(gateRight{Op: haveNoRight})
	return err
}

// ask asks every gate that is in force, and says how many there are.
func ask(right gateRight) (gates int, err error) {
	links, err := sets("links-")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for _, folder := range links {
		if err := askOne(filepath.Join(folder, gateProgEnter), right); err != nil {
			return 0, err
		}
	}
	return len(links), nil
}

// askOne runs a pinned program in this process, whose right it is about therefore.
func askOne(path string, right gateRight) error {
	p, err := ebpf.LoadPinnedProgram(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // replaced this moment; the one in its place has the same maps
	}
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	defer p.Close() //nolint:errcheck // nothing is lost
	code, err := p.Run(&ebpf.RunOptions{Context: right})
	if err == nil && int32(code) < 0 && unix.Errno(-int32(code)) != unix.ENOENT {
		err = unix.Errno(-int32(code))
	}
	if err != nil {
		return fmt.Errorf("asking the gate to let this process pass: %w", err)
	}
	return nil
}

// InForce reports whether the gate guards an image and, unless it is 0:0, the device made of it.
func InForce(img guard.FileID, own dmtable.Device) (bool, error) {
	links, err := sets("links-")
	if err != nil || len(links) == 0 {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			err = nil
		}
		return false, err
	}
	in, err := has(gateMapInodes, inodeKey(img))
	if err != nil || !in || own == (dmtable.Device{}) {
		return in, err
	}
	return has(gateMapDevices, kernelNumber(own))
}

func has(name string, key any) (bool, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(mapsFolder(), name), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("opening the gate's map %s: %w", name, err)
	}
	defer m.Close() //nolint:errcheck // nothing is lost
	value, err := m.LookupBytes(key)
	return value != nil, err
}
