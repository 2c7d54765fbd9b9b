package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// must runs a program that has to succeed and returns its standard output.
func must(name string, args ...string) string {
	out, _, _ := execute(name, args...)
	return out
}

// execute runs a program that has to succeed: its outputs, and its time in microseconds.
func execute(name string, args ...string) (stdout, stderr string, took float64) {
	var out bytes.Buffer
	_, stderr, took = runTo(&out, name, args...)
	return out.String(), stderr, took
}

// silent runs a program with its output thrown away by the kernel, so that nobody's pipe
// is measured, and returns the time in microseconds and the most memory it had.
func silent(name string, args ...string) (took, mib float64) {
	state, _, took := runTo(nil, name, args...)
	return took, float64(state.SysUsage().(*syscall.Rusage).Maxrss) / 1024
}

// runTo runs a program that has to succeed, with its output to a writer or, without one,
// thrown away. It took so many microseconds.
func runTo(stdout io.Writer, name string, args ...string) (state *os.ProcessState, stderr string, took float64) {
	var errOut bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = stdout, &errOut
	start := time.Now()
	err := cmd.Run()
	took = micro(time.Since(start))
	if err != nil {
		check(fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errOut.String()))
	}
	return cmd.ProcessState, errOut.String(), took
}

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// tools are the programs that take part, found on the host.
var tools = []string{"awk", "bash", "cat", "dmsetup", "e2fsck", "filefrag", "fio", "losetup", "mkfs.ext4", "mkfs.xfs", "mount", "sed", "sh", "tail", "truncate", "umount", "wc"}

// enterRoot copies the programs with their libraries into memory and makes that the root: the
// host's files, over whose network file system each first look takes time of the host's, are out
// of the way.
func enterRoot(programs string) {
	const root = "/tmp/root"
	if _, err := os.Stat(programs); err != nil {
		programs = "/host" + programs // /tmp is the guest's own
	}
	for _, name := range []string{"dmloop", "hello", "linked"} {
		copyFile(filepath.Join(programs, name), root+"/bin/"+name)
	}
	for _, name := range tools {
		path, err := exec.LookPath(name)
		check(err)
		copyFile(path, root+"/bin/"+name)
		for word := range strings.FieldsSeq(must("ldd", path)) {
			if strings.HasPrefix(word, "/") {
				copyFile(word, root+word)
			}
		}
	}
	copyFile("/etc/ld.so.cache", root+"/etc/ld.so.cache")
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run"} {
		check(os.MkdirAll(root+dir, 0o755))
		check(unix.Mount(dir, root+dir, "", unix.MS_BIND|unix.MS_REC, ""))
	}
	for _, path := range []string{dir, "/tmp"} {
		check(os.MkdirAll(root+path, 0o755))
	}
	check(unix.Chroot(root))
	check(os.Chdir("/"))
	check(os.Setenv("PATH", "/bin"))
}

func copyFile(from, to string) {
	if _, err := os.Stat(to); err == nil {
		return
	}
	in, err := os.Open(from)
	check(err)
	defer in.Close()
	check(os.MkdirAll(filepath.Dir(to), 0o755))
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	check(err)
	_, err = io.Copy(out, in)
	check(err)
	check(out.Close())
}
