package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"dmloop/dmtable"
)

// SpecSize is sizeof(struct dm_target_spec), which stands before the arguments of
// each row:
//
//	struct dm_target_spec {
//		__u64 sector_start;	//  0
//		__u64 length;		//  8
//		__s32 status;		// 16
//		__u32 next;		// 20
//		char target_type[16];	// 24
//	};
//
// In a request next counts from this spec, in a reply from the first one.
const SpecSize = 40

const targetLen = 16

// TableSize returns the bytes that PutTable writes for the table.
func TableSize(t dmtable.Table) int {
	n := 0
	for i := range t {
		n += rowSize(&t[i])
	}
	return n
}

func rowSize(r *dmtable.Row) int { return Align(SpecSize + len(r.Args) + 1) }

// Align rounds n up to the next multiple of 8, where the kernel wants rows and
// list entries to begin.
func Align(n int) int { return (n + 7) &^ 7 }

// PutTable writes the table as DM_TABLE_LOAD takes it to data, which must be
// zero and TableSize bytes long. It returns an error for a target's name that is
// too long and for arguments with a NUL.
func PutTable(data []byte, t dmtable.Table) error {
	ne := binary.NativeEndian
	for i := range t {
		row := &t[i]
		if row.Target == "" || len(row.Target) >= targetLen {
			return fmt.Errorf("row %d: impossible target name %q", i, row.Target)
		}
		if strings.IndexByte(row.Args, 0) >= 0 || strings.IndexByte(row.Target, 0) >= 0 {
			return fmt.Errorf("row %d has a NUL", i)
		}
		size := rowSize(row)
		ne.PutUint64(data[0:], uint64(row.Start))
		ne.PutUint64(data[8:], uint64(row.Length))
		ne.PutUint32(data[20:], uint32(size))
		copy(data[24:], row.Target)
		copy(data[SpecSize:], row.Args)
		data = data[size:]
	}
	return nil
}

// SameTable reports whether the rows of a reply are those of like, without making a table
// of them. What it does not understand is not the same.
func SameTable(data []byte, count uint32, like dmtable.Table) bool {
	if uint64(count) != uint64(len(like)) {
		return false
	}
	ne := binary.NativeEndian
	all, at := data, 0
	for i := range like {
		row := &like[i]
		if len(data) < SpecSize+len(row.Args)+1 {
			return false
		}
		if ne.Uint64(data[0:]) != uint64(row.Start) || ne.Uint64(data[8:]) != uint64(row.Length) ||
			!isString(data[24:24+targetLen], row.Target) || !isString(data[SpecSize:], row.Args) {
			return false
		}
		if i == len(like)-1 {
			break // what it says of a next one means nothing
		}
		next := uint64(ne.Uint32(data[20:]))
		if next < uint64(at+SpecSize+len(row.Args)+1) || next > uint64(len(all)) {
			return false
		}
		at, data = int(next), all[next:]
	}
	return true
}

// isString reports whether b begins with s and the NUL that ends it.
func isString(b []byte, s string) bool {
	return len(b) > len(s) && string(b[:len(s)]) == s && b[len(s)] == 0
}

// ParseTable reads the count rows of a DM_TABLE_STATUS reply. It returns an error
// when a row does not lie within data or a string does not end. Arguments share
// one string.
func ParseTable(data []byte, count uint32) (dmtable.Table, error) {
	if uint64(count)*SpecSize > uint64(len(data)) {
		return nil, fmt.Errorf("reply of %d bytes claims %d rows", len(data), count)
	}
	table := make(dmtable.Table, 0, count)
	var args strings.Builder
	args.Grow(len(data) - int(count)*SpecSize)
	ne := binary.NativeEndian
	at := 0
	for i := range count {
		if len(data)-at < SpecSize {
			return nil, fmt.Errorf("row %d does not lie within the reply", i)
		}
		spec := data[at:]
		target, err := parseTarget(spec, table)
		if err != nil {
			return nil, fmt.Errorf("row %d: %w", i, err)
		}
		end := bytes.IndexByte(spec[SpecSize:], 0)
		if end < 0 {
			return nil, fmt.Errorf("arguments of row %d do not end", i)
		}
		from := args.Len()
		args.Write(spec[SpecSize : SpecSize+end])
		table = append(table, dmtable.Row{
			Start:  dmtable.Sectors(ne.Uint64(spec[0:])),
			Length: dmtable.Sectors(ne.Uint64(spec[8:])),
			Target: target,
			Args:   args.String()[from:],
		})
		next := int64(ne.Uint32(spec[20:]))
		if i+1 < count && (next < int64(at+SpecSize+end+1) || next > int64(len(data))) {
			return nil, fmt.Errorf("row %d does not lie within the reply", i+1)
		}
		at = int(next)
	}
	return table, nil
}

// parseTarget reads the target's name; most rows have that of the row before and
// share its string.
func parseTarget(spec []byte, before dmtable.Table) (string, error) {
	name := spec[24 : 24+targetLen]
	end := bytes.IndexByte(name, 0)
	if end < 0 {
		return "", fmt.Errorf("target name does not end")
	}
	if n := len(before); n > 0 && before[n-1].Target == string(name[:end]) {
		return before[n-1].Target, nil
	}
	return string(name[:end]), nil
}
