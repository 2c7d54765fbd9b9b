package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRow(t *testing.T) {
	for _, c := range []struct {
		row  row
		goal string
		met  bool
		text string
	}{
		{row{Ours: []float64{3, 1, 2}, Theirs: []float64{4, 4}, Unit: "ms", AtMost: true, Goal: 0.5}, "≤ 0.5x", true, "0.5x (2 / 4 ms)"},
		{row{Ours: []float64{1, 2}, Theirs: []float64{1}, Unit: "kIOPS", Goal: 3}, "≥ 3x", false, "1.5x (1.5 / 1 kIOPS) **missed**"},
		{row{Ours: []float64{90}, Unit: "MiB", AtMost: true, Goal: 100}, "≤ 100 MiB", true, "90 MiB"},
		{row{Ours: []float64{2}, Theirs: []float64{1}, Unit: "ms", AtMost: true}, "-", false, "2x (2 / 1 ms)"},
	} {
		if c.row.goal() != c.goal || c.row.met() != c.met || c.row.String() != c.text {
			t.Errorf("goal %q met %t, %q; want %+v", c.row.goal(), c.row.met(), c.row, c)
		}
	}
}

func TestReport(t *testing.T) {
	fast := row{What: "a", Ours: []float64{1}, Theirs: []float64{2}, Unit: "ms", AtMost: true, Goal: 0.6}
	slow := fast
	slow.Goal = 0.2
	only := row{What: "b", Ours: []float64{7}, Unit: "MiB"}
	text := render([]column{{"uml", "6.1", []row{slow}}, {"new", "7.3", []row{fast, only}}}, "a machine", time.Unix(0, 0))
	want := `Measured on 1970-01-01; a machine.

| what | goal | uml (6.1) | new (7.3) |
|---|---|---|---|
| a | ≤ 0.2x, ≤ 0.6x | 0.5x (1 / 2 ms) **missed** | 0.5x (1 / 2 ms) |
| b | - | - | 7 MiB |
`
	if text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("before\n"+blockBegin+"\nold\n"+blockEnd+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceBlock(path, "new"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if want := "before\n" + blockBegin + "\n\nnew\n" + blockEnd + "\nafter\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if err := os.WriteFile(path, []byte("no marks"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceBlock(path, "new"); err == nil {
		t.Error("a file without marks was changed")
	}
}

func TestReadings(t *testing.T) {
	log := `time=x level=DEBUG msg="kernel calls" ioctl=FS_IOC_FIEMAP calls=3 took=1.5ms
time=x level=DEBUG msg=other took=9s
time=x level=DEBUG msg="kernel calls" ioctl=DM_TABLE_LOAD calls=1 took=500µs
`
	if got := ioctlTime(log); got != 2 {
		t.Errorf("%g ms", got)
	}
	b := &bed{}
	at, length, below := b.largest("0 8 linear 253:0 100\n8 32 linear 253:0 2048\n40 8 linear 253:0 0\n")
	if at != 8*512 || length != 32*512 || below != 2048*512 {
		t.Errorf("%d %d %d", at, length, below)
	}
	rows, err := readRows(strings.NewReader(`{"what":"a","ours":[1]}` + "\n"))
	if err != nil || len(rows) != 1 || rows[0].What != "a" {
		t.Errorf("%+v, %v", rows, err)
	}
	if _, err := readRows(strings.NewReader("oops\n")); err == nil {
		t.Error("nonsense was read")
	}
}
