package lifecycle

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/image"
	"dmloop/internal/persist"
	"dmloop/internal/survey"
)

// Which ways are offered depends on the machine.
func TestWays(t *testing.T) {
	direct := extents.Problem{Rule: extents.MountedDirectly}
	crypt := extents.Problem{Rule: extents.UnresolvableStack, Remedy: advice.ShimOnTop.Of("/dev/mapper/c")}
	suspended := extents.Problem{Rule: extents.UnresolvableStack, Remedy: advice.ResumeChanged.Of("c")}
	tmpfs := extents.Problem{Rule: extents.UnsupportedFS}
	at := func(points ...string) (mounts []image.Mount) {
		for _, p := range points {
			mounts = append(mounts, image.Mount{Point: p, Root: "/"})
		}
		return mounts
	}
	for _, c := range []struct {
		name     string
		problems []extents.Problem
		g        ground
		want     []WayKind
	}{
		{"nothing in the way", nil, ground{loop: true}, nil},
		{"a partition", []extents.Problem{direct}, ground{device: "/dev/sdb1", mounts: at("/srv"), asked: true, loop: true}, []WayKind{WayShim, WayPersist, WayLoop}},
		{"the root file system", []extents.Problem{direct}, ground{device: "/dev/sda1", mounts: at("/"), asked: true, groups: []string{"a", "b"}},
			[]WayKind{WayPersist, WayVolume, WayVolume}},
		{"the root file system at a second place", []extents.Problem{direct}, ground{device: "/dev/sda1", mounts: at("/", "/srv")}, []WayKind{WayPersist}},
		{"/usr", []extents.Problem{direct}, ground{device: "/dev/sda2", mounts: at("/usr")}, []WayKind{WayPersist}},
		{"a stick", []extents.Problem{direct}, ground{device: "/dev/sdb1", mounts: at("/media/x"), removable: true, groups: []string{"a"}, loop: true},
			[]WayKind{WayRemovable, WayLoop}},
		{"dm-crypt", []extents.Problem{crypt}, ground{device: "/dev/mapper/c", mapped: true, mounts: at("/srv"), loop: true}, []WayKind{WayShim, WayLoop}},
		{"dm-crypt below the root file system", []extents.Problem{crypt}, ground{device: "/dev/mapper/c", mapped: true, mounts: at("/"), loop: true}, []WayKind{WayLoop}},
		{"a suspended device", []extents.Problem{suspended}, ground{device: "/dev/mapper/c", mapped: true, mounts: at("/srv"), loop: true}, []WayKind{WayLoop}},
		{"no file system for images", []extents.Problem{tmpfs}, ground{elsewhere: []Way{{Kind: WayElsewhere}}, groups: []string{"a"}, loop: true},
			[]WayKind{WayElsewhere, WayVolume, WayLoop}},
		{"more than the mount in the way", []extents.Problem{direct, tmpfs}, ground{device: "/dev/sdb1", mounts: at("/srv"), loop: true}, []WayKind{WayLoop}},
	} {
		c.g.report = survey.FolderReport{Problems: c.problems}
		var got []WayKind
		for _, w := range c.g.ways() {
			got = append(got, w.Kind)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// What a board boots from is no stick, whatever it hangs on.
func TestStays(t *testing.T) {
	at := func(point string) []image.Mount { return []image.Mount{{Point: "/srv"}, {Point: point}} }
	for point, want := range map[string]bool{"/": true, "/usr": true, "/data": true, "/media/stick": false} {
		if got := stays("UUID=1 /data ext4 defaults 0 2\n", at(point)); got != want {
			t.Errorf("%s: %v", point, got)
		}
	}
}

// Why no shim can be had at boot is said, with what helps; what nobody asked is no refusal.
func TestWayAtBoot(t *testing.T) {
	g := ground{report: survey.FolderReport{Problems: []extents.Problem{{Rule: extents.MountedDirectly}}}, mounts: []image.Mount{{Point: "/", Root: "/"}}}
	for _, c := range []struct {
		err     error
		asked   bool
		refusal string
		remedy  extents.Remedy
	}{
		{nil, true, "", extents.Remedy{}},
		{nil, false, "", extents.Remedy{}},
		{&persist.RefusedError{Message: "no", Remedy: advice.WriteFstab}, true, "no", advice.WriteFstab},
		{errors.New("broken"), true, "broken", extents.Remedy{}},
	} {
		g.persist, g.asked = c.err, c.asked
		ways := g.ways()
		if w := ways[0]; w.Kind != WayPersist || w.Refusal != c.refusal || w.Remedy != c.remedy || w.Unasked == c.asked {
			t.Errorf("%v: %+v", c.err, w)
		}
	}
}

// A file system is mounted again as the administrator wrote it, or as it is.
func TestMountOptions(t *testing.T) {
	mount := image.Mount{Point: "/srv", Options: []string{"rw", "noexec", "relatime"}, SuperOptions: []string{"rw", "attr2", "logdev=/dev/sdc", "subvol=/a", "noquota"}}
	for _, c := range []struct{ fstab, want string }{
		{"", "noexec,logdev=/dev/sdc,subvol=/a"},
		{"UUID=1 /other ext4 ro 0 2\n", "noexec,logdev=/dev/sdc,subvol=/a"},
		{"UUID=1 /srv ext4 defaults,nofail,x-systemd.requires=x 0 2\n", ""},
		{"UUID=1 /srv ext4 defaults,noatime,errors=remount-ro 0 2\n", "noatime,errors=remount-ro"},
		{"UUID=1 /srv ext4\n", "noexec,logdev=/dev/sdc,subvol=/a"},
	} {
		if got := mountOptions(c.fstab, mount); got != c.want {
			t.Errorf("%q: %q, want %q", c.fstab, got, c.want)
		}
	}
	if got := mountOptions("", image.Mount{Options: []string{"rw", "relatime"}, SuperOptions: []string{"rw", "subvol=/"}}); got != "" {
		t.Errorf("%q", got)
	}
}

// Bind mounts and subvolumes come back, too.
func TestRemounts(t *testing.T) {
	sub := func(root string) []string { return []string{"rw", "subvol=" + root} }
	for _, c := range []struct {
		name, kind string
		mounts     []image.Mount
		want       []Remount
	}{
		{"bind mounts", "ext4", []image.Mount{{Root: "/a b", Point: "/x"}, {Root: "/", Point: "/srv"}, {Root: "/", Point: "/again"}},
			[]Remount{{Type: "ext4", Options: "ro", Point: "/srv"}, {Bind: "/srv/a b", Point: "/x"}, {Bind: "/srv", Point: "/again"}}},
		{"a bind mount alone", "ext4", []image.Mount{{Root: "/a b", Point: "/x"}}, nil},
		{"subvolumes", "btrfs", []image.Mount{{Root: "/a", Point: "/srv", SuperOptions: sub("/a")}, {Root: "/b", Point: "/x", SuperOptions: sub("/b")},
			{Root: "/a/folder", Point: "/y", SuperOptions: sub("/a")}},
			[]Remount{{Type: "btrfs", Options: "ro", Point: "/srv"}, {Type: "btrfs", Options: "subvol=/b", Point: "/x"}, {Bind: "/srv/folder", Point: "/y"}}},
		{"a folder of a subvolume that is mounted nowhere", "btrfs", []image.Mount{{Root: "/a", Point: "/srv", SuperOptions: sub("/a")},
			{Root: "/ab/folder", Point: "/y", SuperOptions: sub("/ab")}}, nil},
	} {
		got, ok := Way{Type: c.kind, Options: "ro", Mounts: mainFirst(c.mounts)}.Remounts()
		if !reflect.DeepEqual(got, c.want) || ok != (c.want != nil) {
			t.Errorf("%s: %+v, %v", c.name, got, ok)
		}
	}
}

// A mount that a later one hides is no place to keep images.
func TestCovered(t *testing.T) {
	mounts := []image.Mount{{ID: 1, Point: "/a", Device: dmtable.Device{Major: 1}}, {ID: 2, Point: "/b"}, {ID: 3, Point: "/a"}}
	for i, want := range []bool{true, false, false} {
		if got := covered(mounts, mounts[i]); got != want {
			t.Errorf("mount %d: %v", i, got)
		}
	}
}
