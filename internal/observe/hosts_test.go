package observe

import (
	"errors"
	"testing"
	"time"

	"dmloop/dmtable"
	"dmloop/guard"
)

func TestHostsShareYoungReadings(t *testing.T) {
	var h Hosts
	reads := 0
	read := func(dev uint32, table string, err error) (guard.Base, error) {
		return h.read(dmtable.Device{Major: 253, Minor: dev}, func() (guard.Base, error) {
			reads++
			return guard.Base{Table: table}, err
		})
	}
	want := func(what string, got guard.Base, err error, table string, n int) {
		t.Helper()
		if err != nil || got.Table != table || reads != n {
			t.Errorf("%s: %q after %d readings, %v; want %q after %d", what, got.Table, reads, err, table, n)
		}
	}
	b, err := read(0, "a", nil)
	want("the first", b, err, "a", 1)
	b, err = read(1, "b", nil)
	want("another device", b, err, "b", 2)
	b, err = read(0, "c", nil)
	want("the first again", b, err, "a", 2)
	time.Sleep(hostAge + time.Millisecond)
	if _, err = read(0, "d", errors.New("no")); err == nil {
		t.Error("a failure is hidden by an old reading")
	}
	b, err = read(0, "e", nil)
	want("after the failure", b, err, "e", 4)
}
