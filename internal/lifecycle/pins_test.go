package lifecycle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/survey"
)

// A flag that map has set and that is gone before the device goes live is a refusal; so
// is a file system that does not tell.
func TestClearedPinIsNoProof(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image.img")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := image.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	j := &mapJob{img: img, survey: &survey.Report{File: survey.File{Path: path}}, m: record.Record{Image: record.Image{Filesystem: "ext4"}}}
	_, unknown := pin.InForce(img.File(), "ext4")
	for kind, lost := range map[pin.Kind]bool{pin.Immutable: true, pin.Swap: false} { // proveClaim asks for the claim
		j.m.Pins = []record.Pin{{Kind: kind, Ours: true}}
		err := j.provePins()
		if want := lost || unknown != nil; (err != nil) != want {
			t.Errorf("%s: %v, and the flags cannot be read: %v", kind, err, unknown)
		}
		if lost && unknown == nil && (fault.ClassOf(err) != fault.NotMappable || !strings.Contains(err.Error(), "cleared the pin immutable")) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
