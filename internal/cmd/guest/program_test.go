package main

import (
	"io"
	"os"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	c, err := parse([]string{"-kernel", "6.12", "-disks", "3", "-disk-size", "64M", "-timeout", "5s",
		"-env", "A=1", "-env", "B=", "--", "true", "-x"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.Kernel != "6.12" || c.Disks != 3 || c.DiskSize != 64<<20 || c.Timeout != 5*time.Second || len(c.Env) != 2 {
		t.Errorf("%+v", c)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.Commands[0]
	if cmd.Args[0][0] != '/' || cmd.Args[1] != "-x" || cmd.Dir != dir {
		t.Errorf("command %+v", cmd)
	}
	for _, bad := range [][]string{{}, {"-env", "A", "true"}, {"--", "no-such-program"}, {"-disk-size", "2X", "true"}} {
		if _, err := parse(bad, io.Discard); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"512": 512, "4K": 4096, "2G": 2 << 30} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "G", "-1", "0", "1KM", "9999999999G", "1.5G"} {
		if got, err := parseSize(bad); err == nil {
			t.Errorf("%q was read as %d", bad, got)
		}
	}
}
