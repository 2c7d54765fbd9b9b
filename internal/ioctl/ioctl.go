// Package ioctl makes every ioctl of dmloop. It is the only package that uses
// unsafe, so a reader who looks for memory errors reads this folder.
package ioctl

import (
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Request is an ioctl request number with the name it has in the kernel's
// headers, which error messages show.
type Request struct {
	Number uint32
	Name   string
}

// Error is a failed ioctl. Err is the raw errno, to be matched with errors.Is.
type Error struct {
	Request string // name of the request, as in the kernel's headers
	Err     error
}

func (e *Error) Error() string { return fmt.Sprintf("ioctl %s: %v", e.Request, e.Err) }

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Err }

// Buffer makes the ioctl with the address of buf's first byte as argument; the
// kernel reads and writes at most what the request's own length fields say,
// which must lie within buf. It repeats on EINTR and returns nil or *Error.
func Buffer(fd int, req Request, buf []byte) error {
	err := call(fd, req, uintptr(unsafe.Pointer(unsafe.SliceData(buf))))
	runtime.KeepAlive(buf)
	return err
}

// Pointer makes the ioctl with p as argument. T must have the memory layout of
// the C structure that the request takes: fixed-size fields, explicit padding,
// no Go pointers. It repeats on EINTR and returns nil or *Error.
func Pointer[T any](fd int, req Request, p *T) error {
	err := call(fd, req, uintptr(unsafe.Pointer(p)))
	runtime.KeepAlive(p)
	return err
}

// Value makes the ioctl with a plain number as argument, as the few requests do
// that take no pointer. It repeats on EINTR and returns nil or *Error.
func Value(fd int, req Request, v uintptr) error { return call(fd, req, v) }

//go:uintptrescapes
func call(fd int, req Request, arg uintptr) error {
	if counting.Load() {
		defer func(start time.Time) { count(req.Name, time.Since(start)) }(time.Now())
	}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req.Number), arg)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return &Error{Request: req.Name, Err: errno}
	}
}
