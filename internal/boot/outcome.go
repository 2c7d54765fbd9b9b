package boot

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"dmloop/dmtable"
	"dmloop/internal/atomicfile"
	"dmloop/internal/hostfiles"
)

// note is what is kept of an image until the machine goes down.
type note struct {
	Host    hostfiles.BootHost `json:"host"`
	Outcome Outcome            `json:"outcome"`
}

// refused takes the fallback and keeps the reason. What fails on the way to a loop
// device leaves the shell.
func (b Booter) refused(ctx context.Context, m Manifest, h hostfiles.BootHost, reasons []string, fallback Fallback) (Outcome, error) {
	out := Outcome{Refused: reasons, Fallback: fallback}
	if fallback == Loop {
		device, err := b.overLoop(ctx, m, h)
		if err != nil {
			out.Refused = append(out.Refused, "and it cannot be put on a loop device: "+err.Error())
			out.Fallback = Shell
		} else {
			out.Device, h.Mounted = device, true
		}
	}
	return out, b.note(h, out)
}

func (b Booter) overLoop(ctx context.Context, m Manifest, h hostfiles.BootHost) (string, error) {
	if err := mountHost(h, false); err != nil {
		return "", err
	}
	device, err := b.System.MapLoop(ctx, filepath.Join(h.Point, m.Path), mapOptions(m))
	if err != nil {
		err = errors.Join(err, unmountHost(h))
	}
	return device, err
}

// note keeps the outcome for later calls and for the real root.
func (b Booter) note(h hostfiles.BootHost, out Outcome) error {
	if err := os.MkdirAll(b.Run, 0o700); err != nil {
		return err
	}
	text, err := json.Marshal(note{h, out})
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(b.Run, h.Name+".json"), text, 0o600)
}

// earlier returns what an earlier call made of the image.
func (b Booter) earlier(name string) (Outcome, bool) {
	n, err := readNote(b.Run, name)
	if err != nil {
		return Outcome{}, false
	}
	n.Outcome.There = true
	return n.Outcome, true
}

func readNote(dir, name string) (note, error) {
	var n note
	if err := dmtable.CheckName(name); err != nil {
		return n, err
	}
	text, err := readRegular(filepath.Join(dir, name+".json"))
	if err != nil {
		return n, err
	}
	return n, json.Unmarshal(text, &n)
}

// Hosts lists, for the systemd generator, the host file systems of the images that
// this boot mapped. Those that fell back to a loop device need nothing more.
func Hosts(dir string) ([]hostfiles.BootHost, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var hosts []hostfiles.BootHost
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		n, err := readNote(dir, name)
		switch {
		case err != nil:
			errs = append(errs, err)
		case len(n.Outcome.Refused) == 0 && n.Host.Name == name && n.Host.Point == Point(name):
			hosts = append(hosts, n.Host)
		}
	}
	return hosts, errors.Join(errs...)
}
