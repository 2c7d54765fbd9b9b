package vm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"
)

// lastWord is how long a guest that has fallen silent may take to say why.
const lastWord = 20 * time.Second

// A pulse notes when something was last written through it.
type pulse struct{ last atomic.Int64 } // nanoseconds since 1970

func (p *pulse) beat() { p.last.Store(time.Now().UnixNano()) }

// through returns w with the pulse in front.
func (p *pulse) through(w io.Writer) io.Writer {
	return writerFunc(func(data []byte) (int, error) {
		p.beat()
		return w.Write(data)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }

// watch calls wake when nothing was written for so long as limit since ready was closed,
// and end when nothing comes of that. It returns after end and when ctx is done.
func (p *pulse) watch(ctx context.Context, ready <-chan struct{}, limit time.Duration, wake, end func()) {
	select {
	case <-ready:
	case <-ctx.Done():
		return
	}
	p.beat()
	for woken := false; ; {
		wait := limit
		if woken {
			wait = lastWord
		}
		last := p.last.Load()
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait - time.Since(time.Unix(0, last))):
		}
		switch {
		case p.last.Load() != last:
			woken = false
		case woken:
			end()
			return
		default:
			wake()
			p.beat() // lastWord is counted from here
			woken = true
		}
	}
}

// The management console of User Mode Linux (arch/um/drivers/mconsole.h): datagrams of
// struct mconsole_request, all numbers in the machine's order.
const (
	consoleMagic   = 0xcafebabe
	consoleVersion = 2
	consoleData    = 512
)

// wakeUML has process 1 of a User Mode Linux guest end the running command with SIGQUIT,
// upon which a program in Go prints what it is at, and the kernel write to its log which
// tasks wait for a disk. Nothing comes of it where the kernel itself hangs.
func wakeUML(dir string) error {
	conn, err := net.Dial("unixgram", filepath.Join(dir, "guest", "mconsole"))
	if err != nil {
		return fmt.Errorf("management console: %w", err)
	}
	defer conn.Close()
	for _, command := range []string{"sysrq w", "cad"} {
		request := make([]byte, 12+consoleData)
		binary.NativeEndian.PutUint32(request[0:], consoleMagic)
		binary.NativeEndian.PutUint32(request[4:], consoleVersion)
		binary.NativeEndian.PutUint32(request[8:], uint32(len(command)))
		copy(request[12:], command)
		if _, err := conn.Write(request); err != nil {
			return fmt.Errorf("management console: %w", err)
		}
	}
	return nil
}
