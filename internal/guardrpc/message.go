// Package guardrpc is how dmloop's commands talk to their guard: the client, the
// protocol and the server's transport, over a unix socket in the state directory.
//
// A request is one line of JSON, and so is its answer; a descriptor travels beside
// a line (SCM_RIGHTS). A connection has one request under way at a time. What a
// client prepared stays prepared for as long as its connection is open.
package guardrpc

import (
	"errors"
	"fmt"
	"time"

	"dmloop/guard"
	"dmloop/internal/record"
)

// SocketName, LockName and LogName are the files of the guard in the state directory; the
// log's older generation has OldLog after its name.
const (
	SocketName = "guard.sock"
	LockName   = "guard.lock"
	LogName    = "guard.log"
	OldLog     = ".old"
)

// Limits of one line. A status with thousands of mappings fits.
const (
	requestLimit = 64 << 10
	answerLimit  = 16 << 20
)

// op names a request.
type op string

const (
	opPrepare op = "prepare" // with a descriptor of the image
	opAdd     op = "add"
	opDrop    op = "drop"
	opGrow    op = "grow"
	opOpen    op = "open" // answered with a descriptor
	opRecord  op = "record"
	opStatus  op = "status"
	opCheck   op = "check"
	opMetrics op = "metrics"
)

// request is the line a client sends.
type request struct {
	Op   op     `json:"op"`
	Name string `json:"name,omitempty"` // add, drop, grow, check: the mapping
	// Open: which inode, since a path may lead to another by now. A guard of an earlier
	// version knows the path only; what it hands out is compared.
	Inode uint64 `json:"inode,omitempty"`
	Major uint32 `json:"major,omitempty"`
	Minor uint32 `json:"minor,omitempty"`
	Path  string `json:"path,omitempty"`
	// Prepare: opens need not be denied. A guard of an earlier version denies them.
	WatchOnly bool `json:"watch_only,omitempty"`
}

// answer is the line the guard sends back.
type answer struct {
	Error    string        `json:"error,omitempty"`
	Kind     ErrorKind     `json:"kind,omitempty"`
	Prepared *Prepared     `json:"prepared,omitempty"`
	Mapping  *MappingState `json:"mapping,omitempty"`
	Status   *Status       `json:"status,omitempty"`
	Metrics  string        `json:"metrics,omitempty"`

	Record *record.Record `json:"record,omitempty"`
}

// ErrorKind sorts what a guard refuses, so that commands can choose an exit code.
type ErrorKind string

// The kinds of errors.
const (
	KindNotFound  ErrorKind = "not-found" // no such mapping or image is watched
	KindDifferent ErrorKind = "different" // the first check found the mapping different
	KindBusy      ErrorKind = "busy"      // another client is at work on the image
	KindLacks     ErrorKind = "lacks"     // the kernel lacks something
	KindFailed    ErrorKind = "failed"    // anything else
)

// Error is what a guard answered instead of doing what it was asked for.
type Error struct {
	Kind    ErrorKind
	Message string
}

func (e *Error) Error() string { return "guard: " + e.Message }

// Errorf makes an Error of the given kind; the server's handler returns it.
func Errorf(kind ErrorKind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// ErrNoGuard is wrapped by errors about a guard that does not run.
var ErrNoGuard = errors.New("no guard is running")

// Answer is yes, no, or could not tell.
type Answer string

// The answers.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Unknown Answer = "unknown"
)

// Prepared says what holds for an image from Prepare on.
type Prepared struct {
	Denies Answer `json:"denies"` // opens by others are refused from now on
	Why    string `json:"why,omitempty"`
}

// Status is the state of a guard.
type Status struct {
	PID      int            `json:"pid"`
	Started  time.Time      `json:"started"`
	Denies   Answer         `json:"denies"` // the kernel has fanotify permission events
	Why      string         `json:"why,omitempty"`
	Mappings []MappingState `json:"mappings"`
}

// MappingState is what a guard knows of one mapping.
type MappingState struct {
	Name         string          `json:"name"`
	Image        string          `json:"image"`
	State        guard.State     `json:"state"`
	Reason       string          `json:"reason"`
	Grade        guard.Grade     `json:"grade"` // as it is in force now
	Denies       Answer          `json:"denies"`
	Findings     []guard.Finding `json:"findings"` // of the last check
	Checks       uint64          `json:"checks"`
	FullChecks   uint64          `json:"full_checks"`
	LastCheck    time.Time       `json:"last_check"`
	LastFull     time.Time       `json:"last_full_check"`
	FullInterval time.Duration   `json:"full_interval"` // nanoseconds between readings of the whole layout
	FullCost     time.Duration   `json:"full_cost"`     // nanoseconds that one took
	Denied       uint64          `json:"denied"`        // opens refused
}
