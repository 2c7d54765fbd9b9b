package swap

import (
	"strings"

	"golang.org/x/sys/unix"
)

// kernelLog reads what the kernel logs while a swapon(2) runs: it gives the
// reason for an EINVAL there and nowhere else. It works as well as it can; a
// nil log knows nothing.
type kernelLog struct{ fd int }

// openLog begins to listen. It returns nil when the log cannot be read.
func openLog() *kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		_ = unix.Close(fd)
		return nil
	}
	return &kernelLog{fd}
}

func (l *kernelLog) close() {
	if l != nil {
		_ = unix.Close(l.fd)
	}
}

// since returns the messages about swap that were logged since openLog, at most
// three, joined.
func (l *kernelLog) since() string {
	if l == nil {
		return ""
	}
	var out []string
	buf := make([]byte, 8192) // a read returns one record and fails when it is longer
	for len(out) < 3 {
		n, err := unix.Read(l.fd, buf)
		if err != nil || n == 0 {
			break
		}
		if text := message(string(buf[:n])); strings.Contains(strings.ToLower(text), "swap") {
			out = append(out, text)
		}
	}
	return strings.Join(out, "; ")
}

// message returns the text of one record of /dev/kmsg
// (Documentation/ABI/testing/dev-kmsg): fields, a semicolon, the text, and then
// lines of key and value.
func message(record string) string {
	_, text, _ := strings.Cut(record, ";")
	text, _, _ = strings.Cut(text, "\n")
	return text
}
