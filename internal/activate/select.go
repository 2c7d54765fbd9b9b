package activate

import (
	"dmloop/internal/fault"
	"dmloop/internal/tab"
)

// Select returns the entries of these names, in their order. A name that the table
// does not have is a NotFound error.
func Select(table tab.Table, names []string) ([]tab.Entry, error) {
	var picked []tab.Entry
	for _, name := range names {
		e, ok := table.Find(name)
		if !ok {
			return nil, &fault.Error{Class: fault.NotFound, Subject: name, Message: "no such line in dmlooptab"}
		}
		picked = append(picked, e)
	}
	return picked, nil
}

// Auto returns the entries that come up without being asked for: at boot those
// without noauto, in the initramfs those marked x-initrd.attach.
func Auto(table tab.Table, initrd bool) []tab.Entry {
	var picked []tab.Entry
	for _, e := range table {
		if initrd && e.Initrd || !initrd && !e.NoAuto {
			picked = append(picked, e)
		}
	}
	return picked
}
