package extents

import "fmt"

// Problems returns every reason in the layout itself why the file cannot be
// mapped, sorted by rule and then by offset; none means that the rows cover
// [0, Size) exactly, in order, with plain written data of their own. What lies
// beyond the end of the file is clipped first.
//
// block is the alignment that offsets, addresses and lengths must have: the
// larger of the file-system block and the base device's logical block, at least 1.
// The end of the last row may be off it: that is the size's fault. limit is
// the largest number of pieces after merging, or 0 for any number.
//
// Neighbouring rows with the same problem are one Problem. Of each rule the first
// ten places are listed, and one more Problem sums up the rest.
func (l Layout) Problems(block Bytes, limit int) []Problem {
	l, block = l.Clip(), max(block, 1)
	var found Findings
	covered := Bytes(0)
	for i, e := range l.Extents {
		if e.Length <= 0 || e.Logical < covered {
			found.Add(Unknown, e.Logical, max(e.Length, 0), "the kernel listed them twice, out of order or as an empty extent")
			continue
		}
		if e.Logical > covered {
			found.Add(Hole, covered, e.Logical-covered, "no block is allocated")
		}
		covered = e.end()
		judgeFlags(e, &found)
		if e.Flags&FlagLast != 0 && i != len(l.Extents)-1 {
			found.Add(Unknown, e.Logical, e.Length, "the kernel called the extent the last one and listed more after it")
		}
		if e.Flags&(FlagUnknown|FlagDelalloc|FlagNotAligned|FlagInline|FlagTail) == 0 {
			judgeAddress(e, block, l.Size, &found)
		}
	}
	if covered < l.Size {
		found.Add(Hole, covered, l.Size-covered, "no block is allocated")
	}
	if n := len(l.Extents); n > 0 && l.Extents[n-1].Flags&FlagLast == 0 {
		last := l.Extents[n-1]
		found.Add(Unknown, last.Logical, last.Length, "the kernel's list of extents has no end")
	}
	for _, clash := range l.doublyUsed() {
		found.Add(Shared, clash.Logical, clash.Length, "another part of the file lies on the same blocks")
	}
	problems := found.Problems()
	if pieces := l.pieces(); limit > 0 && pieces > limit {
		problems = append(problems, Problem{
			Rule:    TooManyExtents,
			Message: fmt.Sprintf("the file lies in %d pieces, more than the limit of %d", pieces, limit),
		})
	}
	return problems
}

// judgeFlags reports what the flags of e say. Where the kernel sets a general flag
// together with a special one, only the special one is reported.
func judgeFlags(e Extent, found *Findings) {
	add := func(rule Rule, what string) { found.Add(rule, e.Logical, e.Length, what) }
	has := func(f Flags) bool { return e.Flags&f != 0 }
	if has(FlagUnwritten) {
		add(Unwritten, "the blocks are allocated but were never written: the file reads zeros there, the disk holds old data")
	}
	switch {
	case has(FlagDelalloc):
		add(Delalloc, "the data is in memory and has no block yet")
	case has(FlagUnknown):
		add(Unknown, "the file system does not tell where they lie")
	}
	if has(FlagShared) {
		add(Shared, "the blocks are shared with another file or a snapshot")
	}
	switch {
	case has(FlagEncrypted):
		add(Encrypted, "the file system encrypts them")
	case has(FlagEncoded):
		add(Encoded, "the file system stores them in another form (compressed or encoded)")
	}
	switch {
	case has(FlagInline) || has(FlagTail):
		if has(FlagInline) {
			add(Inline, "the data lies among the file system's metadata")
		}
		if has(FlagTail) {
			add(Tail, "several files lie in one block")
		}
	case has(FlagNotAligned):
		add(NotAligned, "the data does not lie on block borders")
	}
	if rest := e.Flags &^ knownFlags; rest != 0 {
		add(Unknown, fmt.Sprintf("the kernel sets flags that dmloop does not know (0x%x)", uint32(rest)))
	}
}

// judgeAddress reports an extent that is off the block borders, or that claims to
// lie on the first block of the device, which is a superblock's and is how some
// file systems say "nowhere".
func judgeAddress(e Extent, block, size Bytes, found *Findings) {
	if e.Logical%block != 0 || e.Physical%block != 0 || (e.Length%block != 0 && e.end() != size) {
		found.Add(NotAligned, e.Logical, e.Length, fmt.Sprintf("the data does not lie on borders of %d bytes", block))
	}
	if e.Physical == 0 {
		found.Add(Unknown, e.Logical, e.Length, "the kernel gives address 0, where no file can lie")
	}
}
