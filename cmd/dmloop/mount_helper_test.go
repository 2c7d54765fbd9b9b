package main

import (
	"slices"
	"strings"
	"testing"
)

// What mount(8) hands to a helper is read as it writes it, and each option goes to whom it
// concerns.
func TestMountCalls(t *testing.T) {
	for _, c := range []struct {
		args, name, fstype, rest string
		offset, limit            int64
		readOnly, fake           bool
	}{
		{args: "/srv/data.img /mnt -o rw", rest: "rw"},
		{args: "/srv/data.img /mnt -o ro,name=x,offset=1M,sizelimit=16M,fstype=xfs,noatime", name: "x", fstype: "xfs", rest: "ro noatime", offset: 1 << 20, limit: 16 << 20, readOnly: true},
		{args: "/srv/data.img /mnt -sv -o rw,nofail,x-systemd.automount,_netdev,context=\"a,b\"", rest: "rw context=\"a,b\""},
		{args: "/srv/data.img /mnt -f -t dmloop -o rw", rest: "rw", fake: true},
		{args: "-o rw,name=a/b -n /srv/data.img /mnt", name: "a/b", rest: "rw"},
	} {
		call, err := parseMountCall(strings.Fields(c.args), 2)
		if err != nil || call.source != "/srv/data.img" || call.dir != "/mnt" || call.fake != c.fake {
			t.Errorf("%s: %+v, %v", c.args, call, err)
		}
		o, fstype, rest, err := call.innerMount()
		if err != nil || o.Name != c.name || fstype != c.fstype || strings.Join(rest, " ") != c.rest || int64(o.Window.Offset) != c.offset || int64(o.Window.Limit) != c.limit || o.ReadOnly != c.readOnly {
			t.Errorf("%s: %+v, %s, %q, %v", c.args, o, fstype, rest, err)
		}
	}
	call, err := parseMountCall([]string{"/mnt", "-l", "-fr"}, 1)
	if err != nil || call.dir != "/mnt" || !slices.Equal(call.flags, []string{"-l", "-f", "-r"}) {
		t.Errorf("umount: %+v, %v", call, err)
	}
	for _, wrong := range []string{"", "/srv/data.img", "/a /b /c", "/a /b -o", "/a /b -N /proc/1/ns/mnt"} {
		if call, err := parseMountCall(strings.Fields(wrong), 2); err == nil {
			t.Errorf("%q: %+v", wrong, call)
		}
	}
	if _, _, _, err := (mountCall{options: []string{"offset=x"}}).innerMount(); err == nil {
		t.Error("an offset that is none")
	}
}
