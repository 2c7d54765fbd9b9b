package blockdev_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/dm/dmtest"
)

// Sector by sector, what Footprint says of a striped device is what the row's own
// arithmetic says.
func TestFootprintOfStripes(t *testing.T) {
	k := dmtest.New()
	dev := liveDevice(t, k, "host", "0 60 striped 3 4 8:1 100 8:2 200 8:3 7\n60 40 linear 8:4 1000")
	_, table, err := k.Conn().State(dm.ByDevice(dev))
	if err != nil {
		t.Fatal(err)
	}
	stripes, err := table[0].Stripes()
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		from := dmtable.Sectors(random.IntN(99))
		area := dmtable.Segment{Device: dev, Start: from, Length: 1 + dmtable.Sectors(random.IntN(int(100-from)))}
		var want []string
		for at := area.Start; at < area.End(); at++ {
			if at >= 60 {
				want = append(want, fmt.Sprint("8:4 ", 1000+at-60))
				continue
			}
			piece := stripes.Piece(at)
			want = append(want, fmt.Sprint(piece.Device, " ", piece.Start))
		}
		direct, deeper, err := blockdev.Footprint(k.Conn(), dev, []dmtable.Segment{area})
		if err != nil || len(deeper) > 0 {
			t.Fatal(deeper, err)
		}
		if len(direct) > 4 {
			t.Errorf("%d areas of a row with 3 stripes", len(direct))
		}
		var got []string
		for _, a := range direct {
			for at := a.Start; at < a.End(); at++ {
				got = append(got, fmt.Sprint(a.Device, " ", at))
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("sectors %d+%d: got %v, want %v", area.Start, area.Length, got, want)
		}
	}
}

// liveDevice makes a live device in a kernel of the tests.
func liveDevice(t *testing.T, k *dmtest.Kernel, name, text string) dmtable.Device {
	t.Helper()
	table, err := dmtable.ParseText(text)
	if err != nil {
		t.Fatal(err)
	}
	info, err := k.Conn().Create(name, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Conn().Load(dm.ByName(name), table, false); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Conn().Resume(dm.ByName(name), dm.ResumeOptions{}); err != nil {
		t.Fatal(err)
	}
	return info.Device
}

// Below a volume that became the origin of a snapshot lies the volume as it was, and
// below that the disk: a mapping made before lies there.
func TestFootprintBelowSnapshotOrigin(t *testing.T) {
	k := dmtest.New()
	real := liveDevice(t, k, "vg-lv-real", "0 1000 linear 8:16 2048")
	origin := liveDevice(t, k, "vg-lv", fmt.Sprintf("0 1000 snapshot-origin %s", real))
	direct, deeper, err := blockdev.Footprint(k.Conn(), origin, []dmtable.Segment{{Device: origin, Start: 10, Length: 20}})
	if err != nil {
		t.Fatal(err)
	}
	disk := dmtable.Device{Major: 8, Minor: 16}
	if want := []dmtable.Segment{{Device: real, Start: 10, Length: 20}}; !slices.Equal(direct, want) {
		t.Errorf("one layer down: %v", direct)
	}
	if want := []dmtable.Segment{{Device: disk, Start: 2058, Length: 20}}; !slices.Equal(deeper, want) {
		t.Errorf("further down: %v", deeper)
	}
}

func TestSharing(t *testing.T) {
	areas := []dmtable.Segment{{Device: vdb, Start: 100, Length: 10}, {Device: vdb, Start: 90, Length: 10}, {Device: vda1, Start: 0, Length: 1}}
	for _, test := range []struct {
		name, table   string
		shares, plain bool
	}{
		{"before", "0 90 linear 254:16 0", false, false},
		{"behind", "0 90 linear 254:16 110", false, false},
		{"last sector", "0 90 linear 254:16 109", true, true},
		{"first sector", "0 91 linear 254:16 0", true, true},
		{"second row", "0 8 linear 254:16 0\n8 8 linear 254:16 104", true, true},
		{"torn down", "0 1000 error", false, false},
		{"another device", "0 1000 linear 254:77 0", false, false},
		{"encrypted", "0 1000 crypt aes 0 254:16 0", true, false},
		{"snapshot of it", "0 1000 snapshot 254:16 254:77 P 8", false, false},
		{"pvmove elsewhere", "0 50 mirror core 1 1024 2 254:16 200 254:77 0", false, false},
		{"pvmove here", "0 50 mirror core 1 1024 2 254:77 0 254:16 60", true, false},
	} {
		for _, plain := range []bool{false, true} {
			want := test.shares
			if plain {
				want = test.plain
			}
			found, err := blockdev.Sharing(areas, []blockdev.Mapping{mapping(t, "other", test.table)}, plain)
			if err != nil || len(found) > 0 != want {
				t.Errorf("%s, only plain rows %v: %v %v", test.name, plain, found, err)
			}
		}
	}
	for text, covers := range map[string]bool{
		"0 1000 linear 254:16 0\n1000 8 linear 254:1 0": true, "0 1000 linear 254:16 0": false,
		"0 5 linear 254:16 90\n5 8 linear 254:1 0\n13 15 linear 254:16 95": true, "0 19 linear 254:16 90\n19 8 linear 254:1 0": false,
	} {
		if m := mapping(t, "host", text); m.Covers(areas) != covers {
			t.Errorf("%s covers: %v", text, !covers)
		}
	}
	_, err := blockdev.Sharing(areas, []blockdev.Mapping{mapping(t, "odd", "0 8 linear nonsense")}, false)
	if err == nil || !strings.Contains(err.Error(), "odd") {
		t.Errorf("a row that is not understood: %v", err)
	}
}
