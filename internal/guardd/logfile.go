package guardd

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"dmloop/internal/guardrpc"
)

// logSize is how large a detached guard's log becomes. One older generation is kept: the
// folder is in memory.
const logSize = 1 << 20

// LogWriter returns w, which a guard of the state directory dir logs to. When that is the
// log file of a detached guard, the writer keeps it from growing without end.
func LogWriter(dir string, w io.Writer) io.Writer {
	path := filepath.Join(dir, guardrpc.LogName)
	f, ok := w.(*os.File)
	if !ok {
		return w
	}
	own, err := f.Stat()
	if err != nil {
		return w
	}
	if named, err := os.Stat(path); err != nil || !os.SameFile(own, named) {
		return w
	}
	return &logFile{file: f, path: path, size: own.Size(), limit: logSize}
}

// logFile is a file that is renamed when it has become too large, and started again.
type logFile struct {
	file  *os.File
	path  string
	limit int64

	mu   sync.Mutex
	size int64
}

func (l *logFile) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(line)) > l.limit {
		if l.renew() != nil {
			// The folder was emptied or is full; what nobody can read need not be kept.
			_ = l.file.Truncate(0)
		}
		l.size = 0
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	return n, err
}

// renew puts a new file in the place of the descriptor, and of the standard output and
// error when they are the same file: the Go runtime's last words go there.
func (l *logFile) renew() error {
	old, err := l.file.Stat()
	if err != nil {
		return err
	}
	if err := os.Rename(l.path, l.path+guardrpc.OldLog); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, also := range []*os.File{os.Stdout, os.Stderr} {
		if info, err := also.Stat(); err == nil && os.SameFile(info, old) && also.Fd() != l.file.Fd() {
			if err := unix.Dup3(int(f.Fd()), int(also.Fd()), 0); err != nil {
				return err
			}
		}
	}
	return unix.Dup3(int(f.Fd()), int(l.file.Fd()), 0)
}
