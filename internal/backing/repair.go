package backing

import (
	"context"
	"errors"
	"fmt"
	"os"

	"dmloop/extents"
)

// maxRounds bounds the repair: one round does the work, a second one what a file
// system did differently from expected, and more do not help.
const maxRounds = 4

// plan is what a layout needs, in order of the file.
type plan struct {
	zero    []stretch // read as zeros and want to be zeros on the disk: holes, unwritten
	rewrite []stretch // have data that wants blocks of its own: shared, encoded
	report  Report
}

// planRepair decides what to do about each stretch of a file whose size is a multiple
// of the block. Rows that nothing here repairs are left alone, and so is a whole file
// whose rows overlap or run backwards: what looks like a hole there need not be one.
func planRepair(l extents.Layout) plan {
	var p plan
	l = l.Clip()
	pos := extents.Bytes(0)
	for _, e := range l.Extents {
		if e.Length <= 0 || e.Logical < pos {
			return plan{}
		}
		if e.Logical > pos {
			p.zero = join(p.zero, stretch{pos, e.Logical - pos})
			p.report.Holes += e.Logical - pos
		}
		s := stretch{e.Logical, e.Length}
		pos = e.Logical + e.Length
		switch {
		case e.Flags&(extents.FlagUnknown|extents.FlagDelalloc|extents.FlagEncrypted|extents.FlagInline|extents.FlagTail) != 0:
		case e.Flags&extents.FlagUnwritten != 0:
			p.zero = join(p.zero, s)
			p.report.Unwritten += e.Length
		case e.Flags&extents.FlagEncoded != 0:
			p.rewrite = join(p.rewrite, s)
			p.report.Encoded += e.Length
		case e.Flags&extents.FlagShared != 0:
			p.rewrite = join(p.rewrite, s)
			p.report.Shared += e.Length
		}
	}
	if pos < l.Size {
		p.zero = join(p.zero, stretch{pos, l.Size - pos})
		p.report.Holes += l.Size - pos
	}
	return p
}

// join appends s to list, as part of the last stretch where they touch.
func join(list []stretch, s stretch) []stretch {
	if n := len(list); n > 0 && list[n-1].offset+list[n-1].length == s.offset {
		list[n-1].length += s.length
		return list
	}
	return append(list, s)
}

func (p plan) bytes() extents.Bytes {
	return p.report.Holes + p.report.Unwritten + p.report.Shared + p.report.Encoded + p.report.Written
}

// newBlocks returns how much of the plan takes free space.
func (p plan) newBlocks() extents.Bytes {
	return p.report.Holes + p.report.Shared + p.report.Encoded
}

// repairer repairs one file that nobody else may change meanwhile.
type repairer struct {
	file  *os.File
	path  string // for errors
	guard func() error
	meter *meter
	mode  writeMode
}

// run repairs in rounds until nothing is left to do, or for maxRounds rounds. What
// it could not repair is still in the layout. The file is on the disk (fsync) afterwards.
func (r *repairer) run(ctx context.Context) (Report, error) {
	var total Report
	for total.Rounds < maxRounds {
		if err := r.file.Sync(); err != nil {
			return total, err
		}
		layout, err := extents.Read(r.file)
		if err != nil {
			return total, err
		}
		todo := planRepair(layout)
		if todo.bytes() == 0 {
			return total, nil
		}
		if err := spaceFor(r.file, r.path, todo.newBlocks()); err != nil {
			return total, err
		}
		total.Rounds++
		if err := r.round(ctx, todo); err != nil {
			return total, noSpace(r.file, r.path, todo.newBlocks(), err)
		}
		total.add(todo.report)
	}
	return total, r.file.Sync()
}

// round does what the plan says. Each write leaves the content as it is, so it may
// stop anywhere.
func (r *repairer) round(ctx context.Context, todo plan) (err error) {
	r.meter.grow(todo.bytes())
	for _, s := range todo.zero {
		if err := r.guard(); err != nil {
			return err
		}
		// In one call per stretch, so that a hole becomes as few extents as can be.
		if err := allocate(ctx, r.file, s); err != nil {
			return err
		}
	}
	w, err := newWriter(r.file, r.mode, r.guard, r.meter.tick)
	if err != nil {
		return fmt.Errorf("%s: %w", r.path, err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	left, err := w.zeroByDisk(ctx, todo.zero)
	if err != nil {
		return err
	}
	if err := w.zero(ctx, left); err != nil {
		return err
	}
	return w.rewrite(ctx, todo.rewrite)
}
