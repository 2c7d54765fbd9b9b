package hostfiles

import (
	"slices"
	"strings"
	"testing"

	"dmloop/internal/tab"
)

// A mount past a shim is found by whatever names the file system; others are left alone.
func TestRaces(t *testing.T) {
	const uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
	table, err := tab.Parse("host UUID=" + uuid + " - shim\ndata /srv/data.img\nlater UUID=1111-2222 - shim,noauto\npart PARTUUID=1234abcd-02 - shim\npath /dev/sdc1 - shim\n")
	if err != nil {
		t.Fatal(err)
	}
	same := func(a, b string) bool {
		return (a == "LABEL=my disk" || a == "/dev/mapper/vg-home" || a == "/dev/mapper/data") && b == "UUID="+uuid || a == "/dev/sdz9" && b == "PARTUUID=1234abcd-02"
	}
	for source, want := range map[string]string{
		"UUID=" + uuid:                           "host",
		`UUID="` + strings.ToUpper(uuid) + `"`:   "host",
		"/dev/disk/by-uuid/" + uuid:              "host",
		"LABEL=my disk":                          "host",
		"LABEL=other":                            "",
		"/dev/mapper/host":                       "",
		"/dev/mapper/vg-home":                    "host", // a logical volume, as installers write it
		"/dev/mapper/vg-other":                   "",
		"/dev/mapper/data":                       "", // what the table brings up is past nothing
		"UUID=1111-2222":                         "", // nobody brings that one up by itself
		"PARTUUID=1234ABCD-02":                   "part",
		"/dev/sdz9":                              "part",
		"/dev/disk/by-partuuid/1234abcd-02":      "part",
		"/dev/sdc1":                              "path",
		"//server/share":                         "",
		"tmpfs":                                  "",
		"UUID=00000000-0000-0000-0000-000000000": "",
	} {
		races := Races(table, []Mount{{Source: "UUID=9", Point: "/"}, {Source: source, Point: "/srv"}}, same)
		var got []string
		for _, r := range races {
			got = append(got, r.Shim.Name)
			for _, word := range []string{source, "/srv", "/dev/mapper/" + r.Shim.Name, "line "} {
				if !strings.Contains(r.String(), word) {
					t.Errorf("%s: %q lacks %q", source, r, word)
				}
			}
		}
		if wanted := strings.Fields(want); !slices.Equal(got, wanted) {
			t.Errorf("%s: %q, want %q", source, got, wanted)
		}
	}
}

// The links are those that udev makes.
func TestLink(t *testing.T) {
	for source, want := range map[string]string{
		"/dev/sdb1": "/dev/sdb1",
		"/dev/a=b":  "/dev/a=b",
		"UUID=0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0": "/dev/disk/by-uuid/0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
		"UUID=12AB-34CD":       "/dev/disk/by-uuid/12AB-34CD",
		"PARTUUID=1234ABCD-02": "/dev/disk/by-partuuid/1234abcd-02",
		"LABEL=data":           "/dev/disk/by-label/data",
		`LABEL="my disk"`:      `/dev/disk/by-label/my\x20disk`,
		`LABEL=../a\b`:         `/dev/disk/by-label/..\x2fa\x5cb`,
		"PARTLABEL=Größe=1":    "/dev/disk/by-partlabel/Größe=1",
	} {
		if got := Link(source); got != want {
			t.Errorf("%s: %s, want %s", source, got, want)
		}
	}
}
