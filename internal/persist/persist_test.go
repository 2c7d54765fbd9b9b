package persist

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/tab"
)

const uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"

const fstab = `# a comment
UUID=` + uuid + `   /     ext4  errors=remount-ro 0 1
/dev/vda2 /srv xfs defaults 0 2
/dev/vda1	/again	ext4	ro 0 0
/srv/a /b none bind 0 0
tmpfs /tmp tmpfs
`

// facts are those of a machine whose root file system is on /dev/vda1.
func facts(dir, point string) Facts {
	return Facts{
		Point: point, UUID: uuid, FstabPath: filepath.Join(dir, "fstab"), Fstab: fstab,
		TabPath: filepath.Join(dir, "dmlooptab"), Tab: "data /srv/data.img - nofail\n", Maker: InitramfsTools, KernelRoot: "/dev/vda1",
		Same: func(source string) bool { return source == "UUID="+uuid || source == "/dev/vda1" },
	}
}

func TestMakeForRoot(t *testing.T) {
	p, err := Make(facts("/etc", "/"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "shim-root" || p.Maker != InitramfsTools || p.Tab.New != "shim-root\tUUID="+uuid+"\t-\tshim,noauto,x-initrd.attach" {
		t.Errorf("%+v", p)
	}
	if len(p.Fstab) != 2 || p.Fstab[0].New != "/dev/mapper/shim-root   /     ext4  errors=remount-ro 0 1" ||
		p.Fstab[1].New != "/dev/mapper/shim-root\t/again\text4\tro 0 0" {
		t.Errorf("%+v", p.Fstab)
	}
	if table, err := tab.Parse(p.Tab.New); err != nil || !table[0].Initrd || !table[0].NoAuto || table[0].Kind != tab.Shim {
		t.Errorf("%+v %v", table, err)
	}
}

func TestMakeForOthers(t *testing.T) {
	f := facts("/etc", "/srv")
	f.Same = func(source string) bool { return source == "/dev/vda2" }
	f.Maker = ""
	p, err := Make(f)
	if err != nil || p.Name != "shim-srv" || p.Maker != "" || len(p.Fstab) != 1 || strings.Contains(p.Tab.New, "initrd") {
		t.Errorf("%+v, %v", p, err)
	}
}

// The lines of fstab are read as mount reads them: parted at blanks and tabs only, and
// with the escapes undone.
func TestMakeReadsFstabAsMountDoes(t *testing.T) {
	const mine = "LABEL=my\\040disk\t/srv/my\\040images xfs  defaults 0 2"
	f := facts("/etc", "/srv/my images")
	f.Fstab = "/dev/vda9 /srv/my\u00a0images xfs defaults 0 2\n" + mine + "\n/dev/vda8 /srv/my\\134040images xfs defaults\n"
	f.Same = func(string) bool { return false }
	p, err := Make(f)
	if err != nil || p.Name != "shim-srv-my-images" || len(p.Fstab) != 1 || p.Fstab[0].Old != mine ||
		p.Fstab[0].New != "/dev/mapper/shim-srv-my-images\t/srv/my\\040images xfs  defaults 0 2" {
		t.Errorf("%+v, %v", p, err)
	}
	f.Fstab = "LABEL=my\\040disk /elsewhere xfs\n"
	f.Same = func(source string) bool { return source == "LABEL=my disk" }
	if p, err := Make(f); err != nil || len(p.Fstab) != 1 {
		t.Errorf("by the source: %+v, %v", p, err)
	}
	f.Point, f.Fstab = "/srv/a\u3000b", "/dev/vda7 /srv/a\u3000b ext4\n/dev/vda6 /srv/a ext4\n"
	if p, err := Make(f); err != nil || len(p.Fstab) != 1 || !strings.HasPrefix(p.Fstab[0].Old, "/dev/vda7") || p.Name != "shim-srv-a-b" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestMakeRefuses(t *testing.T) {
	for name, change := range map[string]func(*Facts){
		"broken tab":   func(f *Facts) { f.Tab = "x" },
		"name taken":   func(f *Facts) { f.Name = "data" },
		"second shim":  func(f *Facts) { f.Tab += "mine UUID=" + uuid + " - shim\n" },
		"name":         func(f *Facts) { f.Name = "a b" },
		"no initramfs": func(f *Facts) { f.Maker = "" },
		"dracut":       func(f *Facts) { f.Maker = Dracut },
		"not in fstab": func(f *Facts) { f.Point, f.Fstab = "/srv", "" },
	} {
		f := facts("/etc", "/")
		change(&f)
		var refused *RefusedError
		if _, err := Make(f); !errors.As(err, &refused) || refused.Remedy == (extents.Remedy{}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := facts("/etc", "/")
	f.Maker, f.KernelRoot = Dracut, "UUID="+uuid
	if _, err := Make(f); err != nil {
		t.Error(err)
	}
}

// world is a machine of two files, which stops at step number cut.
type world struct {
	Machine
	dir    string
	makes  int
	off    bool   // the maker of initramfs does nothing, and says that all is well
	made   string // dmlooptab as the initramfs has it
	steps  int
	cut    int
	plan   Plan
	before map[string]string
}

var errCut = errors.New("power cut")

func newWorld(t *testing.T, cut int) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), cut: cut, before: map[string]string{}}
	f := facts(w.dir, "/")
	for path, text := range map[string]string{f.FstabPath: f.Fstab, f.TabPath: f.Tab} {
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		w.before[path] = text
	}
	var err error
	if w.plan, err = Make(f); err != nil {
		t.Fatal(err)
	}
	w.Machine = Machine{Dir: filepath.Join(w.dir, "dmloop/persist"),
		MakeInitramfs: func(Maker) error {
			if w.makes++; !w.off {
				w.made = w.text(t, "dmlooptab")
			}
			return nil
		},
		Initramfs: func(Maker) ([]Initramfs, error) {
			return []Initramfs{{Path: "/boot/initrd.img-1", Program: true, Hook: true, Tab: w.made}}, nil
		},
		Step: func(string) {
			if w.steps++; w.steps == w.cut {
				panic(errCut)
			}
		}}
	return w
}

// try runs what may be cut.
func try(do func() error) (err error) {
	defer func() {
		if v := recover(); v == errCut {
			err = errCut
		} else if v != nil {
			panic(v)
		}
	}()
	return do()
}

func (w *world) text(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// bootable is the rule that holds at every moment: fstab names the shim only when the
// table has its line and the initramfs was made with it.
func (w *world) bootable(t *testing.T) {
	t.Helper()
	if strings.Contains(w.text(t, "fstab"), "/dev/mapper/") && (!strings.Contains(w.text(t, "dmlooptab"), w.plan.Tab.New) || w.makes == 0) {
		t.Errorf("fstab names a shim that nobody makes")
	}
}

func TestEveryCutLeavesAMachineThatBootsAndCanGoOn(t *testing.T) {
	for cut := 1; ; cut++ {
		w := newWorld(t, cut)
		err := try(func() error { return w.Apply(w.plan) })
		w.bootable(t)
		if err == nil {
			if cut < 5 {
				t.Errorf("only %d steps", cut)
			}
			break
		}
		for _, goOn := range []string{"again", "revert"} {
			t.Run(fmt.Sprintf("cut at %d, then %s", cut, goOn), func(t *testing.T) {
				w := newWorld(t, cut)
				if err := try(func() error { return w.Apply(w.plan) }); err != errCut {
					t.Fatal(err)
				}
				if goOn == "again" {
					w.checkApplied(t)
				}
				w.checkReverted(t)
			})
		}
	}
}

func TestEveryCutOfARevert(t *testing.T) {
	for cut := 1; ; cut++ {
		w := newWorld(t, 0)
		w.checkApplied(t)
		w.steps, w.cut = 0, cut
		err := try(func() error { return w.Revert(w.plan) })
		w.bootable(t)
		w.checkReverted(t)
		if err == nil {
			return
		}
	}
}

// checkApplied applies the plan, twice, and looks.
func (w *world) checkApplied(t *testing.T) {
	t.Helper()
	for range 2 {
		if err := w.Apply(w.plan); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.text(t, "dmlooptab"); got != w.before[w.plan.Tab.Path]+w.plan.Tab.New+"\n" {
		t.Errorf("dmlooptab: %q", got)
	}
	got := w.text(t, "fstab")
	if strings.Count(got, "/dev/mapper/shim-root") != 2 || strings.Contains(got, uuid) || strings.Count(got, "\n") != strings.Count(fstab, "\n") {
		t.Errorf("fstab:\n%s", got)
	}
	if info, err := os.Stat(w.plan.Tab.Path); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	for name, path := range map[string]string{"fstab.backup": w.plan.Fstab[0].Path, "dmlooptab.backup": w.plan.Tab.Path} {
		if got := w.text(t, "dmloop/persist/shim-root/"+name); got != w.before[path] {
			t.Errorf("%s: %q", name, got)
		}
	}
	if plans, err := w.Plans(); err != nil || len(plans) != 1 || plans[0].Point != "/" {
		t.Errorf("%+v %v", plans, err)
	}
}

// checkReverted takes the plan back, if it is in force, and looks.
func (w *world) checkReverted(t *testing.T) {
	t.Helper()
	w.cut = 0
	p, err := w.Load("shim-root")
	if err == nil {
		err = w.Revert(p)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for path, before := range w.before {
		if got := w.text(t, filepath.Base(path)); got != before {
			t.Errorf("%s is not as it was:\n%s", path, got)
		}
	}
	if plans, err := w.Plans(); err != nil || len(plans) != 0 {
		t.Errorf("%+v %v", plans, err)
	}
}

func TestRevertKeepsWhatOthersChanged(t *testing.T) {
	w := newWorld(t, 0)
	w.checkApplied(t)
	path := w.plan.Tab.Path
	if err := os.WriteFile(path, []byte(w.text(t, "dmlooptab")+"more /srv/more.img\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := w.Revert(w.plan); err != nil {
		t.Fatal(err)
	}
	if got := w.text(t, "dmlooptab"); got != w.before[path]+"more /srv/more.img\n" {
		t.Errorf("%q", got)
	}
	w = newWorld(t, 0)
	w.checkApplied(t)
	if err := os.WriteFile(w.plan.Fstab[0].Path, []byte("something else\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := w.Revert(w.plan); err == nil || !strings.Contains(err.Error(), "somebody has changed it") {
		t.Error(err)
	}
	if got := w.text(t, "fstab"); got != "something else\n" {
		t.Errorf("%q", got)
	}
}

// A maker that is switched off, and says that all is well, is found out before fstab is
// touched; once it works the same command goes on.
func TestTheMakerIsNotBelieved(t *testing.T) {
	w := newWorld(t, 0)
	w.off = true
	var refused *RefusedError
	if err := w.Apply(w.plan); !errors.As(err, &refused) || !strings.Contains(err.Error(), "/boot/initrd.img-1 would not make the shim") {
		t.Fatalf("%v", err)
	}
	if w.text(t, "fstab") != fstab {
		t.Errorf("fstab was changed:\n%s", w.text(t, "fstab"))
	}
	w.off = false
	w.checkApplied(t)
	w.checkReverted(t)
}

func TestWhatAnInitramfsLacks(t *testing.T) {
	p, err := Make(facts("/etc", "/"))
	if err != nil {
		t.Fatal(err)
	}
	whole := Initramfs{Path: "x", Program: true, Hook: true, Tab: "# ours\n" + p.Tab.New + "\n"}
	for want, change := range map[string]func(*Initramfs){
		"":                            func(*Initramfs) {},
		"the program dmloop":          func(i *Initramfs) { i.Program = false },
		"nothing in it runs dmloop":   func(i *Initramfs) { i.Hook = false },
		"there is no dmlooptab":       func(i *Initramfs) { i.Tab = "" },
		"does not have the line":      func(i *Initramfs) { i.Tab = "# nothing\n" },
		"does not have the line of t": func(i *Initramfs) { i.Tab = strings.Replace(i.Tab, uuid, uuid[:35]+"f", 1) },
		"does not have the line of":   func(i *Initramfs) { i.Tab = strings.Replace(i.Tab, ",x-initrd.attach", "", 1) },
		"cannot be read":              func(i *Initramfs) { i.Tab = "one\n" },
	} {
		i := whole
		change(&i)
		if got := p.lacks(i); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q: %q", want, got)
		}
	}
}

// The images are those of the kernels that can be chosen; a kernel without one is refused.
func TestImages(t *testing.T) {
	for name, c := range map[string]struct{ files, want string }{
		"debian":            {"vmlinuz-6.1 initrd.img-6.1 vmlinuz-6.12 initrd.img-6.12 initrd.img-6.1.dpkg-bak config-6.1", "initrd.img-6.1 initrd.img-6.12"},
		"fedora":            {"vmlinuz-6.1 initramfs-6.1.img vmlinuz-0-rescue-abc initramfs-0-rescue-abc.img", "initramfs-6.1.img"},
		"kernels elsewhere": {"initrd.img-6.1", "initrd.img-6.1"},
		"none":              {"", ""},
		"a kernel without":  {"vmlinuz-6.1 initrd.img-6.1 vmlinuz-6.12", "refused"},
	} {
		dir := t.TempDir()
		for _, file := range strings.Fields(c.files) {
			if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		found, err := images(dir)
		var got []string
		for _, path := range found {
			got = append(got, filepath.Base(path))
		}
		if err != nil {
			got = []string{"refused"}
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: %s, want %s", name, text, c.want)
		}
	}
}

// What is unpacked is found with and without microcode before it.
func TestLook(t *testing.T) {
	for _, c := range []struct {
		files string
		want  Initramfs
	}{
		{"sbin/dmloop scripts/local-top/dmloop etc/dmlooptab", Initramfs{Program: true, Hook: true, Tab: "x"}},
		{"early/kernel/x main/usr/sbin/dmloop main/scripts/local-top/dmloop main/etc/dmlooptab", Initramfs{Program: true, Hook: true, Tab: "x"}},
		{"usr/sbin/dmloop usr/lib/dracut/hooks/initqueue/finished/90-dmloop-finished.sh etc/dmlooptab", Initramfs{Program: true, Hook: true, Tab: "x"}},
		{"scripts/local-top/other", Initramfs{}},
	} {
		dir := t.TempDir()
		for _, file := range strings.Fields(c.files) {
			path := filepath.Join(dir, file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := look("", dir); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.files, got, err)
		}
	}
}
