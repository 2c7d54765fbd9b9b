package dm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/dm/dmtest"
	"dmloop/internal/dm/wire"
	"dmloop/internal/ioctl"
)

// fragmented returns a linear table of n rows.
func fragmented(t testing.TB, n int) dmtable.Table {
	t.Helper()
	segs := make([]dmtable.Segment, n)
	for i := range segs {
		segs[i] = dmtable.Segment{Device: dmtable.Device{Major: 254, Minor: 1<<20 - 1}, Start: 1<<50 + dmtable.Sectors(i)*16, Length: 8}
	}
	table, err := dmtable.Build(segs)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func mapped(t testing.TB, c *dm.Conn, name string, table dmtable.Table) dm.Ref {
	t.Helper()
	ref := dm.ByName(name)
	if _, err := c.Create(name, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Load(ref, table, false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resume(ref, dm.ResumeOptions{}); err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestLargeTables(t *testing.T) {
	for _, rows := range []int{1, 200, 222, 223, 224, 1000, 100_000} {
		k := dmtest.New()
		c := k.Conn()
		table := fragmented(t, rows)
		ref := mapped(t, c, "big", table)
		k.Calls()
		got, err := c.Table(ref)
		if err != nil || !got.Equal(table) {
			t.Fatalf("%d rows: %s, %v", rows, table.Diff(got), err)
		}
		if n := len(k.Calls()); n > 2 {
			t.Errorf("%d rows took %d calls", rows, n)
		}
		got, err = c.TableLike(ref, table)
		if err != nil || &got[0] != &table[0] {
			t.Errorf("%d rows: %s, %v", rows, table.Diff(got), err)
		}
		if n := len(k.Calls()); n != 1 {
			t.Errorf("%d rows that were expected took %d calls", rows, n)
		}
		other := slices.Clone(table)
		other[rows-1].Args = "1:2 3"
		if got, err = c.TableLike(ref, other); err != nil || !got.Equal(table) {
			t.Errorf("%d rows, others expected: %s, %v", rows, table.Diff(got), err)
		}
	}
}

func TestLongArguments(t *testing.T) {
	k := dmtest.New()
	c := k.Conn()
	table := dmtable.Table{{Start: 0, Length: 8, Target: "multipath", Args: strings.Repeat("x", 100_000)}}
	ref := mapped(t, c, "long", table)
	if got, err := c.Table(ref); err != nil || !got.Equal(table) {
		t.Errorf("%v", err)
	}
	if got, err := c.Status(ref); err != nil || len(got) != 1 || got[0].Args != "" {
		t.Errorf("Status: %v, %v", got, err)
	}
}

func TestNoTable(t *testing.T) {
	k := dmtest.New()
	c := k.Conn()
	info, err := c.Create("empty", "")
	if err != nil {
		t.Fatal(err)
	}
	ref := dm.ByDevice(info.Device)
	info, table, err := c.State(ref)
	if err != nil || len(table) != 0 || info.ActiveTable || info.Name != "empty" {
		t.Errorf("State: %+v, %v, %v", info, table, err)
	}
	if deps, err := c.Deps(ref); err != nil || deps != nil {
		t.Errorf("Deps: %v, %v", deps, err)
	}
}

func TestReplyNeverFits(t *testing.T) {
	sizes := 0
	c := dm.NewConn(func(_ ioctl.Request, buf []byte) error {
		sizes++
		binary.NativeEndian.PutUint32(buf[28:], unix.DM_BUFFER_FULL_FLAG)
		binary.NativeEndian.PutUint32(buf[20:], 1<<31) // claims more rows than there can be
		return nil
	})
	if testing.Short() {
		t.Skip("takes a buffer of 1 GiB")
	}
	if _, err := c.Table(dm.ByName("a")); err == nil || sizes != 2 {
		t.Errorf("%v after %d calls", err, sizes)
	}
}

func TestBadReplies(t *testing.T) {
	for name, spoil := range map[string]func(buf []byte){
		"version":    func(buf []byte) { buf[0] = 3 },
		"size":       func(buf []byte) { binary.NativeEndian.PutUint32(buf[12:], 1<<30) },
		"data start": func(buf []byte) { binary.NativeEndian.PutUint32(buf[16:], 8) },
		"row count":  func(buf []byte) { binary.NativeEndian.PutUint32(buf[20:], 1<<30) },
	} {
		c := dm.NewConn(func(_ ioctl.Request, buf []byte) error {
			binary.NativeEndian.PutUint32(buf[20:], 1)
			spoil(buf)
			return nil
		})
		var e *dm.Error
		if _, err := c.Table(dm.ByName("a")); !errors.As(err, &e) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestList(t *testing.T) {
	for _, minor := range []uint32{30, 37, 44, 45, 50} {
		t.Run(fmt.Sprintf("4.%d", minor), func(t *testing.T) {
			k := dmtest.New()
			k.SetVersion(4, minor, 0)
			c := k.Conn()
			if list, err := c.List(); err != nil || len(list) != 0 {
				t.Fatalf("%v, %v", list, err)
			}
			want := map[string]string{}
			for i := range 300 { // more than fit into the first buffer
				name := strings.Repeat("n", i%100+1) + fmt.Sprint(i)
				uuid := ""
				if i%3 > 0 {
					uuid = strings.Repeat("u", i%9) + fmt.Sprint("-", i)
				}
				want[name] = uuid
				if _, err := c.Create(name, uuid); err != nil {
					t.Fatal(err)
				}
			}
			list, err := c.List()
			if err != nil || len(list) != len(want) {
				t.Fatalf("%d devices, %v", len(list), err)
			}
			for _, e := range list {
				info, err := c.Info(dm.ByName(e.Name))
				if err != nil || e.UUID != want[e.Name] || e.Device != info.Device {
					t.Errorf("%+v, but %+v, %v", e, info, err)
				}
			}
		})
	}
}

func TestTrace(t *testing.T) {
	var out bytes.Buffer
	k := dmtest.New()
	c := k.Conn()
	c.SetLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key != slog.MessageKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	if _, err := c.Create("img", "DMLOOP-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Load(dm.ByName("img"), fragmented(t, 2), true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resume(dm.ByUUID("DMLOOP-1"), dm.ResumeOptions{NoFlush: true, SkipLockFS: true, EventNr: 0x400001}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Info(dm.ByName("none")); err == nil {
		t.Fatal("there is a device none")
	}
	want := []string{
		`ioctl(DM_DEV_CREATE, {img, uuid DMLOOP-1, flags 0x0, 312 bytes}) = 0 {253:0, flags 0x0, event_nr 0, open 0, 0 rows}`,
		`ioctl(DM_TABLE_LOAD, {img, flags READONLY, 2 rows, 456 bytes}) = 0 {253:0, flags INACTIVE_PRESENT, event_nr 0, open 0, 0 rows}`,
		`ioctl(DM_DEV_SUSPEND, {DMLOOP-1, flags SKIP_LOCKFS|NOFLUSH, event_nr 0x400001, 312 bytes}) = 0 {253:0, flags READONLY|ACTIVE_PRESENT|UEVENT_GENERATED, event_nr 0, open 0, 2 rows}`,
		`ioctl(DM_DEV_STATUS, {none, flags 0x0, 312 bytes}) = no such device or address`,
	}
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}
	for i := range want {
		if got[i] != `msg="`+want[i]+`"` {
			t.Errorf("got  %s\nwant msg=%q", got[i], want[i])
		}
	}
}

// TestReplaceNowUndone checks that a failing step leaves no table waiting.
func TestReplaceNowUndone(t *testing.T) {
	for n := 1; n <= 2; n++ {
		k := dmtest.New()
		c := k.Conn()
		table := fragmented(t, 3)
		ref := mapped(t, c, "img", table)
		k.FailNth(n, unix.ENOMEM)
		if _, err := c.ReplaceNow(ref, dmtable.ErrorTable(table.Size()), 0); !errors.Is(err, unix.ENOMEM) {
			t.Fatalf("call %d failed, got %v", n, err)
		}
		if d, ok := k.Device("img"); !ok || !d.Active.Equal(table) || d.Inactive != nil || d.Suspended {
			t.Errorf("call %d failed and left %+v", n, d)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	table := fragmented(b, 100_000)
	c := dm.NewConn(func(ioctl.Request, []byte) error { return nil })
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Load(dm.ByName("big"), table, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTable(b *testing.B) {
	k := dmtest.New()
	ref := mapped(b, k.Conn(), "big", fragmented(b, 100_000))
	// Record the kernel's reply once, so that only decoding is measured.
	var reply []byte
	record := dm.NewConn(func(req ioctl.Request, buf []byte) error {
		err := k.Exchange(req, buf)
		reply = buf
		return err
	})
	if _, err := record.Table(ref); err != nil {
		b.Fatal(err)
	}
	header, err := wire.DecodeHeader(reply)
	if err != nil {
		b.Fatal(err)
	}
	data, err := header.Data(reply)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.ParseTable(data, header.TargetCount); err != nil {
			b.Fatal(err)
		}
	}
}
