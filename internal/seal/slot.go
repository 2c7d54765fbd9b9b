package seal

import (
	"fmt"

	"dmloop/extents"
)

// NoSlotError says that a file has no such swap slot: too few of its blocks lie
// in page-aligned runs.
type NoSlotError struct {
	Slot, Have int // Have is the number of slots that there are
}

func (e *NoSlotError) Error() string {
	return fmt.Sprintf("no swap slot %d: the file has %d whole pages on the device", e.Slot, e.Have)
}

// SlotRange returns where swap slot number slot of a file lies, as one extent
// of pageSize bytes. The layout's Physical must be addresses on the block
// device, so a btrfs layout must have been translated.
//
// The kernel numbers slots over the page-aligned parts of the physically
// contiguous runs of the file, in the order of the file, and disregards where
// the pages are in it (iomap_swapfile_activate and iomap_swapfile_add_extent in
// fs/iomap/swapfile.c for ext4 and xfs; btrfs_swap_activate and
// btrfs_add_swap_extent in fs/btrfs/inode.c). Slot 0 counts although it is never
// used for paging, and need not be the file's page 0, where the header is read
// from. f2fs counts its own blocks (check_swap_activate in fs/f2fs/data.c);
// these are pages, so the result is the same. Bytes after the last whole page
// of the file do not count.
//
// It returns *NoSlotError when the file has too few such pages, and another
// error when the layout has a gap before the slot, which the kernel refuses.
func SlotRange(l extents.Layout, pageSize extents.Bytes, slot int) (extents.Extent, error) {
	end := l.Size / pageSize * pageSize
	left, have := slot, 0
	var run extents.Extent
	// take counts the whole pages of the run that has ended.
	take := func() (extents.Extent, bool) {
		first := alignUp(run.Physical, pageSize)
		pages := (run.Physical+run.Length)/pageSize - first/pageSize
		if pages <= 0 {
			return extents.Extent{}, false
		}
		if extents.Bytes(left) < pages {
			at := first + extents.Bytes(left)*pageSize
			return extents.Extent{Logical: run.Logical + at - run.Physical, Physical: at, Length: pageSize}, true
		}
		left -= int(pages)
		have += int(pages)
		return extents.Extent{}, false
	}
	var next extents.Bytes
	for _, e := range l.Extents {
		if e.Logical >= end {
			break
		}
		if e.Logical != next {
			return extents.Extent{}, fmt.Errorf("layout has a gap or an overlap at byte %d", next)
		}
		e.Length = min(e.Length, end-e.Logical)
		next = e.Logical + e.Length
		if run.Length > 0 && run.Physical+run.Length == e.Physical {
			run.Length += e.Length
			continue
		}
		if at, ok := take(); ok {
			return at, nil
		}
		run = e
	}
	if at, ok := take(); ok {
		return at, nil
	}
	if next != end {
		return extents.Extent{}, fmt.Errorf("layout has a gap or an overlap at byte %d", next)
	}
	return extents.Extent{}, &NoSlotError{Slot: slot, Have: have}
}

// prologueFor returns the least prologue in bytes that holds all that swapping
// may touch: page 0 with the header, slot 0 (which suspending to disk may write)
// and slot 1.
func prologueFor(l extents.Layout, pageSize extents.Bytes) (extents.Bytes, error) {
	need := 2 * pageSize
	for slot := range 2 {
		at, err := SlotRange(l, pageSize, slot)
		if err != nil {
			return 0, err
		}
		need = max(need, alignUp(at.Logical+at.Length, pageSize))
	}
	return need, nil
}
