package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ConsoleOf returns the terminal that carries channel number i in User Mode
// Linux. Number 0 is the kernel's own console.
func ConsoleOf(i int) string { return fmt.Sprintf("/dev/tty%d", i+1) }

// umlCommand returns the argument vector and extra environment that boot a
// User Mode Linux guest. Its kernel log comes out of standard output.
func umlCommand(c Config, dir, exe, jobFile string) (argv, env []string) {
	argv = []string{
		"linux.uml",
		fmt.Sprintf("mem=%dM", c.MemoryMiB),
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
		"init=" + exe, JobVariable + "=" + jobFile,
		"umid=guest", "uml_dir=" + dir + "/",
		"con=null", "con0=null,fd:1",
		"loglevel=5",
	}
	for i := range Channels {
		argv = append(argv, fmt.Sprintf("con%d=null,fd:%d", i+1, i+3))
	}
	for i := range c.Disks {
		argv = append(argv, fmt.Sprintf("ubd%d=%s", i, diskFile(dir, i)))
	}
	return argv, []string{"TMPDIR=" + memoryFolder(c, dir)}
}

// memoryFolder is where User Mode Linux keeps the file that is its memory:
// RAM if enough is there, for on a disk each page would be written back.
func memoryFolder(c Config, dir string) string {
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if unix.Statfs(shm, &st) == nil && st.Bavail*uint64(st.Bsize) > uint64(c.MemoryMiB)<<20 {
		return shm
	}
	return dir
}

// umlDisks names the disks as the guest sees them.
func umlDisks(n int) []string {
	var names []string
	for i := range n {
		names = append(names, "/dev/ubd"+string(rune('a'+i)))
	}
	return names
}

// umlModules finds the module folder that the package user-mode-linux brings.
func umlModules() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/uml/modules/*")
	if err != nil {
		return "", err
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "modules.dep")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no modules of User Mode Linux in %s: install the package user-mode-linux", strings.Join(dirs, " "))
}
