package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func figures(values map[string]float64) (list []figure) {
	for name, v := range values {
		list = append(list, figure{Group: "start", Name: name, Unit: microseconds, Passes: [2]float64{v, v}})
	}
	return list
}

func TestGoal(t *testing.T) {
	r := result{Figures: figures(map[string]float64{"a": 130, "b": 200, "base": 100})}
	r.Figures = append(r.Figures, figure{Name: "shaky", Unit: microseconds, Passes: [2]float64{100, 102}})
	for _, c := range []struct {
		goal goal
		want string
	}{
		{goal{"", "a", "b", "base", 0.3}, "0.3x (30 / 100 µs)"},
		{goal{"", "a", "b", "base", 0.29}, "0.3x (30 / 100 µs) **missed**"},
		{goal{"", "a", "b", "", 0.65}, "0.65x (130 / 200 µs)"},
		{goal{"", "a", "", "", 130}, "130"},
		{goal{"", "a", "", "", 129}, "130 **missed**"},
		{goal{"", "shaky", "", "", 129}, "101 ~"},
		{goal{"", "a", "none", "", 1}, "-"},
		{goal{"", "none", "", "", 1}, "-"},
	} {
		if got := c.goal.cell(r); got != c.want {
			t.Errorf("%+v: %q, want %q", c.goal, got, c.want)
		}
	}
}

func TestKeep(t *testing.T) {
	docs := t.TempDir()
	first := result{Kernel: "new", Figures: []figure{{Group: "start", Name: "a"}, {Group: "pair", Name: "b"}}}
	if err := keep(docs, &first); err != nil {
		t.Fatal(err)
	}
	second := result{Kernel: "new", Figures: []figure{{Group: "pair", Name: "c"}}}
	if err := keep(docs, &second); err != nil {
		t.Fatal(err)
	}
	got, err := readResult(filepath.Join(docs, "bench", "new.json"))
	if err != nil || len(got.Figures) != 2 || got.Figures[0].Name != "a" || got.Figures[1].Name != "c" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestCompare(t *testing.T) {
	before := result{Release: "7", Figures: figures(map[string]float64{"a": 100})}
	for _, c := range []struct {
		now  result
		want string
	}{
		{result{Release: "7", Figures: figures(map[string]float64{"a": 104.9})}, ""},
		{result{Release: "7", Figures: figures(map[string]float64{"a": 60})}, ""},
		{result{Release: "7", Figures: figures(map[string]float64{"a": 106})}, "6.0 % more"},
		{result{Release: "8", Figures: figures(map[string]float64{"a": 114})}, ""},
		{result{Release: "8", Figures: figures(map[string]float64{"a": 116})}, "16.0 % more"},
		{result{Release: "7", Figures: figures(map[string]float64{"b": 100})}, "a: not measured"},
	} {
		err := compare(before, c.now)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.now, err, c.want)
		}
	}
}

func TestPicturesAreXML(t *testing.T) {
	r := result{Release: "7.3"}
	for _, text := range []string{requestPicture(r), mapPicture(r)} {
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
		}
	}
}

func TestReplaceBlock(t *testing.T) {
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
