//go:build vmtest

package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// scannerMain is an on-access scanner: the kernel opens for it every file below dir
// that anybody opens, and it has done with each a while later.
func scannerMain(dir, hold string) {
	patience, err := time.ParseDuration(hold)
	if err != nil {
		panic(err)
	}
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_UNLIMITED_QUEUE, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK)
	if err == nil {
		err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, unix.FAN_OPEN, unix.AT_FDCWD, dir)
	}
	if err != nil {
		fmt.Println("cannot scan:", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	const head = 24 // struct fanotify_event_metadata
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		for b := buf[:max(n, 0)]; err == nil && len(b) >= head; b = b[binary.NativeEndian.Uint32(b):] {
			event := int(int32(binary.NativeEndian.Uint32(b[16:])))
			time.AfterFunc(patience, func() { unix.Close(event) })
		}
	}
}

func startScanner(t *testing.T, dir, hold string) (stop func()) {
	t.Helper()
	cmd := command(t, "scanner", dir, hold)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() { cmd.Process.Kill(); cmd.Wait() }
	t.Cleanup(stop)
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the scanner says %q", line)
	}
	return stop
}

// Everything works beside a scanner that has each file open for 50 ms after somebody
// has opened it. One that does not let go of the image is named.
func TestScanner(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	stop := startScanner(t, h.dir, "50ms")
	for _, args := range [][]string{
		{"check", image}, {"provision", image}, {"map", "--no-guard", image, "vol"}, {"unmap", "vol"}, {"pin", image}, {"unpin", image},
		{"seal", image}, {"map", "--no-guard", image, "vol"}, {"verify", "vol"}, {"unmap", "vol"}, {"pin", image}, {"unpin", image}, {"unseal", image},
	} {
		if r := dmloop(t, args...); r.Code != 0 {
			t.Errorf("dmloop %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
		}
	}
	stop()
	nothingLeft(t, image)

	startScanner(t, h.dir, "1h")
	r := dmloop(t, "map", "--no-guard", image, "vol")
	if r.Code != 5 || !strings.Contains(r.Stderr, "on-access scanner)") || !strings.Contains(r.Stderr, "have the scanner leave the image alone") ||
		!strings.Contains(r.Stderr, "waiting for somebody who has the image open") {
		t.Errorf("map: exit code %d\n%s", r.Code, r.Stderr)
	}
	nothingLeft(t, image)
	vmtest.Must(t, "sync", "-f", h.dir)
}
