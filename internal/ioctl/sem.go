package ioctl

import (
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Semaphore is a System V semaphore set of one semaphore, which device-mapper's
// udev cookies are. These calls are not ioctls; they are here because they need
// unsafe and x/sys does not have them.
type Semaphore int

const (
	ipcCreate = 0o1000 // IPC_CREAT
	ipcExcl   = 0o2000 // IPC_EXCL
	ipcNoWait = 0o4000 // IPC_NOWAIT
	ipcRemove = 0      // IPC_RMID
	setValue  = 16     // SETVAL
	getValue  = 12     // GETVAL
)

// sembuf is struct sembuf in linux/sem.h.
type sembuf struct {
	number    uint16
	operation int16
	flags     int16
}

// CreateSemaphore makes a semaphore of value 0 that root may use, under a key that
// must be free, otherwise the error is EEXIST.
func CreateSemaphore(key uint32) (Semaphore, error) {
	id, _, errno := unix.Syscall(unix.SYS_SEMGET, uintptr(key), 1, 0o600|ipcCreate|ipcExcl)
	if errno != 0 {
		return 0, &Error{Request: "semget", Err: errno}
	}
	return Semaphore(id), nil
}

// Set gives the semaphore a value.
func (s Semaphore) Set(value int) error {
	_, err := s.control(setValue, uintptr(value), "semctl SETVAL")
	return err
}

// Value returns the semaphore's value.
func (s Semaphore) Value() (int, error) { return s.control(getValue, 0, "semctl GETVAL") }

// Remove removes the semaphore. Whoever waits for it gets EIDRM.
func (s Semaphore) Remove() error {
	_, err := s.control(ipcRemove, 0, "semctl IPC_RMID")
	return err
}

func (s Semaphore) control(command int, arg uintptr, name string) (int, error) {
	r, _, errno := unix.Syscall6(unix.SYS_SEMCTL, uintptr(s), 0, uintptr(command), arg, 0, 0)
	if errno != 0 {
		return 0, &Error{Request: name, Err: errno}
	}
	return int(r), nil
}

// Add changes the value by n without waiting. EAGAIN means that it would become
// negative.
func (s Semaphore) Add(n int) error { return s.operate(n, ipcNoWait, 0) }

// WaitZero waits until the value is 0, at most timeout. EAGAIN means that the time
// is up, EINTR that a signal came (the runtime sends some), EIDRM that somebody
// removed the semaphore.
func (s Semaphore) WaitZero(timeout time.Duration) error { return s.operate(0, 0, timeout) }

func (s Semaphore) operate(n int, flags int16, timeout time.Duration) error {
	op := &sembuf{operation: int16(n), flags: flags}
	limit := &struct{ sec, nsec int64 }{int64(timeout / time.Second), int64(timeout % time.Second)}
	_, _, errno := unix.Syscall6(sysSemtimedop, uintptr(s), uintptr(unsafe.Pointer(op)), 1, uintptr(unsafe.Pointer(limit)), 0, 0)
	runtime.KeepAlive(op)
	runtime.KeepAlive(limit)
	if errno != 0 {
		return &Error{Request: "semtimedop", Err: errno}
	}
	return nil
}
