package lifecycle

import (
	"errors"
	"strings"

	"dmloop/dmtable"
	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/observe"
	"dmloop/internal/record"
)

// findRecord returns the record of a mapping by its name or by its image's path.
func findRecord(store *record.Store, target string) (record.Record, error) {
	for _, name := range namesOf(target) {
		m, err := store.Load(name)
		switch {
		case err == nil:
			return m, nil
		case !errors.Is(err, record.ErrNotFound):
			return m, unusableRecord(store, target, "its record cannot be used", err)
		}
	}
	if found, err := find(target); err == nil {
		defer found.Close()
		m, err := findByImage(store, found.Identity())
		if untold := (*fault.Error)(nil); errors.As(err, &untold) {
			untold.Subject = target
		}
		if err == nil || !errors.Is(err, record.ErrNotFound) {
			return m, err
		}
	}
	return record.Record{}, noSuchMappingIn(store, target)
}

// noSuchMappingIn is noSuchMapping with the name that was meant, as far as one is near. store
// may be nil.
func noSuchMappingIn(store *record.Store, target string) error {
	if store == nil {
		return noSuchMapping(target)
	}
	names, err := store.Names()
	if err != nil {
		return noSuchMapping(target)
	}
	best, least := "", maxTypos+1
	for _, name := range names {
		if d := typos(target, name); d < least && d < len(target) {
			best, least = name, d
		}
	}
	if best == "" {
		return noSuchMapping(target)
	}
	return &fault.Error{Class: fault.NotFound, Subject: target, Message: "no such mapping", Remedy: advice.DidYouMean.Of(best)}
}

// maxTypos is how many wrong letters a name may have and still be taken for another.
const maxTypos = 2

// typos counts the letters to insert, remove or replace that make one word of the other
// (Levenshtein's distance).
func typos(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = min(diagonal, row[j], row[j+1]) + 1
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// unusableRecord is what is said of a record that cannot be read: dmloop does not guess.
func unusableRecord(store *record.Store, subject, message string, err error) error {
	return &fault.Error{Class: fault.Failed, Subject: subject, Message: message, Err: err,
		Remedy: advice.RemoveByHand.Of(store.Dir())}
}

func noSuchMapping(target string) error {
	return &fault.Error{Class: fault.NotFound, Subject: target, Message: "no such mapping", Remedy: advice.SeeList}
}

// namesOf lists the device names that a user may mean: the word as it is, as `list`
// prints it, and mangled, as it was given to map; or the device's path, as map printed
// it.
func namesOf(target string) []string {
	target = strings.TrimPrefix(target, mapper.Folder)
	var names []string
	if dmtable.CheckName(target) == nil {
		names = append(names, target)
	}
	if m, err := dmtable.Mangle(target); err == nil && m != target {
		names = append(names, m)
	}
	return names
}

// isOf reports whether the mapping is one of this inode.
func isOf(m record.Record, id image.Identity) bool {
	same, _ := observe.Same(m.Image, id, observe.PlaceOf(id))
	return same == observe.TheSame
}

// findByImage returns the record of the mapping of an inode.
func findByImage(store *record.Store, id image.Identity) (record.Record, error) {
	names, err := store.Names()
	if err != nil {
		return record.Record{}, err
	}
	missing := record.ErrNotFound
	for _, name := range names {
		m, err := store.Head(name)
		if errors.Is(err, record.ErrNotFound) {
			continue
		}
		if err != nil {
			missing = err // it may be the image's
			continue
		}
		switch same, why := observe.Same(m.Image, id, observe.PlaceOf(id)); same {
		case observe.TheSame:
			return store.Load(name)
		case observe.Untold:
			missing = &fault.Error{Class: fault.Failed, Message: "cannot tell whether it is the image of the mapping " + m.Name + ": " + why.Error(),
				Remedy: advice.UnmountCopy.Of(m.Name)}
		}
	}
	return record.Record{}, missing
}
