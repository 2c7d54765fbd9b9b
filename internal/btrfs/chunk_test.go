package btrfs

import (
	"encoding/binary"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

// item encodes a chunk as the kernel answers it.
func item(c Chunk) []byte {
	le, ne := binary.LittleEndian, binary.NativeEndian
	b := make([]byte, itemHead+chunkHead+stripeSize*len(c.Stripes))
	ne.PutUint64(b[8:], firstChunk)
	ne.PutUint64(b[16:], uint64(c.Logical))
	ne.PutUint32(b[24:], chunkItem)
	ne.PutUint32(b[28:], uint32(len(b)-itemHead))
	d := b[itemHead:]
	le.PutUint64(d, uint64(c.Length))
	le.PutUint64(d[24:], uint64(c.Type))
	le.PutUint16(d[44:], uint16(len(c.Stripes)))
	for i, s := range c.Stripes {
		le.PutUint64(d[chunkHead+i*stripeSize:], s.Device)
		le.PutUint64(d[chunkHead+i*stripeSize+8:], uint64(s.Offset))
	}
	return b
}

const mib = 1 << 20

// sampleChunks are those of a file system of which data was relocated.
var sampleChunks = []Chunk{
	{Logical: 13 * mib, Length: 8 * mib, Type: Data, Stripes: []Stripe{{1, 13 * mib}}},
	{Logical: 21 * mib, Length: 8 * mib, Type: System | 1<<5, Stripes: []Stripe{{1, 21 * mib}, {1, 29 * mib}}},
	{Logical: 29 * mib, Length: 32 * mib, Type: Metadata | 1<<5, Stripes: []Stripe{{1, 37 * mib}, {1, 69 * mib}}},
	{Logical: 61 * mib, Length: 64 * mib, Type: Data, Stripes: []Stripe{{1, 101 * mib}}},
	{Logical: 125 * mib, Length: 64 * mib, Type: Data, Stripes: []Stripe{{1, 500 * mib}}},
}

var onlyDevice = Device{ID: 1, Size: 1 << 30}

// kernel answers searches from chunks, at most most of them a call.
func kernel(chunks []Chunk, most int) func([]byte) error {
	return func(buf []byte) error {
		ne := binary.NativeEndian
		from, room := ne.Uint64(buf[24:]), ne.Uint64(buf[offBufSize:])
		if ne.Uint64(buf) != chunkTree || ne.Uint64(buf[8:]) != firstChunk || ne.Uint32(buf[56:]) != chunkItem || room != replySize {
			return unix.EINVAL
		}
		n, out := 0, buf[requestHead:]
		for _, c := range chunks {
			if uint64(c.Logical) < from || n == most {
				continue
			}
			out = out[copy(out, item(c)):]
			n++
		}
		ne.PutUint32(buf[offNrItems:], uint32(n))
		return nil
	}
}

func TestReadChunks(t *testing.T) {
	for most := 1; most < 7; most++ {
		if got, err := readChunks(kernel(sampleChunks, most)); err != nil || !reflect.DeepEqual(got, sampleChunks) {
			t.Errorf("%d a call: %+v, %v", most, got, err)
		}
	}
	if got, err := readChunks(kernel(nil, 9)); err != nil || len(got) != 0 {
		t.Errorf("none: %+v, %v", got, err)
	}
	if _, err := readChunks(func([]byte) error { return unix.EPERM }); err != unix.EPERM {
		t.Errorf("%v", err)
	}
	same := func(buf []byte) error {
		binary.NativeEndian.PutUint64(buf[24:], 0)
		return kernel(sampleChunks[:1], 9)(buf)
	}
	if _, err := readChunks(same); err == nil {
		t.Error("a kernel that repeats itself: no error")
	}
}

func TestParseReplyRefuses(t *testing.T) {
	ne, le := binary.NativeEndian, binary.LittleEndian
	for name, edit := range map[string]func(b []byte){
		"more items than there are": func(b []byte) { ne.PutUint32(b[offNrItems:], 99999) },
		"item longer than the rest": func(b []byte) { ne.PutUint32(b[requestHead+28:], 1<<31) },
		"item of no chunk":          func(b []byte) { ne.PutUint32(b[requestHead+24:], 204) },
		"item of another object":    func(b []byte) { ne.PutUint64(b[requestHead+8:], 255) },
		"no stripe":                 func(b []byte) { le.PutUint16(b[requestHead+itemHead+44:], 0) },
		"a stripe too many":         func(b []byte) { le.PutUint16(b[requestHead+itemHead+44:], 2) },
		"short item":                func(b []byte) { ne.PutUint32(b[requestHead+28:], 47) },
		"length 0":                  func(b []byte) { le.PutUint64(b[requestHead+itemHead:], 0) },
		"address at 2^63":           func(b []byte) { ne.PutUint64(b[requestHead+16:], 1<<63) },
		"end beyond 2^63":           func(b []byte) { le.PutUint64(b[requestHead+itemHead:], 1<<63-1) },
		"stripe beyond 2^63":        func(b []byte) { le.PutUint64(b[requestHead+itemHead+chunkHead+8:], 1<<63-1) },
	} {
		buf := make([]byte, requestHead+replySize)
		encodeSearch(buf, 0)
		if err := kernel(sampleChunks[:1], 9)(buf); err != nil {
			t.Fatal(err)
		}
		edit(buf)
		if got, err := parseReply(buf); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if _, err := parseReply(nil); err == nil {
		t.Error("no answer: no error")
	}
}

func FuzzParseReply(f *testing.F) {
	for _, c := range sampleChunks {
		b := make([]byte, requestHead)
		binary.NativeEndian.PutUint32(b[offNrItems:], 1)
		f.Add(append(b, item(c)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		chunks, err := parseReply(b)
		if err != nil {
			return
		}
		for _, c := range chunks {
			if c.Length <= 0 || c.end() < c.Logical || len(c.Stripes) == 0 {
				t.Errorf("%+v", c)
			}
		}
	})
}

func TestReadFilesystem(t *testing.T) {
	ne := binary.NativeEndian
	devices := uint64(1)
	call := func(req ioctl.Request, buf []byte) error {
		switch {
		case req == fsInfo && len(buf) == 1024:
			ne.PutUint64(buf, 7)
			ne.PutUint64(buf[8:], devices)
			copy(buf[16:], "0123456789abcdef")
		case req == devInfo && len(buf) == 4096 && ne.Uint64(buf) == 7:
			ne.PutUint64(buf[32:], 512*mib)
			copy(buf[3072:], "/dev/mapper/host\x00rubbish")
		default:
			return unix.ENODEV
		}
		return nil
	}
	got, err := readFilesystem(call)
	want := Filesystem{UUID: [16]byte([]byte("0123456789abcdef")), Devices: 1, Device: Device{ID: 7, Size: 512 * mib, Path: "/dev/mapper/host"}}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	devices = 2
	if got, err := readFilesystem(call); err != nil || got.Devices != 2 || got.Device != (Device{}) {
		t.Errorf("%+v, %v", got, err)
	}
	devices = 0
	if _, err := readFilesystem(call); err == nil {
		t.Error("no device: no error")
	}
}

func TestProfile(t *testing.T) {
	for bits, want := range map[Type]string{Data: "single", Data | 1<<5: "DUP", Metadata | 1<<4: "RAID1", Data | 1<<10: "RAID1C4", Data | 3<<3: "profile 0x18", 1 << 40: "profile 0x10000000000"} {
		if got := bits.Profile(); got != want {
			t.Errorf("%x is %s, want %s", uint64(bits), got, want)
		}
	}
}
