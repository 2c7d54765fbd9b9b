package ioctl

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTotals(t *testing.T) {
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	request := Request{Number: unix.FS_IOC_GETFLAGS, Name: "TEST"}
	ask := func() {
		var flags int64
		_ = Pointer(int(f.Fd()), request, &flags) // counted whether the file system knows it or not
	}
	ask()
	Count()
	defer func() { // as it was, for the next run
		counting.Store(false)
		clear(totals)
	}()
	ask()
	ask()
	all := Totals()
	if len(all) != 1 || all[0].Request != "TEST" || all[0].Calls != 2 || all[0].Took <= 0 {
		t.Errorf("%+v", all)
	}
}
