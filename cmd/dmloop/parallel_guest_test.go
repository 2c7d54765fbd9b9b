//go:build vmtest

package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dmloop/internal/vmtest"
)

const many = 20

// together runs a command line for each number at the same time, each in a process
// of its own, and counts the exit codes.
func together(t *testing.T, args func(i int) []string) (codes map[int]int, all string) {
	t.Helper()
	var wait sync.WaitGroup
	results := make([]vmtest.Result, many)
	for i := range many {
		wait.Go(func() { results[i] = dmloop(t, args(i)...) })
	}
	wait.Wait()
	codes = map[int]int{}
	for _, r := range results {
		codes[r.Code]++
		all += r.Stderr
	}
	return codes, all
}

func TestFullManyAtOnce(t *testing.T) {
	h := newHost(t, xfsHost, "shim")
	images, sums := make([]string, many), make([]string, many)
	for i := range many {
		images[i] = h.image(t, fmt.Sprintf("image%d.img", i), "1M")
	}
	codes, said := together(t, func(i int) []string { return []string{"map", "--no-guard", "--unsafe", images[i]} })
	if codes[0] != many {
		t.Fatalf("map: exit codes %v\n%s", codes, said)
	}
	if n := strings.Count(expect(t, 0, "list", "--raw", "-n", "-o", "NAME,STATE").Stdout, " healthy\n"); n != many {
		t.Errorf("%d healthy mappings", n)
	}
	var wait sync.WaitGroup
	for i := range many {
		wait.Go(func() { sums[i] = fill(t, fmt.Sprintf("/dev/mapper/image%d", i), 1<<20, byte(i)) })
	}
	wait.Wait()
	codes, said = together(t, func(i int) []string { return []string{"unmap", images[i]} })
	if codes[0] != many {
		t.Fatalf("unmap: exit codes %v\n%s", codes, said)
	}
	for i, image := range images {
		if got := vmtest.ChecksumFile(t, image); got != sums[i] {
			t.Errorf("%s holds something else", image)
		}
	}
	nothingLeft(t, images...)
}

func TestFullSameImageManyTimesAtOnce(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "2M")
	for _, args := range []func(i int) []string{
		func(int) []string { return []string{"map", "--no-guard", image} },
		func(i int) []string { return []string{"map", "--no-guard", image, fmt.Sprintf("name%d", i)} },
	} {
		codes, said := together(t, args)
		if codes[0] != 1 || codes[5] != many-1 {
			t.Errorf("map: exit codes %v\n%s", codes, said)
		}
		if n := strings.Count(expect(t, 0, "list", "--raw", "-n").Stdout, "\n"); n != 1 {
			t.Errorf("%d mappings", n)
		}
		codes, said = together(t, func(int) []string { return []string{"unmap", image} })
		if codes[0] != 1 || codes[6] != many-1 {
			t.Errorf("unmap: exit codes %v\n%s", codes, said)
		}
		nothingLeft(t, image)
	}
	// map, unmap, list and check of one image at once: whatever wins, nothing breaks.
	codes, said := together(t, func(i int) []string {
		return [][]string{{"map", "--no-guard", image}, {"unmap", image}, {"list"}, {"verify"}}[i%4]
	})
	for code := range codes {
		if code != 0 && code != 5 && code != 6 {
			t.Errorf("mixed: exit codes %v\n%s", codes, said)
		}
	}
	if r := cli("unmap", image); r.Code != 0 && r.Code != 6 {
		t.Errorf("exit code %d\n%s", r.Code, r.Stderr)
	}
	nothingLeft(t, image)
}

// Ctrl-C leaves nothing of create and map, and an unharmed file of provision.
func TestFullInterrupted(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	interrupt := func(after time.Duration, sig syscall.Signal, args ...string) (code int, said string) {
		t.Helper()
		cmd := command(t, "dmloop", args...)
		errOut := &strings.Builder{}
		cmd.Stderr = errOut
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		cmd.Process.Signal(sig)
		cmd.Wait()
		return cmd.ProcessState.ExitCode(), errOut.String()
	}
	start := time.Now()
	mustDmloop(t, "version")
	startup := time.Since(start)

	big := h.path("big.img")
	for i := range 6 {
		code, said := interrupt(startup+time.Duration(i)*30*time.Millisecond, syscall.SIGINT, "create", big, "200M")
		if code == 0 { // it was quicker
			os.Remove(big)
			continue
		}
		if code != 1 && code != -1 || code == 1 && said != "dmloop: "+big+": interrupted\n" {
			t.Errorf("create: exit code %d: %q", code, said)
		}
		if _, err := os.Stat(big); err == nil {
			t.Error("create left a file")
		}
	}

	sparse := h.path("sparse.img")
	shell(t, h.dir, "head -c 4M /dev/urandom >sparse.img; truncate -s 200M sparse.img; sync sparse.img")
	sum := vmtest.ChecksumFile(t, sparse)
	for i := range 4 {
		interrupt(startup+time.Duration(i)*20*time.Millisecond, []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}[i%2], "provision", sparse)
		if got := vmtest.ChecksumFile(t, sparse); got != sum {
			t.Fatal("provision changed the content")
		}
	}
	expect(t, 0, "provision", sparse)
	expect(t, 0, "check", sparse)

	for i := range 10 {
		code, said := interrupt(startup/2+time.Duration(i)*startup/8, syscall.SIGINT, "map", "--no-guard", sparse)
		left := look(t, sparse)
		switch {
		case code == 0 && left != (remains{true, true, true, true}):
			t.Errorf("map succeeded, and there is %+v", left)
		case code != 0 && left != (remains{}):
			t.Errorf("map was interrupted (%d: %s), and there is %+v", code, said, left)
		case code != 0 && code != 1 && code != -1: // -1: before it could catch signals
			t.Errorf("exit code %d: %s", code, said)
		case code == 1 && strings.Contains(said, "canceled"):
			t.Errorf("of an interrupted map is said: %s", said)
		}
		if code == 0 {
			expect(t, 0, "unmap", sparse)
		}
	}
	nothingLeft(t, sparse)
}
