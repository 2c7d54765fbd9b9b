package vm

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clockPeriod is how long a User Mode Linux guest may be without its clock's interrupt.
const clockPeriod = 100 * time.Millisecond

// KeepTime sends a User Mode Linux guest its clock's interrupt every tenth of a second
// until gone is closed. The kernel programs a timer of the host for one shot at a time
// and throws the shot away that comes while it still handles the last one
// (unblock_signals in arch/um/os-Linux/signal.c: "Do not reenter the handler"). Then
// nothing programs the next, and the guest does nothing for ever: on a busy machine
// once in a few minutes. One interrupt more than was asked for does no harm.
func KeepTime(guest *os.Process, gone <-chan struct{}) {
	for tick := time.NewTicker(clockPeriod); ; {
		select {
		case <-gone:
			tick.Stop()
			return
		case <-tick.C:
		}
		// A guest that has not yet set its clock up would die of the signal.
		if catches(guest.Pid, syscall.SIGALRM) && guest.Signal(syscall.SIGALRM) != nil {
			return // it has ended
		}
	}
}

// catches reports whether process pid has a handler for sig (SigCgt in proc(5)).
func catches(pid int, sig syscall.Signal) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if digits, found := strings.CutPrefix(lines.Text(), "SigCgt:"); found {
			mask, err := strconv.ParseUint(strings.TrimSpace(digits), 16, 64)
			return err == nil && mask>>(sig-1)&1 == 1
		}
	}
	return false
}
