package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// running is a thing that runs a program.
func running(name string, args ...string) thing {
	return thing{name + " " + strings.Join(args, " "), microseconds, func() float64 { _, _, took := execute(name, args...); return took }}
}

// named gives a thing another name.
func (t thing) named(name string) thing { t.name = name; return t }

// starts measures what a program costs that does nothing.
func (b *bed) starts() {
	b.measure(running("dmloop", "version").named("dmloop version"), running("hello").named("hello"), running("linked").named("hello with dmloop's libraries in it"), running("losetup", "-f").named("losetup -f"))
}

// pairs measures making and removing a device of a one-extent image.
func (b *bed) pairs() {
	nvme, remove := disk(2048, nvme)
	defer remove()
	defer host("ext4", nvme)()
	for _, name := range []string{"image.img", "other.img", "third.img"} {
		must("dmloop", "create", path(name), "16M")
	}
	table := must("dmloop", "table", path("image.img"))
	if strings.Count(table, "\n") != 1 {
		check(fmt.Errorf("the image has more than one extent:\n%s", table))
	}
	loop := strings.TrimSpace(must("losetup", "-f"))
	b.measure(thing{"losetup -f, losetup -d", microseconds, func() float64 {
		_, _, up := execute("losetup", "-f", path("other.img"))
		_, _, down := execute("losetup", "-d", loop)
		return up + down
	}})
	b.measure(pair("no guard, --gate=none", "--no-guard", "--gate=none"), thing{"dmsetup create + remove, the same table", microseconds, func() float64 {
		_, _, up := execute("dmsetup", "create", "same", "--noudevsync", "--table", table)
		_, _, down := execute("dmsetup", "remove", "same", "--noudevsync")
		return up + down
	}})
	// A gate that is in force for another image, and nobody's process.
	must("dmloop", "map", "--no-guard", "--gate=bpf", path("third.img"), "third")
	b.measure(pair("no guard, --gate=bpf", "--no-guard", "--gate=bpf"))
	must("dmloop", "unmap", "third")
	// A guard that runs for another image.
	must("dmloop", "map", "--gate=none", path("third.img"), "third")
	b.measure(pair("under a guard, --gate=none", "--gate=none"), pair("under a guard, --gate=bpf", "--gate=bpf"))
	must("dmloop", "unmap", "third")
	endGuard()
}

// pair maps the image and unmaps it.
func pair(name string, options ...string) thing {
	return thing{"map + unmap, " + name, microseconds, func() float64 {
		_, _, up := execute("dmloop", append([]string{"map", path("image.img")}, options...)...)
		_, _, down := execute("dmloop", "unmap", path("image.img"))
		return up + down
	}}
}

func path(name string) string { return dir + "/" + name }

// endGuard ends the guard that map started, and waits for it.
func endGuard() {
	pid := guardPID()
	check(unix.Kill(pid, unix.SIGTERM))
	for range 1000 {
		if unix.Kill(pid, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	check(fmt.Errorf("the guard, process %d, does not end", pid))
}

// guardPID finds the guard among all processes.
func guardPID() int {
	entries, err := os.ReadDir("/proc")
	check(err)
	for _, e := range entries {
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		words := strings.Split(string(line), "\x00")
		var pid int
		if err == nil && len(words) > 1 && strings.HasSuffix(words[0], "dmloop") && words[1] == "guard" {
			_, err := fmt.Sscan(e.Name(), &pid)
			check(err)
			return pid
		}
	}
	check(fmt.Errorf("no guard runs"))
	return 0
}

// sealed compares the map of an image with the map of the same one sealed.
func (b *bed) sealed() {
	nvme, remove := disk(512, nvme)
	defer remove()
	defer host("ext4", nvme)()
	must("dmloop", "create", path("few.img"), "64M")
	fragmented(path("many.img"), 10_000, block)
	for _, image := range []struct{ name, path string }{{"few extents", path("few.img")}, {"10,000 extents", path("many.img")}} {
		mapped := thing{"map, unsealed, " + image.name, microseconds, func() float64 {
			_, _, took := execute("dmloop", "map", "--no-guard", "--gate=none", image.path, "image")
			must("dmloop", "unmap", "image")
			return took
		}}
		b.measure(mapped)
		must("dmloop", "seal", image.path)
		b.measure(mapped.named("map, sealed, " + image.name))
		must("dmloop", "unseal", image.path)
	}
}

// extents compares the listings of a very fragmented file.
func (b *bed) extents() {
	const n = 500_000
	nvme, remove := disk(5000, nvme)
	defer remove()
	defer host("ext4", nvme)()
	sparse(path("image.img"), n)
	var listed int
	_, err := fmt.Sscan(must("sh", "-c", `dmloop extents "$0" | tail -n +2 | wc -l`, path("image.img")), &listed)
	check(err)
	if listed != n {
		check(fmt.Errorf("%d extents listed, not %d", listed, n))
	}
	var memory float64
	b.measure(thing{"extents of 500,000", microseconds, func() float64 { took, mib := silent("dmloop", "extents", path("image.img")); memory = mib; return took }},
		thing{"filefrag -v of 500,000", microseconds, func() float64 { took, _ := silent("filefrag", "-v", path("image.img")); return took }})
	b.report(figure{Group: b.group, Name: "extents of 500,000: memory", Unit: mebibytes, Passes: [2]float64{memory, memory}})
}

// script is how people map a file by hand.
const script = `dev=$(dmsetup deps -o devno "$2" | sed 's/.*(\(.*\), \(.*\)).*/\1:\2/')
filefrag -v "$1" | awk -v dev="$dev" '
	$1 ~ /^[0-9]+:$/ { gsub(/\.\.|:/, " "); print $2 * 8, $6 * 8, "linear", dev, $4 * 8 }
' | dmsetup create "$3"`

var tookField = regexp.MustCompile(`msg="kernel calls" .*took=([0-9.µa-z]+)`)

// maps measures map by the number of extents, with the kernel's share of it.
func (b *bed) maps() {
	nvme, remove := disk(1500, nvme)
	defer remove()
	defer host("ext4", nvme)()
	for _, n := range []int{1, 1000, 10_000, 100_000} {
		name := fmt.Sprintf("%d.img", n)
		fragmented(path(name), n, block)
		var ioctls []float64
		// In the log is what one run's ioctls took; the clock of the log costs a little.
		mapped := thing{fmt.Sprintf("map, %d extents", n), microseconds, func() float64 {
			_, log, _ := execute("dmloop", "-v", "map", "--no-guard", "--gate=none", path(name), "big")
			must("dmloop", "unmap", "big")
			ioctls = append(ioctls, ioctlTime(log))
			_, _, took := execute("dmloop", "map", "--no-guard", "--gate=none", path(name), "big")
			must("dmloop", "unmap", "big")
			return took
		}}
		b.measure(mapped)
		half := len(ioctls) / 2
		b.report(figure{Group: b.group, Name: mapped.name + ": its ioctls", Unit: microseconds, Passes: [2]float64{median(ioctls[:half]), median(ioctls[half:])}})
	}
	b.measure(thing{"filefrag, awk, dmsetup create, 100,000 extents", microseconds, func() float64 {
		_, _, took := execute("bash", "-c", script, "-", path("100000.img"), "host", "big")
		must("dmsetup", "remove", "--retry", "big")
		return took
	}})
}

// ioctlTime sums up what the log says about the time in ioctls, in microseconds.
func ioctlTime(log string) float64 {
	found := tookField.FindAllStringSubmatch(log, -1)
	if found == nil {
		check(fmt.Errorf("no summary of kernel calls in the log:\n%s", log))
	}
	sum := 0.0
	for _, m := range found {
		d, err := time.ParseDuration(m[1])
		check(err)
		sum += micro(d)
	}
	return sum
}
