package guardrpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// conn sends and receives lines with at most one descriptor each.
type conn struct {
	*net.UnixConn
	rest []byte // received after the last line
}

// send writes v as one line, with f beside it when f is not nil.
func (c *conn) send(v any, f *os.File) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if f == nil {
		_, err = c.Write(line)
		return err
	}
	// The descriptor travels with the first byte; a stream socket may take only
	// part of a long line in one call.
	rights := unix.UnixRights(int(f.Fd()))
	n, oobn, err := c.WriteMsgUnix(line, rights, nil)
	if err != nil {
		return err
	}
	if oobn != len(rights) {
		return errors.New("the descriptor was not sent")
	}
	if n < len(line) {
		_, err = c.Write(line[n:])
	}
	return err
}

// receive reads one line of at most limit bytes into v and returns the descriptor
// that came with it, or nil. More than one is a violation of the protocol.
func (c *conn) receive(v any, limit int) (f *os.File, err error) {
	var fds []int
	defer func() {
		if err != nil {
			closeAll(fds)
		}
	}()
	line := c.rest
	c.rest = nil
	buf := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4*4)) // room for a few: those too many are closed
	for {
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			c.rest = append(c.rest, line[i+1:]...)
			line = line[:i]
			break
		}
		if len(line) > limit {
			return nil, fmt.Errorf("a line of more than %d bytes", limit)
		}
		n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
		got, parseErr := descriptors(oob[:oobn])
		fds = append(fds, got...)
		switch {
		case err != nil:
			return nil, err
		case parseErr != nil:
			return nil, parseErr
		case flags&unix.MSG_CTRUNC != 0 || len(fds) > 1:
			return nil, errors.New("more than one descriptor")
		case n == 0:
			return nil, io.EOF
		}
		line = append(line, buf[:n]...)
	}
	if err := json.Unmarshal(line, v); err != nil {
		return nil, fmt.Errorf("not a message: %w", err)
	}
	if len(fds) == 1 {
		name, err := os.Readlink(inode.Link(fds[0]))
		if err != nil {
			name = "descriptor from the guard's socket"
		}
		f = os.NewFile(uintptr(fds[0]), name)
	}
	return f, nil
}

// descriptors takes the descriptors out of control messages. Go receives them
// with close-on-exec set (MSG_CMSG_CLOEXEC).
func descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var fds []int
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, fmt.Errorf("control message: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
