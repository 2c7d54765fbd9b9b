package vm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OneCPU calls start, whose child processes may then run on one processor of the
// machine only, and returns a function that gives the processor back. User Mode Linux
// is a family of processes of which one runs at a time and wakes the next: on one
// processor that is 2 to 3 times as fast. Guests that run side by side, also those of
// other runners, get processors of their own; one that finds none left runs anywhere.
//
// The caller holds the operating system's thread (runtime.LockOSThread).
func OneCPU(start func() error) (release func(), err error) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	lock, cpu := freeCPU(all)
	if lock == nil {
		return func() {}, start()
	}
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		lock.Close()
		return nil, fmt.Errorf("sched_setaffinity: %w", err)
	}
	err = start()
	if again := unix.SchedSetaffinity(0, &all); err == nil && again != nil {
		err = fmt.Errorf("sched_setaffinity: %w", again)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return func() { lock.Close() }, nil
}

// freeCPU locks the first processor of all that no other guest has, or returns nil. The
// lock is on the processor's folder in sysfs: nothing is left when it is given up.
func freeCPU(all unix.CPUSet) (*os.File, int) {
	for cpu, left := 0, all.Count(); left > 0; cpu++ {
		if !all.IsSet(cpu) {
			continue
		}
		left--
		f, err := os.Open(fmt.Sprintf("/sys/devices/system/cpu/cpu%d", cpu))
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return f, cpu
		}
		f.Close()
	}
	return nil, 0
}
