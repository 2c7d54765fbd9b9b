package guard

import "testing"

// Each level of sameness says no more than what can be known over that distance.
func TestFileIDLevels(t *testing.T) {
	file := FileID{Major: 254, Minor: 3, Inode: 12, Generation: 7, Birth: 1000}
	for _, c := range []struct {
		name                   string
		change                 func(*FileID)
		inode, file, elsewhere bool
	}{
		{"itself", func(*FileID) {}, true, true, true},
		{"under another device number", func(f *FileID) { f.Minor = 9 }, false, false, true},
		{"another inode", func(f *FileID) { f.Inode = 13 }, false, false, false},
		{"the inode number given again", func(f *FileID) { f.Generation = 8 }, true, false, false},
		{"the generation is not told", func(f *FileID) { f.Generation = 0 }, true, false, true},
		{"made at another time", func(f *FileID) { f.Birth = 2000 }, true, true, false},
		{"the birth is not told", func(f *FileID) { f.Birth = 0 }, true, true, true},
		{"seen by its path, after a mount", func(f *FileID) { f.Minor, f.Generation, f.Birth = 9, 0, 0 }, false, false, true},
	} {
		other := file
		c.change(&other)
		for _, pair := range [][2]FileID{{file, other}, {other, file}} {
			if got := pair[0].SameInode(pair[1]); got != c.inode {
				t.Errorf("%s: the same inode %v", c.name, got)
			}
			if got := pair[0].SameFile(pair[1]); got != c.file {
				t.Errorf("%s: the same file %v", c.name, got)
			}
			if got := pair[0].SameElsewhere(pair[1]); got != c.elsewhere {
				t.Errorf("%s: the same elsewhere %v", c.name, got)
			}
		}
	}
}
