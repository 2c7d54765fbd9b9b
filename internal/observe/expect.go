// Package observe reads the state of a mapping again, for the guard and for
// `dmloop verify`, as the values that guard.Check compares. It changes nothing.
package observe

import (
	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/pin"
	"dmloop/internal/record"
)

// Expect turns a record into what a check expects to find.
func Expect(m record.Record) guard.Expected {
	policy, err := guard.ParsePolicy(string(m.OnChange))
	if err != nil {
		policy = guard.OnChangeError // a word that nobody knows must not mean "do nothing"
	}
	return guard.Expected{
		Name:     m.Name,
		Identity: guard.Identity{FileID: m.Image.FileID, Size: m.Image.Size},
		Layout:   m.Layout,
		Pins:     guard.Pins{InForce: m.PinKinds(), Grade: m.Grade},
		Exposed:  m.Image.Reflink && m.Grade == pin.Guarded,
		Base:     guard.Base{Device: m.Base.Device, UUID: m.Base.UUID, Table: m.Base.Table},
		Table:    m.Table, Needs: needs(m.Table), ReadOnly: m.ReadOnly,
		Policy: policy,
	}
}

// needs returns how far the rows of a table reach on each device that they name.
func needs(table dmtable.Table) map[dmtable.Device]dmtable.Sectors {
	need := map[dmtable.Device]dmtable.Sectors{}
	for _, row := range table {
		if seg, err := row.Segment(); err == nil {
			need[seg.Device] = max(need[seg.Device], seg.End())
		}
	}
	return need
}
