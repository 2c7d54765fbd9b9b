package guard

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
)

// Check compares what was recorded with what was read again and returns every
// difference. It is pure: the same values give the same findings. A part that was
// not read is not judged; a part that could not be read gives a Note. A Watch, which reads
// again and again, turns that into more.
func Check(want Expected, got Observed) []Finding {
	findings := differences(want, got)
	for _, o := range got.outcomes() {
		if o.err != nil {
			findings = append(findings, unreadable(o, 0))
		}
	}
	return findings
}

// differences is Check of the parts that could be read.
func differences(want Expected, got Observed) []Finding {
	c := checker{growing: got.Growing}
	if got.Stuck != nil {
		c.add(Unreadable, Different, "the state of the image cannot be read: %v", got.Stuck)
	}
	if got.Identity.ok() {
		c.identity(want.Identity, got.Identity.Value)
	}
	if got.Layout.ok() {
		c.layout(want.Layout, got.Layout.Value)
	}
	if got.Pins.ok() {
		c.pins(want.Pins, got.Pins.Value, got.Openers)
	}
	if claim := got.Claim.Value; got.Claim.ok() && claim.Size != claim.Page {
		c.add(ClaimSize, Different, "the kernel uses %d bytes of the image as swap space instead of one page of %d", claim.Size, claim.Page)
	}
	if got.Unfit.ok() {
		for _, p := range got.Unfit.Value {
			c.add(Unfit, Different, "the image cannot be mapped any more: %s (%s)", p.Message, p.Rule)
		}
	}
	if got.Openers.ok() && got.Openers.Value == Readers && want.Exposed {
		c.add(Opened, Weak, "another process has the image open for reading and could share its blocks")
	}
	if got.Base.ok() {
		c.base(want, got.Base.Value)
	}
	if got.Below.ok() {
		c.below(want, got.Below.Value)
	}
	if got.Own.ok() {
		c.own(got.Own.Value)
	}
	if got.OwnTable.ok() {
		c.ownTable(want.Table, got.OwnTable.Value)
	}
	return c.findings
}

// checker collects findings.
type checker struct {
	findings []Finding
	growing  extents.Bytes // Observed.Growing
}

func (c *checker) add(k Kind, s Severity, format string, args ...any) {
	c.findings = append(c.findings, Finding{Kind: k, Severity: s, Message: fmt.Sprintf(format, args...)})
}

func (c *checker) identity(want, got Identity) {
	if !want.SameFile(got.FileID) {
		c.add(Replaced, Different, "the image is another file now: inode %d generation %d on %s, and was inode %d generation %d on %s when it was mapped",
			got.Inode, got.Generation, got.Device(), want.Inode, want.Generation, want.Device())
		return
	}
	if want.Size != got.Size && (got.Size < want.Size || got.Size > c.growing) {
		c.add(Resized, Different, "the image has %d bytes, and had %d when it was mapped", got.Size, want.Size)
	}
	if got.Links == 0 {
		c.add(Unlinked, Different, "the image has no name any more: its blocks are free as soon as nobody has it open")
	}
}

func (c *checker) layout(want, got extents.Layout) {
	if c.growing > 0 && got.Size > want.Size { // what is new is judged by whoever appends it
		if old, err := got.Window(0, want.Size); err == nil {
			got = old
		}
	}
	for _, e := range got.Clip().Extents {
		if e.Flags&extents.FlagShared != 0 {
			c.add(Shared, Different, "bytes %d to %d of the image share their blocks with another file", e.Logical, e.Logical+e.Length-1)
			return
		}
	}
	if diff := extents.Diff(want, got); diff != "" {
		c.add(Moved, Different, "the image lies elsewhere: %s", diff)
	}
}

func (c *checker) pins(want, got Pins, openers Reading[Openers]) {
	c.pressed(got)
	var lost []PinKind
	for _, p := range want.InForce {
		if !slices.Contains(got.InForce, p) {
			lost = append(lost, p)
		}
	}
	if c.growing > 0 {
		c.pinsGrowing(lost)
		return
	}
	weaker := got.Grade.Weaker(want.Grade)
	// Without the gate a mapping is worth what it is where there is none: the guard, which
	// looks now, puts it in force again.
	ungated := len(lost) == 1 && lost[0] == PinBPF && got.Grade != GradeUnsafe
	writers := openers.ok() && openers.Value == Writers
	switch {
	case ungated && weaker:
		c.add(PinLost, Weak, "the gate in the kernel is gone and the grade fell from %s to %s", want.Grade, got.Grade)
	case len(lost) > 0 && weaker:
		c.add(PinLost, Different, "the pin %s is gone and the grade fell from %s to %s", strings.Join(PinNames(lost), ", "), want.Grade, got.Grade)
	case len(lost) > 0:
		c.add(PinLost, Weak, "the pin %s is gone, the grade is still %s", strings.Join(PinNames(lost), ", "), got.Grade)
	case weaker && writers:
		c.add(Opened, Different, "another process has the image open for writing, so a pin was lifted in between; the grade fell from %s to %s", want.Grade, got.Grade)
		return
	case weaker:
		c.add(PinLost, Different, "the grade fell from %s to %s", want.Grade, got.Grade)
	default:
		return
	}
	c.findings[len(c.findings)-1].Pins = lost
}

// pinsGrowing judges what is lost while the image is made longer: the immutable flag is off
// for it, and whoever appends has the image open for writing.
func (c *checker) pinsGrowing(lost []PinKind) {
	lost = slices.DeleteFunc(lost, func(p PinKind) bool { return p == PinImmutable })
	if len(lost) == 0 {
		return
	}
	severity := Weak
	if slices.Contains(lost, PinF2FS) || slices.Contains(lost, PinSwap) {
		severity = Different
	}
	c.add(PinLost, severity, "the pin %s is gone while the image is made longer", strings.Join(PinNames(lost), ", "))
	c.findings[len(c.findings)-1].Pins = lost
}

// pressed judges how near f2fs is to dropping its pin: the collector counts its tries,
// and the one that exceeds the limit moves the image. Half of the way is worth a
// warning; in the last eighth it is too late to wait for the next check.
func (c *checker) pressed(got Pins) {
	severity := Note
	switch {
	case got.Tries == 0:
		return
	case uint64(got.Tries)*8 >= uint64(got.Limit)*7:
		severity = Different
	case uint64(got.Tries)*2 >= uint64(got.Limit):
		severity = Weak
	}
	c.add(PinPressed, severity, "f2fs's garbage collector tried %d times to move the image, and drops the pin after %d: move other files away, or unmap it", got.Tries, got.Limit)
}

func (c *checker) base(expected Expected, got Base) {
	want := expected.Base
	if want.Device != got.Device || want.UUID != got.UUID {
		c.add(BaseChanged, Different, "the host device %s is not the one on which the image was mapped", want.Device)
		return
	}
	if diff := standing(expected.Table, want.Table, got.Table); diff != "" {
		c.add(BaseChanged, Different, "the host device %s does not lead to the image's blocks as it did: %s", got.Device, diff)
		return
	}
	switch {
	case got.Stopped:
		// Our rows go past it to the devices below, where its own image lay.
		c.add(BaseChanged, Different, "the host device %s is the mapping of an image that is not what was mapped", got.Device)
	case got.Suspended:
		c.add(BaseWaiting, Note, "the host device %s is suspended", got.Device)
	case got.Waiting:
		c.add(BaseWaiting, Note, "the host device %s has another table waiting for a resume", got.Device)
	}
}

// standing compares two tables of the host device, in text, below the mapping's rows.
func standing(rows dmtable.Table, was, now string) string {
	if was == now {
		return ""
	}
	before, err := dmtable.ParseText(was)
	if err != nil {
		return fmt.Sprintf("the table that was recorded is not understood: %v", err)
	}
	after, err := dmtable.ParseText(now)
	if err != nil {
		return fmt.Sprintf("its table is not understood: %v", err)
	}
	diff := rows.Standing(before, after)
	if diff != "" && slices.ContainsFunc(after, func(r dmtable.Row) bool { return r.Target == snapshotOrigin }) {
		diff += "; a snapshot of it was made, and the mapping's writes would go past that: " +
			"remove the snapshot and map again, or put the file system on a shim (dmloop shim), below which snapshots can be taken"
	}
	return diff
}

// snapshotOrigin is the target that a device has while snapshots of it exist: each
// write has to go through it, so that what was there is copied first.
const snapshotOrigin = "snapshot-origin"

// below judges the devices that the rows lie on, in order.
func (c *checker) below(want Expected, got map[dmtable.Device]Below) {
	for _, device := range slices.SortedFunc(maps.Keys(got), func(a, b dmtable.Device) int {
		return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor))
	}) {
		b := got[device]
		switch need := want.Needs[device]; {
		case b.Lost != "":
			c.add(BelowLost, Different, "the device %s, on which the image lies, %s: every request fails", b.Device, b.Lost)
		case b.Size < need:
			c.add(BelowLost, Different, "the device %s, on which the image lies, has %d sectors, and the image lies up to sector %d", b.Device, b.Size, need)
		case b.Ailing != "":
			c.add(BelowAiling, Note, "the device %s, on which the image lies, %s: requests fail", b.Device, b.Ailing)
		case b.ReadOnly && !want.ReadOnly:
			c.add(BelowFixed, Note, "the device %s, on which the image lies, became read-only", b.Device)
		}
	}
}

func (c *checker) own(got OwnState) {
	switch {
	case got.Gone:
		c.add(OwnGone, Different, "the mapping's device is gone: somebody removed it")
	case got.Suspended:
		c.add(OwnWaiting, Note, "the mapping is suspended")
	case got.Waiting:
		c.add(OwnWaiting, Note, "the mapping has another table waiting for a resume")
	}
}

func (c *checker) ownTable(want, got dmtable.Table) {
	if isError(got) {
		c.add(TornDown, Different, "the mapping has the error table")
		return
	}
	if c.growing > 0 && (got.Begins(want) || want.Begins(got)) { // the longer one is recorded before it is live
		return
	}
	if diff := want.Diff(got); diff != "" {
		c.add(OwnChanged, Different, "the mapping has a table that is not ours: %s", diff)
	}
}

// isError reports whether every row of t gives I/O errors.
func isError(t dmtable.Table) bool {
	for _, r := range t {
		if r.Target != "error" {
			return false
		}
	}
	return len(t) > 0
}
