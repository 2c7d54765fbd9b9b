package guard

import (
	"fmt"
	"strings"
)

// Kind is the stable name of what a check found. Logs, status output and metrics
// carry it; it never changes its meaning.
type Kind string

// The kinds of findings, in the order in which a check reports them.
const (
	Replaced    Kind = "replaced"          // the file is another one: device, inode or generation differ
	Resized     Kind = "resized"           // the file has another size
	Unlinked    Kind = "unlinked"          // no name is left: its blocks are freed with the last descriptor
	Moved       Kind = "moved"             // some bytes lie elsewhere, or their extents are no longer plain data
	Shared      Kind = "shared"            // another file or snapshot has the same blocks
	PinLost     Kind = "pin-lost"          // a pin that was in force is gone
	ClaimSize   Kind = "claim-size"        // the kernel uses another part of the image as swap space than the one page that is meant
	PinPressed  Kind = "pin-pressed"       // f2fs's garbage collector wants the image's blocks: it drops the pin after so many tries
	Unfit       Kind = "unfit"             // the image got an attribute that makes it unmappable, such as verity
	Opened      Kind = "opened"            // somebody else has the image open
	BaseChanged Kind = "base-changed"      // the host device has another table
	BaseWaiting Kind = "base-waiting"      // the host device is suspended or has a table waiting
	BelowLost   Kind = "below-lost"        // a device that the image lies on is gone
	BelowAiling Kind = "below-ailing"      // a device that the image lies on answers no requests for now
	BelowFixed  Kind = "below-read-only"   // a device that the image lies on became read-only
	OwnChanged  Kind = "own-table-changed" // the mapping has a table that is not ours
	OwnGone     Kind = "own-device-gone"   // the mapping's device is no longer there
	OwnWaiting  Kind = "own-table-waiting" // the mapping is suspended or has a table waiting
	TornDown    Kind = "torn-down"         // the mapping has the error table already
	Unreadable  Kind = "unreadable"        // a part of the state could not be read
)

// Severity says what a finding means for the mapping.
type Severity int

// The severities, mildest first.
const (
	Note      Severity = iota + 1 // said once, the mapping goes on
	Weak                          // the mapping goes on with less to protect it
	Different                     // the mapping is not what was verified: the policy applies
)

// String returns the severity as logs show it.
func (s Severity) String() string {
	switch s {
	case Note:
		return "note"
	case Weak:
		return "weak"
	case Different:
		return "different"
	}
	return fmt.Sprintf("severity %d", int(s))
}

// MarshalText gives JSON the name instead of the number.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Severity) UnmarshalText(text []byte) error {
	for known := Note; known <= Different; known++ {
		if known.String() == string(text) {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("unknown severity %q", text)
}

// Finding is one difference between what was recorded and what was read again.
type Finding struct {
	Kind     Kind      `json:"kind"`
	Severity Severity  `json:"severity"`
	Message  string    `json:"message"`
	Pins     []PinKind `json:"pins,omitempty"` // PinLost: the pins that are gone
}

// String returns the message with the kind, as logs show it.
func (f Finding) String() string { return fmt.Sprintf("%s (%s)", f.Message, f.Kind) }

// Worst returns the highest severity among findings, or 0 when there are none.
func Worst(findings []Finding) Severity {
	var worst Severity
	for _, f := range findings {
		worst = max(worst, f.Severity)
	}
	return worst
}

// Reason joins the messages of the findings of severity s, as a record keeps
// them.
func Reason(findings []Finding, s Severity) string {
	var parts []string
	for _, f := range findings {
		if f.Severity == s {
			parts = append(parts, f.String())
		}
	}
	return strings.Join(parts, "; ")
}
