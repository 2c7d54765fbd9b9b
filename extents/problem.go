package extents

import "fmt"

// Rule is the stable name of a rule that an image must obey to be mappable.
// Scripts rely on the names; they never change their meaning.
type Rule string

// The rules, in the order in which `dmloop check` reports them.
const (
	NotRegular        Rule = "not-regular"
	Empty             Rule = "empty"
	SizeUnaligned     Rule = "size-unaligned"
	UnsupportedFS     Rule = "unsupported-fs"
	Hole              Rule = "hole"
	Unwritten         Rule = "unwritten"
	Delalloc          Rule = "delalloc"
	Unknown           Rule = "unknown"
	Shared            Rule = "shared"
	Encoded           Rule = "encoded"
	Encrypted         Rule = "encrypted"
	Inline            Rule = "inline"
	Tail              Rule = "tail"
	NotAligned        Rule = "not-aligned"
	Compressed        Rule = "compressed"
	Verity            Rule = "verity"
	DAX               Rule = "dax"
	DataJournal       Rule = "data-journal"
	Realtime          Rule = "realtime"
	MultiDevice       Rule = "multi-device"
	OutOfRange        Rule = "out-of-range"
	Overlap           Rule = "overlap"
	Unstable          Rule = "unstable"
	DirtyCache        Rule = "dirty-cache"
	OpenElsewhere     Rule = "open-elsewhere"
	ActiveSwap        Rule = "active-swap"
	SealCorrupt       Rule = "seal-corrupt"
	BtrfsCOW          Rule = "btrfs-cow"
	BtrfsProfile      Rule = "btrfs-profile"
	Unsealed          Rule = "unsealed"
	Unpinnable        Rule = "unpinnable"
	MountedDirectly   Rule = "mounted-directly"
	UnresolvableStack Rule = "unresolvable-stack"
	Indirect          Rule = "indirect"
	TooManyExtents    Rule = "too-many-extents"
)

// Problem is one reason why an image cannot be mapped as it is.
type Problem struct {
	Rule    Rule   `json:"rule"`
	Offset  Bytes  `json:"offset"`  // first byte of the file concerned; 0 when it is the whole file
	Length  Bytes  `json:"length"`  // bytes concerned from Offset; 0 when it is the whole file
	Message string `json:"message"` // what is wrong
	Hint    string `json:"hint"`    // what to do about it; empty when nothing can be done
}

// String returns the message with the rule's name, as error output shows it.
func (p Problem) String() string { return fmt.Sprintf("%s (%s)", p.Message, p.Rule) }
