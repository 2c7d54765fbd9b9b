//go:build vmtest

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"dmloop/internal/vmtest"
)

// growing are the system calls by which grow changes something, and some between them.
func growing(more ...string) []string {
	if everything() {
		return append(more, "ioctl", "fallocate", "ftruncate", "pwrite64", "fsync", "renameat", "fcntl/3", "openat/9")
	}
	return append(more, "ioctl/2", "fallocate", "ftruncate", "pwrite64", "fsync", "renameat")
}

const growOld, growNew = 4 << 20, 6 << 20

// Killed anywhere, grow of a mapped image leaves a device that shows what it showed, and the next
// command finishes the work or takes it back: file, device and table are of the old size or of the new one.
func TestFullKilledGrow(t *testing.T) {
	for _, kind := range growHosts(t, ext4Host) {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			soilHost(t, h)
			beside := neighbours{}
			beside.add(t, h, "beside")
			image, sum := h.path("image.img"), ""
			prepare := func() []string {
				t.Helper()
				os.Remove(image)
				h.image(t, "image.img", fmt.Sprint(growOld))
				expect(t, 0, "map", "--no-guard", "--unsafe", image)
				sum = fill(t, "/dev/mapper/image", growOld, 1)
				return []string{"grow", "--unsafe", "image", fmt.Sprint(growNew)}
			}
			var ended [2]int // with the old size, with the new one
			points(t, growing("fsetxattr", "fremovexattr"), prepare, func(how string) {
				t.Helper()
				shows(t, how, sum)
				expect(t, 6, "unmap", "nobody") // any command settles it
				ended[settledGrowth(t, how, image, sum)]++
				expect(t, 0, "grow", "--unsafe", image, fmt.Sprint(growNew))
				if settledGrowth(t, how+", again", image, sum) != 1 {
					t.Errorf("%s: again: the old size", how)
				}
				zerosBehind(t, how, "/dev/mapper/image", growOld, growNew)
				expect(t, 0, "unmap", "image")
				beside.same(t, how)
			})
			if ended[0] < 3 || ended[1] < 2 {
				t.Errorf("%d times the old size, %d times the new one", ended[0], ended[1])
			}
			h.check(t)
			nothingLeft(t, image)
		})
	}
}

// shows fails the test unless the device shows what it showed before.
func shows(t testing.TB, how, sum string) {
	t.Helper()
	if got := headSum(t, "/dev/mapper/image", growOld); !strings.HasPrefix(got, sum) {
		t.Errorf("%s: the device shows something else", how)
	}
}

// settledGrowth fails the test unless everything about the mapped image is of one size, and returns 0
// for the old one and 1 for the new one.
func settledGrowth(t testing.TB, how, image, sum string) int {
	t.Helper()
	size := sizeOf(t, image)
	if sectors := vmtest.Sectors(t, "/dev/mapper/image"); sectors*512 != size || size != growOld && size != growNew {
		t.Errorf("%s: the device has %d bytes, the file %d", how, sectors*512, size)
	}
	if left := look(t, image); left != (remains{true, true, true, true}) {
		t.Errorf("%s: %+v", how, left)
	}
	if waiting := strings.TrimSpace(vmtest.Must(t, "dmsetup", "table", "--inactive", "image")); waiting != "" {
		t.Errorf("%s: the table %s waits", how, waiting)
	}
	if text, err := os.ReadFile("/run/dmloop/image.mapping"); err != nil || strings.Contains(string(text), `"growing"`) {
		t.Errorf("%s: the record is still about the growth (%v)", how, err)
	}
	sameAsFilefrag(t, "image", image)
	if r := cli("verify", "image"); r.Code != 0 {
		t.Errorf("%s: verify: exit code %d\n%s", how, r.Code, r.Stdout)
	}
	shows(t, how, sum)
	if size == growNew {
		return 1
	}
	return 0
}

// The same with a guard: it tears nothing down, and settles by itself what a kill leaves.
func TestLongKilledGrowGuarded(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image, sum := h.path("image.img"), ""
	prepare := func() []string {
		t.Helper()
		os.Remove(image)
		h.image(t, "image.img", fmt.Sprint(growOld))
		mustDmloop(t, "map", image)
		sum = fill(t, "/dev/mapper/image", growOld, 1)
		return []string{"grow", "--unsafe", "image", fmt.Sprint(growNew)}
	}
	defer endGuard(t, "TERM")
	points(t, growing(), prepare, func(how string) {
		t.Helper()
		shows(t, how, sum)
		await(t, how+": the guard's end of it", 20*time.Second, func() bool {
			text, err := os.ReadFile("/run/dmloop/image.mapping")
			return err == nil && !strings.Contains(string(text), `"growing"`)
		})
		settledGrowth(t, how, image, sum)
		if state := strings.TrimSpace(expect(t, 0, "list", "--raw", "-n", "-o", "STATE,GUARD", "image").Stdout); state != "healthy 1" {
			t.Errorf("%s: %q\n%s", how, state, guardLog())
		}
		expect(t, 0, "unmap", "image")
	})
	nothingLeft(t, image)
}

// Killed anywhere, grow of an image that is not mapped leaves its content, and zeros in what is new. The same
// command again completes it. On f2fs the file may have any size between: it becomes longer with each write.
func TestLongKilledGrowUnmapped(t *testing.T) {
	for _, kind := range growHosts(t, f2fsHost) {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			soilHost(t, h)
			image := h.path("image.img")
			prepare := func() []string {
				os.Remove(image)
				h.image(t, "image.img", fmt.Sprint(growOld))
				fill(t, image, growOld, 1)
				return []string{"grow", image, fmt.Sprint(growNew)}
			}
			prepare()
			sum := headSum(t, image, growOld)
			points(t, growing("fcntl/4"), prepare, func(how string) {
				t.Helper()
				size := sizeOf(t, image)
				if size != growOld && size != growNew && kind.fstype != "f2fs" {
					t.Errorf("%s: %d bytes", how, size)
				}
				if size > growOld {
					zerosBehind(t, how, image, growOld, size)
				}
				if headSum(t, image, growOld) != sum {
					t.Errorf("%s: the content changed", how)
				}
				expect(t, 0, "grow", image, fmt.Sprint(growNew))
				mappable(t, kind, image)
				zerosBehind(t, how, image, growOld, growNew)
			})
			h.check(t)
		})
	}
}

// Killed anywhere, grow of a sealed image leaves it sealed, half-way or plain, with the old content or the
// longer one. The same command again goes on from there.
func TestLongKilledGrowSealed(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	soilHost(t, h)
	image := h.path("image.img")
	sum := ""
	prepare := func() []string {
		os.Remove(image)
		h.image(t, "image.img", fmt.Sprint(growOld))
		fill(t, image, growOld, 1)
		sum = headSum(t, image, growOld)
		expect(t, 0, "seal", image)
		return []string{"grow", image, fmt.Sprint(growNew)}
	}
	points(t, growing("fsetxattr", "fremovexattr"), prepare, func(how string) {
		t.Helper()
		expect(t, 0, "grow", image, fmt.Sprint(growNew))
		expect(t, 0, "seal", image)
		dev := mapIt(t, image, "image")
		if headSum(t, dev, growOld) != strings.ReplaceAll(sum, image, dev) {
			t.Errorf("%s: the device shows something else", how)
		}
		if size := vmtest.Sectors(t, dev) * 512; size != growNew {
			t.Errorf("%s: the device has %d bytes", how, size)
		}
		zerosBehind(t, how, dev, growOld, growNew)
		expect(t, 0, "unmap", "image")
		expect(t, 0, "unseal", image)
		if headSum(t, image, growOld) != sum || sizeOf(t, image) != growNew {
			t.Errorf("%s: unsealed, it is not what it was (%d bytes)", how, sizeOf(t, image))
		}
	})
	nothingLeft(t, image)
}
