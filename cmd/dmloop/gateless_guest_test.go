//go:build vmtest

package main

import (
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// gateOption is what the kernel of User Mode Linux was made without.
const gateOption = "CONFIG_FANOTIFY_ACCESS_PERMISSIONS"

// lacksGate reports whether a file system of this kind, on this kernel, needs a gate that
// cannot be had.
func lacksGate(t testing.TB, kind hostKind) bool {
	t.Helper()
	holes := kind.fstype == "f2fs" || kind.fstype == "xfs" && !strings.Contains(strings.Join(kind.mkfs, " "), "reflink=0")
	return holes && vmtest.Kernel(t) == "uml"
}

// mappable expects check to say that an image on a file system of this kind, not sealed,
// can be mapped: on a kernel that cannot deny opens only where the pin alone holds it.
func mappable(t testing.TB, kind hostKind, image string) {
	t.Helper()
	if !lacksGate(t, kind) {
		expect(t, 0, "check", image)
		return
	}
	if r := expect(t, 3, "check", image); !strings.Contains(r.Stdout, "not mappable, 1 problem\n") || !strings.Contains(r.Stdout, gateOption) {
		t.Errorf("check says more than that this kernel cannot deny opens: %s", r.Stdout)
	}
}

// What check and a dry run say of an image is what map says, also on a kernel that cannot
// deny opens; and asking taints no kernel.
func TestCheckSaysWhatMapSays(t *testing.T) {
	vmtest.RequireGuest(t)
	t.Cleanup(func() { endGuard(t, "TERM") })
	before := vmtest.Must(t, "cat", "/proc/sys/kernel/tainted")
	saysFanotify := func() int { return strings.Count(vmtest.Must(t, "dmesg"), "fanotify") }
	saidOfFanotify := saysFanotify() // by the guards of other tests
	type said struct {
		kind             hostKind
		checked, planned vmtest.Result
	}
	var saidBefore []said
	for _, kind := range []hostKind{ext4Host, xfsHost, {"xfs-noreflink", "xfs", []string{"-m", "reflink=0"}}, f2fsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.image(t, "image.img", "4M")
			mappable(t, kind, image)
			checked, planned := cli("check", image), cli("map", "--dry-run", image)
			expect(t, 0, "map", "--dry-run", "--unsafe", image)
			expect(t, 0, "table", image)
			if now := vmtest.Must(t, "cat", "/proc/sys/kernel/tainted"); now != before {
				t.Errorf("tainted: %s, before %s", now, before)
			}
			if saysFanotify() != saidOfFanotify {
				t.Error("the kernel says something of fanotify")
			}
			// What is sealed needs no gate.
			expect(t, 0, "seal", image)
			expect(t, 0, "check", image)
			expect(t, 0, "unseal", image)
			if r := cli("map", "--no-guard", image); (r.Code == 0) != (kind.name == "ext4" || kind.name == "xfs-noreflink") {
				t.Errorf("map --no-guard: exit code %d\n%s", r.Code, r.Stderr)
			} else if r.Code == 0 {
				expect(t, 0, "unmap", image)
			}
			saidBefore = append(saidBefore, said{kind, checked, planned})
		})
	}
	// Guards come last: where one denies opens, the kernel is tainted.
	for _, s := range saidBefore {
		t.Run("map on "+s.kind.name, func(t *testing.T) {
			h := newHost(t, s.kind, "shim")
			image := h.image(t, "image.img", "4M")
			mapped := dmloop(t, "map", image)
			if mapped.Code != s.checked.Code || mapped.Code != s.planned.Code {
				t.Errorf("map ends with %d, check with %d, a dry run with %d\n%s", mapped.Code, s.checked.Code, s.planned.Code, mapped.Stderr)
			}
			if mapped.Code == 0 {
				mustDmloop(t, "unmap", "image")
			} else if !strings.Contains(mapped.Stderr, gateOption) || !strings.Contains(s.checked.Stdout, gateOption) || !strings.Contains(s.planned.Stderr, gateOption) {
				t.Errorf("map says %s\ncheck %s\na dry run %s", mapped.Stderr, s.checked.Stdout, s.planned.Stderr)
			}
			nothingLeft(t, image)
		})
	}
}
