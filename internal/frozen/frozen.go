// Package frozen asks whether a file system takes changes, without ever waiting for one
// that does not.
//
// A call that changes something sleeps until the thaw of a file system that was frozen
// (fsfreeze, a snapshot being taken), no signal ends that sleep, and the kernel does not
// tell of a freeze otherwise. So the question is put by a process of its own, which may
// sleep as long as it likes: nobody waits for it, and it holds nothing of its parent's.
package frozen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"dmloop/dmtable"

	"golang.org/x/sys/unix"
)

// ErrFrozen says that no answer came: the file system takes no changes now.
var ErrFrozen = errors.New("the file system is frozen")

// attribute is the name of no extended attribute: no file system has this prefix. To
// remove it the kernel asks for leave to write to the file system (mnt_want_write, which
// is what sleeps) and then finds that there is nothing to do, without a word to the
// file system.
const attribute = "dmloop.none"

// looks is how often Ask looks in its patience at whether the question was put at all.
const looks = 10

// Ask returns nil when the file system of fd, a descriptor of any kind, takes changes or
// refuses them at once, and ErrFrozen when it has done neither for as long as patience. On a
// busy machine the process that asks may have to wait for a processor first: that is nobody's
// freeze, and does not count.
func Ask(ctx context.Context, fd int, patience time.Duration) error {
	q, err := put(fd)
	if err != nil {
		return fmt.Errorf("asking whether the file system is frozen: %w", err)
	}
	tick := time.NewTicker(max(patience/looks, 1))
	defer tick.Stop()
	for slept := 0; slept <= looks; {
		select {
		case <-q.answered:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if slept++; !asleep(q.pid) {
				slept = 0
			}
		}
	}
	return ErrFrozen
}

// question is one that is being put.
type question struct {
	pid      int           // the process that puts it
	answered chan struct{} // closed with the answer
}

// asked are the questions that have no answer yet, by the device number of the file
// system: one process for each is enough, however long a freeze takes and however often
// a guard asks.
var (
	mu    sync.Mutex
	asked = map[dmtable.Device]question{}
)

// put puts the question, unless it is being put.
func put(fd int) (question, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return question{}, os.NewSyscallError("fstat", err)
	}
	device := dmtable.DeviceOf(st.Dev)
	mu.Lock()
	defer mu.Unlock()
	if q, there := asked[device]; there {
		return q, nil
	}
	pid, pidfd, err := ask(fd)
	if err != nil {
		return question{}, err
	}
	q := question{pid, make(chan struct{})}
	asked[device] = q
	go func() {
		defer unix.Close(pidfd)
		// Its end may be that of the freeze; it has to be waited for all the same.
		for unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED|unix.WALL, nil) == unix.EINTR {
		}
		mu.Lock()
		defer mu.Unlock()
		delete(asked, device)
		close(q.answered)
	}()
	return q, nil
}

// asleep reports whether a process sleeps, and does not wait for a processor or to be seen to
// have ended. What cannot be read is taken for asleep.
func asleep(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, found := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" ")) // its name may have any character
	return !found || len(state) == 0 || !bytes.ContainsRune([]byte("RZX"), rune(state[0]))
}

// ask starts the process that asks and returns its number and a descriptor of it.
func ask(fd int) (pid, pidfd int, err error) {
	path, err := unix.BytePtrFromString(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return 0, -1, err
	}
	name, err := unix.BytePtrFromString(attribute)
	if err != nil {
		return 0, -1, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// A signal that came in the child would run Go's handler without Go's threads.
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return 0, -1, err
	}
	var child int32 = -1
	pid, errno := fork(uintptr(fd), unsafe.Pointer(path), unsafe.Pointer(name), unsafe.Pointer(&child))
	err = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	if errno != 0 {
		return 0, -1, os.NewSyscallError("clone", errno)
	}
	return pid, int(child), err
}

// fork is fork(2). The child has a copy of this thread only and of all memory, so it makes
// plain system calls and nothing else, as syscall.ForkExec's does before exec. It lets
// go of all descriptors but fd: those of locks and of the guard's marks among them
// must not live for as long as it sleeps.
//
//go:norace
//go:nosplit
func fork(fd uintptr, path, name, pidfd unsafe.Pointer) (int, unix.Errno) {
	flags, stack := uintptr(unix.CLONE_PIDFD), uintptr(0)
	if runtime.GOARCH == "s390x" { // CONFIG_CLONE_BACKWARDS2: the other way round
		flags, stack = stack, flags
	}
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags, stack, uintptr(pidfd), 0, 0, 0)
	if errno != 0 || pid != 0 {
		return int(pid), errno
	}
	if fd > 0 {
		unix.RawSyscall(unix.SYS_CLOSE_RANGE, 0, fd-1, 0)
	}
	unix.RawSyscall(unix.SYS_CLOSE_RANGE, fd+1, uintptr(^uint32(0)), 0)
	unix.RawSyscall(unix.SYS_REMOVEXATTR, uintptr(path), uintptr(name), 0)
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}
