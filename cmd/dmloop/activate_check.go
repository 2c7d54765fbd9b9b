package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/hostfiles"
	"dmloop/internal/tab"
)

// runCheck says what in the table cannot work, and changes nothing.
func (o *activateOptions) runCheck(env *cliEnv) error {
	if _, err := os.Stat(o.path); o.named && errors.Is(err, fs.ErrNotExist) {
		return &fault.Error{Class: fault.NotFound, Subject: o.path, Message: "no such file"}
	}
	table, bad := readTab(o.path)
	wrong := []string{}
	for _, one := range flatten(bad) {
		var e *fault.Error
		if !errors.As(one, &e) {
			return bad // it cannot be read, so nothing is known of its lines
		}
		wrong = append(wrong, e.Message)
	}
	devices := blockdev.Local()
	for _, e := range table {
		if text := missing(devices, e); text != "" {
			wrong = append(wrong, fmt.Sprintf("line %d: %s", e.Line, text))
		}
	}
	fstab, err := os.ReadFile("/etc/fstab")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, race := range hostfiles.Races(table, hostfiles.ParseFstab(string(fstab)), func(a, b string) bool { return sameDevice(devices, a, b) }) {
		wrong = append(wrong, race.String())
	}
	if env.json {
		if err := printJSON(env, struct {
			Problems []string `json:"problems"`
		}{wrong}); err != nil {
			return err
		}
	} else {
		for _, text := range wrong {
			fmt.Fprintf(env.stdout, "%s: %s\n", printable(o.path), printable(text))
		}
	}
	if len(wrong) > 0 {
		return reported{fault.NotMappable}
	}
	return nil
}

// missing says what a line needs and is not there, or nothing.
func missing(devices blockdev.Finder, e tab.Entry) string {
	if e.Kind == tab.Image {
		if info, err := os.Stat(e.Source); err != nil {
			return fmt.Sprintf("the image %s: %v", e.Source, errors.Unwrap(err))
		} else if !info.Mode().IsRegular() {
			return "the image " + e.Source + " is not a regular file"
		}
		return ""
	}
	if _, err := devices.Find(e.Source); err != nil {
		return "the device of the shim " + e.Label + ": " + err.Error()
	}
	return ""
}

// sameDevice reports whether a source of fstab and the one of a shim are one device.
func sameDevice(devices blockdev.Finder, a, b string) bool {
	if strings.HasPrefix(a, "PARTLABEL=") {
		a = hostfiles.Link(a) // a name in the partition table, which only udev reads
	}
	one, err := devices.Find(a)
	if err != nil {
		return false
	}
	other, err := devices.Find(b)
	return err == nil && one.Number == other.Number
}
