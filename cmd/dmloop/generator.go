package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/internal/boot"
	"dmloop/internal/exitcodes"
	"dmloop/internal/hostfiles"
)

// runGenerator is the program as systemd's generator: with the folders for units of
// normal, early and late priority it writes to the first. It is run before any file
// system but the root is mounted and before there is a log, so it says what is wrong
// in the kernel's. A wrong line of the table keeps the others from nothing.
func runGenerator(args []string, stderr io.Writer) int {
	if len(args) != 1 && len(args) != 3 {
		fmt.Fprintf(stderr, "%s: takes one or three directories, as systemd.generator(7) says\n", hostfiles.GeneratorName)
		return exitcodes.Usage
	}
	in := hostfiles.Input{TabPath: tabPath(), Initrd: inInitrd()}
	var wrong error
	in.Table, wrong = readTab(in.TabPath)
	if text, err := os.ReadFile("/etc/fstab"); err == nil {
		in.Mounts = hostfiles.ParseFstab(string(text))
	}
	if !in.Initrd {
		for _, race := range hostfiles.Races(in.Table, in.Mounts, sameLinks) {
			kernelLog(stderr, hostfiles.GeneratorName, in.TabPath+": "+race.String())
		}
	}
	var hosts error
	in.Hosts, hosts = boot.Hosts(boot.RunDir)
	failed := false
	for _, err := range []error{wrong, hosts, hostfiles.Generate(in).WriteTo(args[0])} {
		for _, one := range flatten(err) {
			if one != nil {
				failed = true
				kernelLog(stderr, hostfiles.GeneratorName, one.Error())
			}
		}
	}
	if failed {
		return exitcodes.Failure
	}
	return 0
}

// sameLinks reports whether udev's links of two sources lead to one device. It reads no disk:
// nothing may keep the boot waiting.
func sameLinks(a, b string) bool {
	var one, other unix.Stat_t
	return unix.Stat(hostfiles.Link(a), &one) == nil && unix.Stat(hostfiles.Link(b), &other) == nil &&
		one.Mode&unix.S_IFMT == unix.S_IFBLK && other.Mode&unix.S_IFMT == unix.S_IFBLK && one.Rdev == other.Rdev
}

// inInitrd reports whether systemd runs in an initramfs.
func inInitrd() bool {
	if v, set := os.LookupEnv("SYSTEMD_IN_INITRD"); set {
		return v == "1" || v == "true" || v == "yes"
	}
	_, err := os.Stat("/etc/initrd-release")
	return err == nil
}

// kernelLog writes a line to the kernel's log, which shows errors on the console, or
// to w where that cannot be opened.
func kernelLog(w io.Writer, program, text string) {
	line := fmt.Sprintf("%s: %s\n", program, printable(text))
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		defer f.Close()
		if _, err := f.WriteString("<3>" + line); err == nil {
			return
		}
	}
	fmt.Fprint(w, line)
}
