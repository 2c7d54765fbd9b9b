// Package fault has the error that commands return: a class, which scripts see as the exit
// code, the file or mapping that it is about, and what can be done.
package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/image"
	"dmloop/internal/ioctl"
	"dmloop/internal/record"
	"dmloop/internal/swap"
)

// Class sorts errors as users' scripts need them; cmd gives each its exit code.
type Class int

// The classes of design section 8.
const (
	Failed       Class = iota + 1 // something went wrong
	Usage                         // the request itself is wrong
	NotMappable                   // the image breaks a rule
	StaleMapping                  // the mapping is stale or torn down
	Busy                          // in use, or already there
	NotFound                      // no such image or mapping
	NotPermitted                  // root or a capability is needed
	KernelLacks                   // the kernel lacks something
)

// Error is what a command fails with.
type Error struct {
	Class    Class
	Subject  string            // image path or mapping name
	Message  string            // what is wrong; empty when Problems or Err say it
	Remedy   extents.Remedy    // what to do about it
	Problems []extents.Problem // the rules that the image breaks
	Err      error             // cause; may be nil
}

func (e *Error) Error() string {
	text := e.Message
	switch {
	case text == "" && len(e.Problems) > 0:
		text = e.Problems[0].String()
		if n := len(e.Problems) - 1; n > 0 {
			text += fmt.Sprintf(" and %d more", n)
		}
	case text == "" && e.Err != nil:
		text = e.Err.Error()
	case e.Err != nil:
		text += ": " + e.Err.Error()
	}
	if e.Subject == "" {
		return text
	}
	return e.Subject + ": " + text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ClassOf returns the class of err, looking through wrapped errors. Errors that
// nobody has classed are sorted by their cause.
func ClassOf(err error) Class {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Class
	case errors.Is(err, record.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, dm.ErrNoDeviceMapper):
		return KernelLacks
	case errors.Is(err, fs.ErrPermission), errors.Is(err, dm.ErrPermission):
		return NotPermitted
	case errors.Is(err, fs.ErrExist), errors.Is(err, unix.EBUSY), errors.Is(err, unix.ETXTBSY):
		return Busy
	}
	return Failed
}

// Wrap makes err an Error about subject, with the class of its cause. An Error stays as it
// is, unless there is a message to put before it. Nil stays nil.
func Wrap(subject, message string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) && message == "" {
		return err
	}
	return &Error{Class: ClassOf(err), Subject: subject, Message: message, Err: err, Remedy: remedyFor(err)}
}

// remedyFor says what to do about a call that the kernel did not permit, where error or
// call tell what it takes.
func remedyFor(err error) extents.Remedy {
	var call *ioctl.Error
	switch {
	case errors.Is(err, unix.EROFS):
		return advice.MakeWritable
	case ClassOf(err) != NotPermitted:
	case errors.Is(err, image.ErrCannotProve):
		return Permission(CapLease)
	case errors.Is(err, dm.ErrPermission), errors.As(err, new(*swap.Error)):
		return Permission(CapAdmin)
	case errors.As(err, &call) && call.Request == "FIBMAP":
		return Permission(CapRawIO)
	case errors.As(err, &call) && strings.Contains(call.Request, "SET"): // flags of the inode
		return Permission(CapImmutable)
	}
	return extents.Remedy{}
}

// Refuse makes the error of an image that breaks rules: Busy when it is only in
// use at the moment, otherwise NotMappable (design section 4).
func Refuse(subject string, problems []extents.Problem) *Error {
	class := Busy
	for _, p := range problems {
		switch p.Rule {
		case extents.OpenElsewhere, extents.ActiveSwap, extents.Overlap:
		default:
			class = NotMappable
		}
	}
	return &Error{Class: class, Subject: subject, Problems: problems}
}

// HowTo is the value of a log line's hint: what to do about the image at this path.
type HowTo struct {
	Image  string
	Remedy extents.Remedy
}

// LevelNote is the level of what is said about an image without being a warning.
const LevelNote = slog.LevelInfo + 2
