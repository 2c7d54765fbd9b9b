package observe

import (
	"errors"
	"testing"

	"dmloop/guard"
	"dmloop/internal/image"
	"dmloop/internal/record"
)

func TestSame(t *testing.T) {
	want := record.Image{FileID: guard.FileID{Major: 254, Minor: 3, Inode: 12, Generation: 7, Birth: 1000}, FSUUID: "a"}
	with := func(change func(*record.Image)) record.Image { m := want; change(&m); return m }
	old := with(func(m *record.Image) { m.FSUUID = "" })
	unborn := with(func(m *record.Image) { m.Birth = 0 })
	there := image.Identity{FileID: guard.FileID{Major: 254, Minor: 3, Inode: 12, Generation: 7, Birth: 1000}}
	moved := image.Identity{FileID: guard.FileID{Major: 254, Minor: 9, Inode: 12, Generation: 7, Birth: 1000}}
	for _, c := range []struct {
		name   string
		record record.Image
		id     image.Identity
		uuid   string // empty: cannot be read
		want   Sameness
	}{
		{"where it was", want, there, "", TheSame},
		{"another number, the same file system", want, moved, "a", TheSame},
		{"another number, another file system", want, moved, "b", Other},
		{"another number, nothing told", want, moved, "", Untold},
		{"another file under the old number", want, image.Identity{FileID: guard.FileID{Major: 254, Minor: 3, Inode: 12, Generation: 7, Birth: 2000}}, "a", Other},
		{"the inode number given again", want, image.Identity{FileID: guard.FileID{Major: 254, Minor: 3, Inode: 12, Generation: 8, Birth: 1000}}, "a", Other},
		{"another inode", want, image.Identity{FileID: guard.FileID{Major: 254, Minor: 3, Inode: 13, Generation: 7, Birth: 1000}}, "a", Other},
		{"seen by its path only", want, image.Identity{FileID: guard.FileID{Major: 254, Minor: 9, Inode: 12, Birth: 1000}}, "a", TheSame},
		{"no births, the old number, another disk", unborn, there, "b", Other},
		{"no births, the old number", unborn, there, "a", TheSame},
		{"no births, nothing told", unborn, there, "", Untold},
		{"an old record", old, there, "a", TheSame},
		{"an old record, another number", old, moved, "a", Other},
	} {
		for _, moved := range []Sameness{TheSame, Untold, Other} {
			asked := false
			got, why := Same(c.record, c.id, Place{
				UUID: func() (string, error) {
					if c.uuid == "" {
						return "", errors.New("cannot be read")
					}
					return c.uuid, nil
				},
				Moved: func(record.Image) (Sameness, error) {
					asked = true
					if moved == Untold {
						return Untold, ErrCopies
					}
					return moved, nil
				},
			})
			want := c.want
			if asked {
				want = moved
			}
			if got != want || (why != nil) != (got == Untold) {
				t.Errorf("%s: %v (%v), want %v", c.name, got, why, want)
			}
			if elsewhere := c.id.Minor != 3 && c.uuid == "a" && c.record.FSUUID == "a"; asked != elsewhere {
				t.Errorf("%s: the place was asked: %v", c.name, asked)
			}
		}
	}
}
