// Package guestinit is what runs as process 1 in a guest: it makes the host's
// files visible below a tmpfs overlay, runs the commands of the job, and
// reports their exit codes. Nothing of it is needed on the host.
package guestinit

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest/vm"
)

// Wanted reports whether this process is the first one of a guest.
func Wanted() bool { return os.Getpid() == 1 && os.Getenv(vm.JobVariable) != "" }

// Main does the work of process 1 and powers the guest off. It does not return.
func Main() {
	control, err := run(os.Getenv(vm.JobVariable))
	if err != nil {
		// Without a control channel the console is all there is.
		fmt.Fprintln(os.Stderr, "guest: process 1 failed:", err)
		if control != nil {
			report(control, vm.Report{Kind: "error", Text: err.Error()})
		}
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "guest: power off:", err)
	}
	for { // returning from process 1 would be a panic that hides the cause
		time.Sleep(time.Hour)
	}
}

// run does everything between the start and the power-off.
func run(jobFile string) (control io.Writer, err error) {
	job, err := buildRoot(jobFile)
	if err != nil {
		return nil, err
	}
	ch, err := openChannels(job.Kernel)
	if err != nil {
		return nil, err
	}
	control = ch[2]
	release, err := kernelRelease()
	if err != nil {
		return control, err
	}
	if err := settle(job, release); err != nil {
		return control, err
	}
	report(control, vm.Report{Kind: "ready", Text: release})
	env := environment(job, release)
	stdout, stderr := ch[0], ch[1]
	if job.Transcript {
		stderr = stdout
	}
	for i, c := range job.Commands {
		if job.Transcript {
			fmt.Fprint(stdout, vm.CommandMark(i))
		}
		code, err := runCommand(c, env, stdout, stderr)
		if err != nil {
			fmt.Fprintln(stderr, "guest:", err)
		}
		report(control, vm.Report{Kind: "exit", Command: i, Code: code})
	}
	report(control, vm.Report{Kind: "done"})
	return control, nil
}

// report writes one line to the control channel. The host notices a missing
// report by itself, so an error here has nobody to go to.
func report(w io.Writer, r vm.Report) {
	line, err := json.Marshal(r)
	if err == nil {
		_, err = w.Write(append(line, '\n'))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest: report:", err)
	}
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// environment is what each command finds in its environment.
func environment(job vm.Job, release string) []string {
	return append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LANG=C.UTF-8", "TERM=dumb", "TMPDIR=/tmp",
		// No udevd runs here: libdevmapper is to make its nodes itself and wait for nobody.
		"DM_DISABLE_UDEV=1",
		"DMLOOP_GUEST=" + job.Kernel,
		"DMLOOP_GUEST_KERNEL=" + release,
		"DMLOOP_DISKS=" + strings.Join(job.Disks, ":"),
	}, job.Env...)
}
