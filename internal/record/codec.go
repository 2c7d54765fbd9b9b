package record

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"dmloop/dmtable"
	"dmloop/extents"
)

// stored is the first line of a record, in JSON. The layout follows, a line
// "logical physical length" in bytes for each extent, an empty line, and the table
// in dmsetup's format: inside the JSON a hundred thousand of each would take longer
// to write than the mapping takes to make.
type stored struct {
	Record
	FileSize extents.Bytes `json:"layout_size"`
	Rows     int           `json:"layout_rows"`
	Targets  int           `json:"table_rows"`
}

// Encode returns the stored form of m.
func Encode(m Record) ([]byte, error) {
	var b bytes.Buffer
	if err := m.encode(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// encode writes the stored form row by row: megabytes of text that are in memory
// only once cost more time to make than to write.
func (m Record) encode(w io.Writer) error {
	if m.headOnly {
		return fmt.Errorf("the record of %s was read without its layout and table", m.Name)
	}
	head, err := m.encodeHead(m.Layout.Size, len(m.Layout.Extents), len(m.Table))
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 64<<10)
	out.Write(head) // an error of out comes back from Flush
	for _, e := range m.Layout.Extents {
		b := strconv.AppendInt(out.AvailableBuffer(), int64(e.Logical), 10)
		b = strconv.AppendInt(append(b, ' '), int64(e.Physical), 10)
		b = strconv.AppendInt(append(b, ' '), int64(e.Length), 10)
		out.Write(append(b, '\n'))
	}
	out.WriteByte('\n')
	for i := range m.Table {
		b, err := m.Table[i : i+1].AppendText(out.AvailableBuffer())
		var bad *dmtable.RowError
		if errors.As(err, &bad) {
			bad.Row = i
		}
		if err != nil {
			return fmt.Errorf("encoding the record of %s: %w", m.Name, err)
		}
		out.Write(b)
	}
	return out.Flush()
}

// encodeHead returns the first line of the stored form.
func (m Record) encodeHead(fileSize extents.Bytes, rows, targets int) ([]byte, error) {
	m.Version = Version
	head, err := json.Marshal(stored{Record: m, FileSize: fileSize, Rows: rows, Targets: targets})
	if err != nil {
		return nil, fmt.Errorf("encoding the record of %s: %w", m.Name, err)
	}
	return append(head, '\n'), nil
}

// replaceHead writes the stored form of m to w, with layout and table taken from
// current, a stored record of the same mapping.
func (m Record) replaceHead(w, current *os.File) error {
	old, length, err := readHead(current)
	if err != nil {
		return err
	}
	sameRows := old.FileSize == m.Layout.Size && old.Rows == len(m.Layout.Extents) && old.Targets == len(m.Table)
	if old.UUID != m.UUID || !m.headOnly && !sameRows {
		return fmt.Errorf("the stored record of %s is another mapping's, or has another layout or table", m.Name)
	}
	head, err := m.encodeHead(old.FileSize, old.Rows, old.Targets)
	if err != nil {
		return err
	}
	if _, err := current.Seek(length, io.SeekStart); err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	_, err = io.Copy(w, current) // within the kernel
	return err
}

// readHead reads the first line of a record from its beginning, and returns its length
// in bytes. The reader is left somewhere after it.
func readHead(r io.Reader) (s stored, length int64, err error) {
	line, err := bufio.NewReader(r).ReadBytes('\n')
	if err != nil {
		return s, 0, fmt.Errorf("not a record: its first line has no end: %w", err)
	}
	s, err = decodeHead(line)
	return s, int64(len(line)), err
}

// decodeHead reads the first line of a record.
func decodeHead(line []byte) (stored, error) {
	var s stored
	if err := json.Unmarshal(line, &s); err != nil {
		return s, fmt.Errorf("not a record: %w", err)
	}
	m := s.Record
	if m.Version != Version {
		return s, fmt.Errorf("record of version %d, this dmloop knows version %d", m.Version, Version)
	}
	if err := dmtable.CheckName(m.Name); err != nil {
		return s, err
	}
	if err := dmtable.CheckUUID(m.UUID); err != nil {
		return s, err
	}
	if !isUUID(m.UUID, m.Name) {
		return s, fmt.Errorf("%q is not a uuid of the mapping %s", m.UUID, m.Name)
	}
	if !slices.Contains(states, m.State) {
		return s, fmt.Errorf("unknown state %q", m.State)
	}
	return s, nil
}

// Decode reads a stored record. Another version, a bad name or uuid, a part that is
// missing or text that does not parse is an error: a record that cannot be trusted
// is not used.
func Decode(b []byte) (Record, error) {
	head, rest, found := bytes.Cut(b, []byte("\n"))
	if !found {
		return Record{}, errors.New("not a record: it has no second line")
	}
	s, err := decodeHead(head)
	if err != nil {
		return Record{}, err
	}
	m := s.Record
	if m.Layout.Extents, rest, err = parseRows(rest, s.Rows); err != nil {
		return Record{}, err
	}
	m.Layout.Size = s.FileSize
	if m.Table, err = dmtable.ParseText(string(rest)); err != nil {
		return Record{}, fmt.Errorf("stored table: %w", err)
	}
	if len(m.Table) != s.Targets {
		return Record{}, fmt.Errorf("stored table has %d rows instead of %d", len(m.Table), s.Targets)
	}
	return m, nil
}

// parseRows reads the rows of a layout up to the empty line after them.
func parseRows(b []byte, want int) (rows []extents.Extent, rest []byte, err error) {
	if want < 0 || want > len(b)/len("0 0 1\n") {
		return nil, nil, fmt.Errorf("stored layout cannot have %d rows", want)
	}
	rows = make([]extents.Extent, 0, want)
	for line := 1; ; line++ {
		row, tail, found := bytes.Cut(b, []byte("\n"))
		if !found {
			return nil, nil, fmt.Errorf("stored layout ends at line %d", line)
		}
		b = tail
		if len(row) == 0 {
			break
		}
		var v [3]extents.Bytes
		for i := range v {
			field, after, _ := bytes.Cut(row, []byte(" "))
			row = after
			n, err := strconv.ParseInt(string(field), 10, 64)
			if err != nil || n < 0 {
				return nil, nil, fmt.Errorf("stored layout, line %d: %q is not a byte count", line, field)
			}
			v[i] = extents.Bytes(n)
		}
		if len(row) > 0 {
			return nil, nil, fmt.Errorf("stored layout, line %d: more than three fields", line)
		}
		rows = append(rows, extents.Extent{Logical: v[0], Physical: v[1], Length: v[2]})
	}
	if len(rows) != want {
		return nil, nil, fmt.Errorf("stored layout has %d rows instead of %d", len(rows), want)
	}
	return rows, b, nil
}
