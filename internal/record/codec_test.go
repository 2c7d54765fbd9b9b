package record

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func encode(t testing.TB, m Record) []byte {
	t.Helper()
	b, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEveryFieldComesBack(t *testing.T) {
	want := sample("image")
	v := reflect.ValueOf(want)
	for i := range v.NumField() {
		if v.Type().Field(i).IsExported() && v.Field(i).IsZero() {
			t.Errorf("the sample has no %s, so this test proves nothing of it", v.Type().Field(i).Name)
		}
	}
	got, err := Decode(encode(t, want))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEncodeWritesThisVersion(t *testing.T) {
	m := sample("image")
	m.Version = 99
	if got, err := Decode(encode(t, m)); err != nil || got.Version != Version {
		t.Errorf("version %d, %v", got.Version, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := string(encode(t, sample("image")))
	change := func(old, with string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the sample has no %s", old)
		}
		return strings.Replace(good, old, with, 1)
	}
	for name, text := range map[string]string{
		"nothing":            "",
		"zeros":              strings.Repeat("\x00", 512),
		"half a record":      good[:len(good)/2],
		"two records":        good + good,
		"a list":             "[]",
		"null":               "null",
		"version 0":          change(`"version":1`, `"version":0`),
		"a later version":    change(`"version":1`, `"version":2`),
		"no version":         change(`"version":1,`, ``),
		"a name with slash":  change(`"name":"image"`, `"name":"../image"`),
		"no name":            change(`"name":"image"`, `"name":""`),
		"a name unmangled":   change(`"name":"image"`, `"name":"im age"`),
		"a foreign uuid":     change(`"uuid":"DMLOOP-`, `"uuid":"LVM-`),
		"a uuid of another":  change(`ccddeeff-image"`, `ccddeeff-other"`),
		"a uuid too short":   change(`"uuid":"DMLOOP-00`, `"uuid":"DMLOOP-`),
		"an unknown state":   change(`"state":"weakened"`, `"state":"fine"`),
		"no state":           change(`"state":"weakened"`, `"state":""`),
		"a word for a size":  change(`"size":8192`, `"size":"8192"`),
		"a negative address": change("0 1099511627776 4096\n", "0 -1 4096\n"),
		"a layout of words":  change("0 1099511627776 4096\n", "a b c\n"),
		"four numbers":       change("0 1099511627776 4096\n", "0 1099511627776 4096 1\n"),
		"two numbers":        change("0 1099511627776 4096\n", "0 1099511627776\n"),
		"beyond 64 bits":     change("0 1099511627776 4096\n", "0 99999999999999999999 4096\n"),
		"a row too few":      change("0 1099511627776 4096\n", ""),
		"a row too many":     change("0 1099511627776 4096\n", "0 1099511627776 4096\n0 1 2\n"),
		"no table":           change("0 8 linear 8:1 2048\n8 8 linear 8:1 16\n", ""),
		"a target too few":   change("8 8 linear 8:1 16\n", ""),
		"no empty line":      change("\n\n", "\n"),
		"a broken table":     change(`0 8 linear 8:1 2048`, `0 8`),
	} {
		if m, err := Decode([]byte(text)); err == nil {
			t.Errorf("%s was read as %+v", name, m)
		} else if strings.TrimSpace(err.Error()) == "" {
			t.Errorf("%s: no words in the error", name)
		}
	}
}

func TestNoNullLists(t *testing.T) {
	// Scripts read the records too, and guard.Expected compares the kinds.
	if kinds := (Record{}).PinKinds(); kinds == nil || len(kinds) != 0 {
		t.Errorf("%#v", kinds)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(f, sample("image")))
	small := sample("a")
	small.Layout.Extents, small.Table = nil, nil
	f.Add(encode(f, small))
	f.Add([]byte(`{"version":1,"name":"a","uuid":"DMLOOP-00112233445566778899aabbccddeeff-a","state":"healthy","layout_rows":1,"table_rows":1}` +
		"\n0 0 1\n\n0 1 error\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		first := encode(t, m)
		again, err := Decode(first)
		if err != nil {
			t.Fatalf("what was accepted is refused when stored again: %v\n%s", err, first)
		}
		if second := encode(t, again); !bytes.Equal(first, second) {
			t.Errorf("%s\nbecame\n%s", first, second)
		}
		if head, _, _ := bytes.Cut(first, []byte("\n")); !json.Valid(head) || strings.Contains(m.Name, "/") || !strings.HasPrefix(m.UUID, UUIDPrefix) {
			t.Errorf("accepted %s", first)
		}
	})
}

func TestUUID(t *testing.T) {
	a, err := NewUUID("x", "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewUUID("x", "")
	if err != nil {
		t.Fatal(err)
	}
	if a == b || !strings.HasPrefix(a, UUIDPrefix) || !strings.HasSuffix(a, "-x") || len(a) != len(UUIDPrefix)+32+2 {
		t.Errorf("%s and %s", a, b)
	}
	given, err := NewUUID("x", "00112233-4455-6677-8899-AABBCCDDEEFF")
	if want := UUIDPrefix + "00112233445566778899aabbccddeeff-x"; err != nil || given != want {
		t.Errorf("%s, %v", given, err)
	}
	for _, bad := range []string{"1", "0011223344556677889900aabbccddeeff", "zz112233445566778899aabbccddeeff", "../../../etc/passwd"} {
		if got, err := NewUUID("x", bad); err == nil {
			t.Errorf("%q became %s", bad, got)
		}
	}
	// What dmloop calls its own must not match shims, and the other way round.
	if strings.HasPrefix(ShimPrefix, UUIDPrefix) || strings.HasPrefix(UUIDPrefix, ShimPrefix) {
		t.Error("one prefix begins the other")
	}
}
