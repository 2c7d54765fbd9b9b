package sums

import (
	"os"
	"testing"
)

// TestObjectsBelongToTheSource fails where the source or the flags changed and "make
// generate" was not run, or an object was changed by itself.
func TestObjectsBelongToTheSource(t *testing.T) {
	want, err := os.ReadFile("../" + File)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Sum("..")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the gate's objects are not those of its source (run \"make generate\"):\n%s\nwritten down:\n%s", got, want)
	}
}
