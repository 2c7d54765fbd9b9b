package tab

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/size"
)

// words are the options without a value.
var words = map[string]func(*Entry){
	"defaults":        func(*Entry) {},
	"auto":            func(e *Entry) { e.NoAuto = false },
	"noauto":          func(e *Entry) { e.NoAuto = true },
	"fail":            func(e *Entry) { e.NoFail = false },
	"nofail":          func(e *Entry) { e.NoFail = true },
	"ro":              func(e *Entry) { e.ReadOnly = true },
	"read-only":       func(e *Entry) { e.ReadOnly = true },
	"readonly":        func(e *Entry) { e.ReadOnly = true },
	"rw":              func(e *Entry) { e.ReadOnly = false },
	"_netdev":         func(e *Entry) { e.Network = true },
	"partscan":        func(e *Entry) { e.PartScan = true },
	"no-guard":        func(e *Entry) { e.NoGuard = true },
	"unsafe":          func(e *Entry) { e.Unsafe = true },
	"shim":            func(e *Entry) { e.Kind = Shim },
	"x-initrd.attach": func(e *Entry) { e.Initrd = true },
}

// values are the options with a value.
var values = map[string]func(*Entry, string) error{
	"pin": func(e *Entry, v string) error { return oneOf(&e.Pin, v, "auto", "immutable", "swap", "none") },
	"on-change": func(e *Entry, v string) (err error) {
		if e.OnChange, err = guard.ParsePolicy(v); v == "" {
			err = errors.New("a policy is missing")
		}
		return err
	},
	"gate":       func(e *Entry, v string) error { return oneOf(&e.Gate, v, "auto", "bpf", "fanotify", "none") },
	"udev-rules": func(e *Entry, v string) error { return oneOf(&e.UdevRules, v, "links", "all") },
	"offset":     func(e *Entry, v string) error { return sectors(&e.Offset, v) },
	"sizelimit":  func(e *Entry, v string) error { return sectors(&e.SizeLimit, v) },
	"max-extents": func(e *Entry, v string) (err error) {
		if e.MaxExtents, err = strconv.Atoi(v); err != nil || e.MaxExtents < 1 {
			err = fmt.Errorf("%q is not a number of extents", v)
		}
		return err
	},
	"x-systemd.device-timeout": func(e *Entry, v string) error {
		if !timeSpan().MatchString(v) {
			return fmt.Errorf("%q is not a time span such as 90s, 1min or infinity", v)
		}
		e.Units.DeviceTimeout = v
		return nil
	},
	"x-systemd.requires":    func(e *Entry, v string) error { return unit(&e.Units.Requires, v) },
	"x-systemd.after":       func(e *Entry, v string) error { return unit(&e.Units.After, v) },
	"x-systemd.before":      func(e *Entry, v string) error { return unit(&e.Units.Before, v) },
	"x-systemd.wanted-by":   func(e *Entry, v string) error { return unit(&e.Units.WantedBy, v) },
	"x-systemd.required-by": func(e *Entry, v string) error { return unit(&e.Units.RequiredBy, v) },
	"x-systemd.requires-mounts-for": func(e *Entry, v string) error {
		if !strings.HasPrefix(v, "/") || strings.ContainsAny(v, " \t\"'\\%") {
			return fmt.Errorf("%q is not a plain absolute path", v)
		}
		e.Units.MountsFor = append(e.Units.MountsFor, v)
		return nil
	},
}

// Patterns are compiled when the first line asks: most commands read no table.
var (
	// timeSpan is the part of systemd.time(7) that people write in such a place.
	timeSpan = pattern(`^(infinity|[0-9]+(\.[0-9]+)?(us|ms|s|sec|m|min|h|hr|d)?)$`)
	// unitName is a unit's full name; what it can hold needs no quoting in a unit file.
	unitName = pattern(`^[A-Za-z0-9:_.@\\-]{1,240}\.(service|socket|device|mount|automount|swap|target|path|timer|slice|scope)$`)
)

func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

// parseOptions reads the fourth field. Words that begin with x- and are not ours
// belong to somebody else and are left alone; any other unknown word is an error.
func (e *Entry) parseOptions(field string) error {
	for _, word := range strings.Split(field, ",") {
		if word == "" {
			continue
		}
		if set, known := words[word]; known {
			set(e)
			continue
		}
		key, value, found := strings.Cut(word, "=")
		set, known := values[key]
		switch {
		case known && !found:
			return fmt.Errorf("the option %s needs a value", key)
		case known:
			if err := set(e, value); err != nil {
				return fmt.Errorf("option %s: %w", key, err)
			}
		case words[key] != nil:
			return fmt.Errorf("the option %s takes no value", key)
		case !strings.HasPrefix(word, "x-"):
			return fmt.Errorf("unknown option %q", word)
		}
	}
	return nil
}

func oneOf(to *string, v string, known ...string) error {
	if !slices.Contains(known, v) {
		return fmt.Errorf("%q is none of %s", v, strings.Join(known, ", "))
	}
	*to = v
	return nil
}

func sectors(to *extents.Bytes, v string) error {
	b, err := size.Parse(v)
	if err == nil && b%512 != 0 {
		err = fmt.Errorf("%q is not a multiple of 512 bytes", v)
	}
	*to = b
	return err
}

func unit(to *[]string, v string) error {
	if !unitName().MatchString(v) {
		return fmt.Errorf("%q is not the full name of a unit", v)
	}
	*to = append(*to, v)
	return nil
}
