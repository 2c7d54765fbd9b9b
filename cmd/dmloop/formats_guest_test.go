//go:build vmtest

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// Files that other programs make of a disk are named, refused for nothing, and the command of
// the note makes an image of them that maps to the same disk. map warns of them once.
func TestFormatsOfRealFiles(t *testing.T) {
	asProgram(t)
	h := newHost(t, ext4Host, "shim")
	shell(t, h.dir, "head -c 4M /dev/urandom >disk; truncate -s 8M disk; mkdir tree; cp disk tree/file")
	content := vmtest.ChecksumFile(t, h.path("disk"))
	for _, c := range []struct{ format, script string }{
		{"qcow2", "qemu-img convert -f raw -O qcow2 disk x.qcow2"},
		{"qcow", "qemu-img convert -f raw -O qcow disk x.qcow"},
		{"vhd", "qemu-img convert -f raw -O vpc -o force_size=on disk x.vhd"},
		{"vhdx", "qemu-img convert -f raw -O vhdx disk x.vhdx"},
		{"vmdk", "qemu-img convert -f raw -O vmdk disk x.vmdk"},
		{"vmdk-descriptor", "qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat disk x.vmdk"},
		{"vdi", "qemu-img convert -f raw -O vdi disk x.vdi"},
		{"android-sparse", "img2simg disk x.simg"},
		{"gzip", "gzip -c disk >x.img.gz"},
		{"xz", "xz -0 -c disk >x.img.xz"},
		{"zstd", "zstd -q -c disk >x.img.zst"},
		{"bzip2", "bzip2 -c disk >x.img.bz2"},
	} {
		t.Run(c.format, func(t *testing.T) {
			defer shell(t, h.dir, "rm -f x*")
			shell(t, h.dir, c.script)
			found, _ := filepath.Glob(h.path("x*"))
			image := found[len(found)-1]
			shell(t, h.dir, "truncate -s %4096 "+image+"; dmloop provision "+image)
			checked := formatSaid(t, 0, image)
			if checked.Format != c.format || len(checked.Notes) != 1 {
				t.Fatalf("%+v", checked)
			}
			if text := expect(t, 0, "check", image).Stdout; !strings.Contains(text, "note: it is ") || !strings.Contains(text, checked.Notes[0].Hint) {
				t.Errorf("%s", text)
			}
			r := expect(t, 0, "map", "--no-guard", image, "packed")
			if strings.Count(r.Stderr, "byte for byte") != 1 {
				t.Errorf("map says %q", r.Stderr)
			}
			expect(t, 0, "unmap", "packed")
			_, command, is := strings.Cut(checked.Notes[0].Hint, ": ")
			if !is {
				t.Fatalf("%q", checked.Notes[0].Hint)
			}
			shell(t, h.dir, c.script) // whole again, where it was made longer
			vmtest.Must(t, "sh", "-ec", command)
			plain := h.path("x.img")
			if got := formatSaid(t, 0, plain); got.Format != "raw" || len(got.Notes) != 0 {
				t.Errorf("%+v", got)
			}
			r = expect(t, 0, "map", "--no-guard", plain, "plain")
			if strings.Contains(r.Stderr, "byte for byte") {
				t.Errorf("map says %q", r.Stderr)
			}
			if got := vmtest.ChecksumFile(t, "/dev/mapper/plain"); got != content {
				t.Error("the device shows another disk")
			}
			expect(t, 0, "unmap", "plain")
		})
	}
	t.Run("vhd-fixed", func(t *testing.T) {
		shell(t, h.dir, "qemu-img convert -f raw -O vpc -o subformat=fixed,force_size=on disk y; cat y >x.vhd; rm y; sync x.vhd") // without holes
		image := h.path("x.vhd")
		checked := formatSaid(t, 3, image)
		if checked.Format != "vhd-fixed" || len(checked.Notes) != 1 || checked.Notes[0].Hint != checked.Problems[0].Hint {
			t.Fatalf("%+v", checked)
		}
		_, flags, _ := strings.Cut(checked.Notes[0].Hint, "leave them out with ")
		mapIt(t, image, "disk", strings.Fields(flags)...)
		if got := vmtest.ChecksumFile(t, "/dev/mapper/disk"); got != content {
			t.Error("the device shows another disk")
		}
		expect(t, 0, "unmap", "disk")
		if r := expect(t, 0, append([]string{"check", image}, strings.Fields(flags)...)...); strings.Contains(r.Stdout, "note:") {
			t.Errorf("without the footer: %s", r.Stdout)
		}
		os.Remove(image)
	})
	for _, c := range []struct{ format, script string }{
		{"iso9660", "genisoimage -quiet -o x.iso tree"},
		{"squashfs", "mksquashfs tree x.iso -quiet -no-progress >/dev/null"},
	} {
		t.Run(c.format, func(t *testing.T) {
			defer shell(t, h.dir, "rm -f x.iso")
			shell(t, h.dir, c.script+"; truncate -s %4096 x.iso; sync x.iso; dmloop provision x.iso")
			image := h.path("x.iso")
			checked := formatSaid(t, 0, image)
			if checked.Format != c.format || len(checked.Notes) != 1 || !strings.Contains(checked.Notes[0].Hint, "mount -t "+c.format+" -o ro") {
				t.Fatalf("%+v", checked)
			}
			if r := expect(t, 0, "map", "-r", "--no-guard", image, "disc"); r.Stderr != "" {
				t.Errorf("map says %q", r.Stderr)
			}
			if r := vmtest.Run(t, "blkid", "-p", "-s", "TYPE", "-o", "value", "/dev/mapper/disc"); strings.TrimSpace(r.Stdout) != c.format {
				t.Errorf("blkid calls it %q", r.Stdout)
			}
			expect(t, 0, "unmap", "disc")
		})
	}
	// The content of a sealed image is told all the same.
	shell(t, h.dir, "qemu-img convert -f raw -O qcow2 disk x.qcow2; chmod 600 x.qcow2; truncate -s %4096 x.qcow2; dmloop provision x.qcow2; dmloop seal x.qcow2")
	if got := formatSaid(t, 0, h.path("x.qcow2")); got.Format != "qcow2" || !got.Sealed {
		t.Errorf("%+v", got)
	}
	nothingLeft(t, h.path("x.qcow2"))
}

// formatSaid is what check says of one image.
func formatSaid(t *testing.T, code int, image string) checkedJSON {
	t.Helper()
	r := expect(t, code, "check", "--json", image)
	var answer checkJSON
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil || len(answer.Images) != 1 {
		t.Fatalf("%v\n%s", err, r.Stdout)
	}
	return answer.Images[0]
}
