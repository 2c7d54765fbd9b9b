package guard

import (
	"errors"
	"strings"
	"testing"

	"dmloop/dmtable"
	"dmloop/extents"
)

var errRead = errors.New("input/output error")

func expected() Expected {
	return Expected{
		Name:     "vol",
		Identity: Identity{FileID: FileID{Major: 253, Inode: 12, Generation: 7}, Size: 8192},
		Layout: extents.Layout{Size: 8192, Extents: []extents.Extent{
			{Logical: 0, Physical: 40960, Length: 4096}, {Logical: 4096, Physical: 81920, Length: 4096},
		}},
		Pins:   Pins{InForce: []PinKind{"nodefrag", "immutable"}, Grade: "guarded"},
		Base:   Base{Device: dmtable.Device{Major: 253}, UUID: "LVM-x", Table: "0 1000 linear 8:0 2048"},
		Table:  dmtable.Table{{Start: 0, Length: 8, Target: "linear", Args: "8:0 2128"}, {Start: 8, Length: 8, Target: "linear", Args: "8:0 2208"}},
		Policy: OnChangeError,
	}
}

func below(b Below) Reading[map[dmtable.Device]Below] {
	return Read(map[dmtable.Device]Below{{Major: 8}: b}, nil)
}

// same is what a full reading of an untouched mapping gives.
func same(e Expected) Observed {
	id := e.Identity
	id.Links = 1
	return Observed{
		Identity: Read(id, nil),
		Pins:     Read(Pins{InForce: append([]PinKind(nil), e.Pins.InForce...), Grade: e.Pins.Grade}, nil),
		Openers:  Read(Alone, nil),
		Base:     Read(e.Base, nil),
		Own:      Read(OwnState{}, nil),
		OwnTable: Read(append(dmtable.Table(nil), e.Table...), nil),
		Layout:   Read(extents.Layout{Size: e.Layout.Size, Extents: append([]extents.Extent(nil), e.Layout.Extents...)}, nil),
	}
}

// longer is what is read in the middle of a grow: four more KiB of the file, its writer, and the
// table that shows them.
func longer(o *Observed) {
	o.Identity.Value.Size = 12288
	o.Layout.Value.Size = 12288
	o.Layout.Value.Extents = append(o.Layout.Value.Extents, extents.Extent{Logical: 8192, Physical: 85 << 10, Length: 4096})
	o.Pins.Value.InForce, o.Pins.Value.Grade = []PinKind{"nodefrag"}, GradeUnsafe
	o.Openers.Value = Writers
	o.OwnTable.Value[1].Length += 8
}

func TestCheck(t *testing.T) {
	tests := map[string]struct {
		want     func(*Expected)
		got      func(*Observed)
		kinds    string // "kind/severity ..." in order
		state    State
		act      Policy
		restored string
		message  string // must be contained in the first message
	}{
		"nothing changed": {state: Healthy},
		"nothing was read": {
			got: func(o *Observed) { *o = Observed{} }, state: Healthy},
		"extents cut differently": {
			got: func(o *Observed) {
				o.Layout.Value.Extents = []extents.Extent{
					{Logical: 0, Physical: 40960, Length: 1024, Flags: extents.FlagMerged}, {Logical: 1024, Physical: 41984, Length: 3072},
					{Logical: 4096, Physical: 81920, Length: 4096, Flags: extents.FlagLast},
				}
			}, state: Healthy},
		"other device": {
			got:   func(o *Observed) { o.Identity.Value.Minor = 9 },
			kinds: "replaced/different", state: Failed, act: OnChangeError, message: "was inode 12 generation 7 on 253:0 when it was mapped"},
		"other inode": {
			got: func(o *Observed) { o.Identity.Value.Inode = 13 }, kinds: "replaced/different", state: Failed, act: OnChangeError},
		"other generation": {
			got: func(o *Observed) { o.Identity.Value.Generation = 8 }, kinds: "replaced/different", state: Failed, act: OnChangeError},
		"longer": {
			got:   func(o *Observed) { o.Identity.Value.Size = 8193 },
			kinds: "resized/different", state: Failed, act: OnChangeError, message: "8193 bytes, and had 8192 when it was mapped"},
		"no name left": {
			got: func(o *Observed) { o.Identity.Value.Links = 0 }, kinds: "unlinked/different", state: Failed, act: OnChangeError},
		"second name": {
			got: func(o *Observed) { o.Identity.Value.Links = 2 }, state: Healthy},
		"moved": {
			got:   func(o *Observed) { o.Layout.Value.Extents[1].Physical = 4096 },
			kinds: "moved/different", state: Failed, act: OnChangeError, message: "byte 4096"},
		"hole": {
			got:   func(o *Observed) { o.Layout.Value.Extents = o.Layout.Value.Extents[:1] },
			kinds: "moved/different", state: Failed, act: OnChangeError, message: "hole"},
		"unwritten": {
			got:   func(o *Observed) { o.Layout.Value.Extents[0].Flags = extents.FlagUnwritten },
			kinds: "moved/different", state: Failed, act: OnChangeError},
		"shared": {
			got:   func(o *Observed) { o.Layout.Value.Extents[1].Flags = extents.FlagShared },
			kinds: "shared/different", state: Failed, act: OnChangeError, message: "bytes 4096 to 8191"},
		"shared beyond the end": {
			got: func(o *Observed) {
				o.Layout.Value.Extents = append(o.Layout.Value.Extents, extents.Extent{Logical: 8192, Physical: 1, Length: 4096, Flags: extents.FlagShared})
			}, state: Healthy},
		"f2fs's collector met the pin": {
			got: func(o *Observed) { o.Pins.Value.Tries, o.Pins.Value.Limit = 1, 2048 }, kinds: "pin-pressed/note", state: Healthy},
		"and again and again": {
			got:   func(o *Observed) { o.Pins.Value.Tries, o.Pins.Value.Limit = 1024, 2048 },
			kinds: "pin-pressed/weak", state: Weakened, message: "tried 1024 times to move the image, and drops the pin after 2048"},
		"and almost as often as the pin withstands": {
			got:   func(o *Observed) { o.Pins.Value.Tries, o.Pins.Value.Limit = 1792, 2048 },
			kinds: "pin-pressed/different", state: Failed, act: OnChangeError},
		"a limit of nothing": {
			got: func(o *Observed) { o.Pins.Value.Tries = 1 }, kinds: "pin-pressed/different", state: Failed, act: OnChangeError},
		"one page is swap space": {
			got: func(o *Observed) { o.Claim = Read(Claim{Size: 4096, Page: 4096}, nil) }, state: Healthy},
		"more of the image is swap space": {
			got:   func(o *Observed) { o.Claim = Read(Claim{Size: 64 << 20, Page: 4096}, nil) },
			kinds: "claim-size/different", state: Failed, act: OnChangeError, message: "uses 67108864 bytes of the image as swap space instead of one page of 4096"},
		"nothing of it is": {
			got:   func(o *Observed) { o.Claim = Read(Claim{Page: 16384}, nil) },
			kinds: "claim-size/different", state: Failed, act: OnChangeError},
		"how much of it is cannot be read": {
			got: func(o *Observed) { o.Claim = Read(Claim{}, errRead) }, kinds: "unreadable/note", state: Healthy, message: "swap area"},
		"an attribute of the image": {
			got: func(o *Observed) {
				o.Unfit = Read([]extents.Problem{{Rule: extents.Verity, Message: "the file is sealed by fs-verity"}}, nil)
			},
			kinds: "unfit/different", state: Failed, act: OnChangeError, message: "sealed by fs-verity (verity)"},
		"attributes cannot be read": {
			got: func(o *Observed) { o.Unfit = Read([]extents.Problem(nil), errRead) }, kinds: "unreadable/note", state: Healthy},
		"pin lost, grade holds": {
			got:   func(o *Observed) { o.Pins.Value.InForce = []PinKind{"immutable"} },
			kinds: "pin-lost/weak", state: Weakened, restored: "nodefrag", message: "nodefrag is gone, the grade is still guarded"},
		"pin lost, grade fell": {
			got:   func(o *Observed) { o.Pins.Value = Pins{InForce: []PinKind{"nodefrag"}, Grade: "unsafe"} },
			kinds: "pin-lost/different", state: Failed, act: OnChangeError, message: "fell from guarded to unsafe"},
		"all pins lost of an unsafe mapping": {
			want:  func(e *Expected) { e.Pins.Grade = "unsafe" },
			got:   func(o *Observed) { o.Pins.Value = Pins{Grade: "unsafe"} },
			kinds: "pin-lost/weak", state: Weakened, restored: "nodefrag immutable"},
		"grade fell with all pins there": {
			got:   func(o *Observed) { o.Pins.Value.Grade = "unsafe" },
			kinds: "pin-lost/different", state: Failed, act: OnChangeError},
		"grade is better than recorded": {
			got: func(o *Observed) { o.Pins.Value.Grade = "kernel" }, state: Healthy},
		"a word that is no grade": {
			got: func(o *Observed) { o.Pins.Value.Grade = "" }, kinds: "pin-lost/different", state: Failed, act: OnChangeError},
		"more pins than recorded": {
			got: func(o *Observed) { o.Pins.Value.InForce = append(o.Pins.Value.InForce, "swap") }, state: Healthy},
		"open for writing, proof void": {
			got:   func(o *Observed) { o.Openers.Value = Writers; o.Pins.Value.Grade = "unsafe" },
			kinds: "opened/different", state: Failed, act: OnChangeError, message: "a pin was lifted in between"},
		"open for writing, nothing to lose": {
			want: func(e *Expected) { e.Pins.Grade = "unsafe" },
			got:  func(o *Observed) { o.Openers.Value = Writers; o.Pins.Value.Grade = "unsafe" }, state: Healthy},
		"nobody can tell who has it open": {
			want: func(e *Expected) { e.Exposed = true },
			got:  func(o *Observed) { o.Openers.Value = Untold }, state: Healthy},
		"open for reading, harmless": {
			got: func(o *Observed) { o.Openers.Value = Readers }, state: Healthy},
		"open for reading, blocks can be shared": {
			want: func(e *Expected) { e.Exposed = true },
			got:  func(o *Observed) { o.Openers.Value = Readers }, kinds: "opened/weak", state: Weakened},
		"base table moved": {
			got:   func(o *Observed) { o.Base.Value.Table = "0 1000 linear 8:0 4096" },
			kinds: "base-changed/different", state: Failed, act: OnChangeError, message: "its sectors 80-87, which were 8:0 2128, are 8:0 4176 now"},
		"base table longer": {
			got: func(o *Observed) { o.Base.Value.Table += "\n1000 1 linear 8:0 9" }, state: Healthy},
		"base grew": {
			got: func(o *Observed) { o.Base.Value.Table = "0 1500 linear 8:0 2048" }, state: Healthy},
		"base shrank, the image is there": {
			got: func(o *Observed) { o.Base.Value.Table = "0 168 linear 8:0 2048" }, state: Healthy},
		"base table shorter": {
			got:   func(o *Observed) { o.Base.Value.Table = "0 167 linear 8:0 2048" },
			kinds: "base-changed/different", state: Failed, act: OnChangeError, message: "its sectors 167-167, which were 8:0 2215, are gone"},
		"base got a snapshot": {
			got:   func(o *Observed) { o.Base.Value.Table = "0 1000 snapshot-origin 253:5" },
			kinds: "base-changed/different", state: Failed, act: OnChangeError, message: "are snapshot-origin 253:5 now; a snapshot of it was made"},
		"base table is no table": {
			got:   func(o *Observed) { o.Base.Value.Table = "what" },
			kinds: "base-changed/different", state: Failed, act: OnChangeError, message: "not understood"},
		"recorded base table is no table": {
			want:  func(e *Expected) { e.Base.Table = "what" },
			got:   func(o *Observed) { o.Base.Value.Table = "0 1000 linear 8:0 2048" },
			kinds: "base-changed/different", state: Failed, act: OnChangeError, message: "not understood"},
		"base is another device": {
			got: func(o *Observed) { o.Base.Value.UUID = "" }, kinds: "base-changed/different", state: Failed, act: OnChangeError, message: "not the one on which"},
		"base stopped": {
			got: func(o *Observed) { o.Base.Value.Suspended, o.Base.Value.Stopped = true, true }, kinds: "base-changed/different", state: Failed, act: OnChangeError},
		"base suspended": {
			got: func(o *Observed) { o.Base.Value.Suspended = true }, kinds: "base-waiting/note", state: Healthy},
		"base has a table waiting": {
			got: func(o *Observed) { o.Base.Value.Waiting = true }, kinds: "base-waiting/note", state: Healthy},
		"base suspended and changed": {
			got:   func(o *Observed) { o.Base.Value.Suspended = true; o.Base.Value.Table = "" },
			kinds: "base-changed/different", state: Failed, act: OnChangeError},
		"nothing wrong below": {
			got: func(o *Observed) { o.Below = below(Below{Device: "8:0 (sda)", Size: 4096}) }, state: Healthy},
		"the disk is gone": {
			got:   func(o *Observed) { o.Below = below(Below{Device: "8:0 (sda)", Lost: "is gone"}) },
			kinds: "below-lost/different", state: Failed, act: OnChangeError, message: "the device 8:0 (sda), on which the image lies, is gone: every request fails"},
		"the disk shrank": {
			want:  func(e *Expected) { e.Needs = map[dmtable.Device]dmtable.Sectors{{Major: 8}: 2216} },
			got:   func(o *Observed) { o.Below = below(Below{Device: "8:0 (sda)", Size: 2215}) },
			kinds: "below-lost/different", state: Failed, act: OnChangeError, message: "has 2215 sectors, and the image lies up to sector 2216"},
		"the disk is offline": {
			got:   func(o *Observed) { o.Below = below(Below{Device: "8:0 (sda)", Size: 4096, Ailing: "is offline"}) },
			kinds: "below-ailing/note", state: Healthy, message: "is offline: requests fail"},
		"the disk became read-only": {
			got:   func(o *Observed) { o.Below = below(Below{Device: "8:0 (sda)", Size: 4096, ReadOnly: true}) },
			kinds: "below-read-only/note", state: Healthy, message: "became read-only"},
		"the disk was read-only": {
			want: func(e *Expected) { e.ReadOnly = true },
			got:  func(o *Observed) { o.Below = below(Below{Device: "8:0 (sda)", Size: 4096, ReadOnly: true}) }, state: Healthy},
		"own device gone": {
			got: func(o *Observed) { o.Own.Value.Gone = true }, kinds: "own-device-gone/different", state: Failed},
		"own device suspended": {
			got: func(o *Observed) { o.Own.Value.Suspended = true }, kinds: "own-table-waiting/note", state: Healthy},
		"own device has a table waiting": {
			got: func(o *Observed) { o.Own.Value.Waiting = true }, kinds: "own-table-waiting/note", state: Healthy},
		"own table changed": {
			got:   func(o *Observed) { o.OwnTable.Value[1].Args = "8:0 2216" },
			kinds: "own-table-changed/different", state: Failed, act: OnChangeError},
		"own table empty": {
			got: func(o *Observed) { o.OwnTable.Value = nil }, kinds: "own-table-changed/different", state: Failed, act: OnChangeError},
		"torn down already": {
			got:   func(o *Observed) { o.OwnTable.Value = dmtable.Table{{Length: 16, Target: "error"}} },
			kinds: "torn-down/different", state: Failed},
		"torn down already, and why": {
			got: func(o *Observed) {
				o.OwnTable.Value = dmtable.Table{{Length: 16, Target: "error"}}
				o.Layout.Value.Extents[0].Physical = 0
			}, kinds: "moved/different torn-down/different", state: Failed},
		"every part unreadable": {
			got: func(o *Observed) {
				*o = Observed{
					Identity: Read(Identity{}, errRead), Pins: Read(Pins{}, errRead), Openers: Read(Alone, errRead), Base: Read(Base{}, errRead),
					Own: Read(OwnState{}, errRead), OwnTable: Read(dmtable.Table(nil), errRead), Layout: Read(extents.Layout{}, errRead),
				}
			},
			kinds: strings.TrimSpace(strings.Repeat("unreadable/note ", 7)), state: Healthy, message: "identity could not be read: input/output error"},
		"stuck": {
			got: func(o *Observed) { *o = Observed{Stuck: errRead} }, kinds: "unreadable/different", state: Failed, act: OnChangeError},
		"made longer: appended to, and not pinned meanwhile": {
			got: func(o *Observed) { longer(o); o.Growing = 16384 }, state: Healthy},
		"made longer: everything of the longer one is there": {
			got: func(o *Observed) {
				longer(o)
				o.Growing, o.Identity.Value.Size, o.Pins.Value.InForce = 16384, 16384, []PinKind{"nodefrag", "immutable"}
			}, state: Healthy},
		"made longer: recorded, and not live yet": {
			got: func(o *Observed) { o.Growing, o.OwnTable.Value = 8192, o.OwnTable.Value[:1] }, state: Healthy},
		"longer, and no command says that it makes it so": {
			got: longer, kinds: "resized/different moved/different pin-lost/different own-table-changed/different", state: Failed, act: OnChangeError},
		"made longer: longer than it is meant to be": {
			got:   func(o *Observed) { longer(o); o.Growing = 12288 - 1 },
			kinds: "resized/different", state: Failed, act: OnChangeError},
		"made longer: shorter than it was": {
			got:   func(o *Observed) { o.Growing, o.Identity.Value.Size = 16384, 4096 },
			kinds: "resized/different", state: Failed, act: OnChangeError},
		"made longer: the old part moved": {
			got: func(o *Observed) {
				longer(o)
				o.Growing, o.Layout.Value.Extents[1].Physical = 16384, 4096000
			},
			kinds: "moved/different", state: Failed, act: OnChangeError, message: "byte 4096"},
		"made longer: the old part is shared": {
			got: func(o *Observed) {
				longer(o)
				o.Growing, o.Layout.Value.Extents[0].Flags = 16384, extents.FlagShared
			},
			kinds: "shared/different", state: Failed, act: OnChangeError},
		"made longer: what is new is not judged": {
			got: func(o *Observed) {
				longer(o)
				o.Growing, o.Layout.Value.Extents[2].Flags = 16384, extents.FlagShared
			}, state: Healthy},
		"made longer: the table has other rows": {
			got: func(o *Observed) {
				longer(o)
				o.Growing, o.OwnTable.Value[0].Args = 16384, "8:0 99"
			},
			kinds: "own-table-changed/different", state: Failed, act: OnChangeError},
		"made longer: another pin is lost": {
			got: func(o *Observed) {
				longer(o)
				o.Growing, o.Pins.Value.InForce = 16384, nil
			},
			kinds: "pin-lost/weak", state: Weakened, restored: "nodefrag", message: "while the image is made longer"},
		"made longer: f2fs dropped its pin": {
			want: func(e *Expected) { e.Pins.InForce = []PinKind{PinF2FS, PinImmutable} },
			got: func(o *Observed) {
				longer(o)
				o.Growing, o.Pins.Value.InForce = 16384, nil
			},
			kinds: "pin-lost/different", state: Failed, act: OnChangeError},
		"policy suspend": {
			want:  func(e *Expected) { e.Policy = OnChangeSuspend },
			got:   func(o *Observed) { o.Identity.Value.Size = 0 },
			kinds: "resized/different", state: Suspended, act: OnChangeSuspend},
		"policy report": {
			want:  func(e *Expected) { e.Policy = OnChangeReport },
			got:   func(o *Observed) { o.Identity.Value.Size = 0 },
			kinds: "resized/different", state: Stale},
		"unknown policy": {
			want:  func(e *Expected) { e.Policy = "shrug" },
			got:   func(o *Observed) { o.Identity.Value.Size = 0 },
			kinds: "resized/different", state: Failed, act: OnChangeError},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			want := expected()
			if test.want != nil {
				test.want(&want)
			}
			got := same(want)
			if test.got != nil {
				test.got(&got)
			}
			findings := Check(want, got)
			var kinds []string
			for _, f := range findings {
				kinds = append(kinds, string(f.Kind)+"/"+f.Severity.String())
			}
			if text := strings.Join(kinds, " "); text != test.kinds {
				t.Errorf("findings %q, want %q: %v", text, test.kinds, findings)
			}
			if test.message != "" && (len(findings) == 0 || !strings.Contains(findings[0].Message, test.message)) {
				t.Errorf("%v lacks %q", findings, test.message)
			}
			d := Decide(findings, want.Policy)
			if d.State != test.state || d.Act != test.act {
				t.Errorf("decided %s, act %q; want %s, act %q", d.State, d.Act, test.state, test.act)
			}
			if restored := strings.Join(PinNames(d.Restore), " "); restored != test.restored {
				t.Errorf("restores %q, want %q", restored, test.restored)
			}
			if d.State != Healthy && d.Reason == "" {
				t.Error("no reason is given")
			}
		})
	}
}

func TestTallyFailsClosedOnlyAfterPatience(t *testing.T) {
	var tally tally
	failing := Observed{Layout: Read(extents.Layout{}, errRead)}
	for i := 1; i < Patience; i++ {
		if f := tally.weigh(failing, differences(expected(), failing)); Worst(f) != Note || !tally.waiting() {
			t.Fatalf("failure %d gives %v", i, f)
		}
		if i == Patience-1 {
			continue
		}
		// A check that leaves the part out neither counts nor forgives.
		tally.weigh(Observed{Base: Read(Base{}, nil)}, nil)
	}
	f := tally.weigh(failing, differences(expected(), failing))
	if Worst(f) != Different || f[0].Kind != Unreadable || !strings.Contains(f[0].Message, "5 times in a row") {
		t.Fatalf("failure %d gives %v", Patience, f)
	}
	ok := same(expected())
	if f := tally.weigh(ok, differences(expected(), ok)); len(f) != 0 || tally.waiting() {
		t.Fatalf("a success gives %v", f)
	}
	if f := tally.weigh(failing, differences(expected(), failing)); Worst(f) != Note {
		t.Fatalf("the count was not reset: %v", f)
	}
}

func TestTallyToleratesPassingReaders(t *testing.T) {
	var tally tally
	want := expected()
	want.Exposed = true
	read := same(want)
	read.Openers.Value = Readers
	if f := tally.weigh(read, differences(want, read)); len(f) != 0 {
		t.Fatalf("one sight of a reader gives %v", f)
	}
	if f := tally.weigh(read, differences(want, read)); Worst(f) != Weak {
		t.Fatalf("a reader that stays gives %v", f)
	}
	alone := same(want)
	tally.weigh(alone, differences(want, alone))
	if f := tally.weigh(read, differences(want, read)); len(f) != 0 {
		t.Fatalf("the count was not reset: %v", f)
	}
}

func TestParsePolicy(t *testing.T) {
	for text, want := range map[string]Policy{"": OnChangeError, "error": OnChangeError, "suspend": OnChangeSuspend, "report": OnChangeReport} {
		if p, err := ParsePolicy(text); p != want || err != nil {
			t.Errorf("ParsePolicy(%q) = %q, %v", text, p, err)
		}
	}
	if _, err := ParsePolicy("panic"); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("an unknown policy gives %v", err)
	}
}
