package record

import "testing"

// storedRecord is one as it stands under /run/dmloop, written out: an upgrade finds such
// records of the version before, and scripts read them.
const storedRecord = `{"version":1,"name":"image","uuid":"DMLOOP-00112233445566778899aabbccddeeff-image","device":{"Major":253,"Minor":7},` +
	`"state":"weakened","reason":"pin lost: immutable","image":{"path":"/srv/a b.img","major":253,"minor":1,` +
	`"inode":9223372036854775813,"generation":9,"birth":1700000000000000001,"size":12288,"filesystem":"xfs","reflink":true,` +
	`"handle":{"type":1,"hex":"0a0b"},"fs_uuid":"0b5c1b8e-4e4f-4d3e-8f5a-6a7b8c9d0e1f","folder":{"type":2,"hex":"0c"}},` +
	`"offset":4096,"size":8192,"ro":true,"sealed":true,"extents":2,"pins":[{"kind":"nodefrag","ours":true},` +
	`{"kind":"immutable","ours":false},{"kind":"f2fs-pin","ours":false},{"kind":"swap","ours":true}],"grade":"guarded",` +
	`"proof":true,"on_change":"suspend","udev_rules":"all","guard":true,"unsafe":true,"parts":[{"name":"imagep1","number":1}],` +
	`"created":"2026-01-02T03:04:05.000000006Z","base":{"device":{"Major":8,"Minor":1},"name":"host","uuid":"LVM-x",` +
	`"table":"0 100 linear 8:1 0\n"},"below":[{"device":{"Major":8,"Minor":1},"name":"sda1"}],` +
	`"layout_size":12288,"layout_rows":2,"table_rows":2}
0 1099511627776 4096
4096 8192 8192

0 8 linear 8:1 2048
8 8 linear 8:1 16
`

func TestStoredRecordStaysAsItIs(t *testing.T) {
	m, err := Decode([]byte(storedRecord))
	if err != nil {
		t.Fatal(err)
	}
	if again := string(encode(t, m)); again != storedRecord {
		t.Errorf("read and written again:\n%s\ninstead of\n%s", again, storedRecord)
	}
}
