package guardrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/guard"
	"dmloop/internal/record"
)

// Handler does what clients ask for. Its methods are called from many goroutines,
// for one Session never from two at a time. An error that is no *Error is sent as KindFailed.
type Handler interface {
	// Connected is called once for each session, before its first call.
	Connected(s *Session)
	// Begin is called before each request, and end after it. ErrEnding refuses the request
	// and all that come later: it is not answered, and the connection ends with the context
	// of Serve, so that the client asks the next guard.
	Begin() (end func(), err error)
	// Prepare owns image from then on.
	Prepare(ctx context.Context, s *Session, image *os.File, deny bool) (Prepared, error)
	Add(ctx context.Context, s *Session, name string) (MappingState, error)
	Drop(ctx context.Context, name string) error
	// Grow returns nil when the record says, and so the guard knows, that the image of a
	// watched mapping is being made longer.
	Grow(ctx context.Context, name string) error
	// Open returns a descriptor of the caller's own. Of want only the path and which inode
	// it is are set; a client of an earlier version sets the path only.
	Open(ctx context.Context, want record.Image) (*os.File, error)
	// Record returns the record of a watched mapping, of which layout and table are not sent.
	Record(ctx context.Context, name string) (record.Record, error)
	Status(ctx context.Context) (Status, error)
	Check(ctx context.Context, name string) (MappingState, error)
	Metrics(ctx context.Context) (string, error)
	// Closed is called once for each session, after its last call.
	Closed(s *Session)
}

// ErrEnding says that the guard takes no further requests.
var ErrEnding = errors.New("the guard is about to end")

// Session is one client's connection.
type Session struct{ PID int }

// Listen makes the guard's socket in the state directory dir. Whoever calls it must
// hold the guard's lock: a socket file that is there is a dead guard's.
func Listen(dir string) (*net.UnixListener, error) {
	path := filepath.Join(dir, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the guard's socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("the guard's socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("the guard's socket: %w", err)
	}
	return l, nil
}

// partingTimeout is how long a client may take to receive an answer when the guard ends.
const partingTimeout = 2 * time.Second

// Serve answers clients until ctx ends, then closes l and waits for the requests
// under way, which are answered still. A client that is cut off finds no socket any
// more: that is gone before its connection.
func Serve(ctx context.Context, l *net.UnixListener, h Handler, log *slog.Logger) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	closed := make(chan struct{})
	serving, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	stop := context.AfterFunc(ctx, func() { l.Close(); cut(); close(closed) })
	defer func() {
		if stop() {
			l.Close()
		} else {
			<-closed
		}
	}()
	for {
		nc, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				nc.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("the guard's socket: %w", err)
			}
			log.Warn("a client could not connect", "error", err)
			time.Sleep(50 * time.Millisecond) // out of descriptors: do not spin
			continue
		}
		clients.Go(func() {
			defer nc.Close()
			if err := serveClient(serving, &conn{UnixConn: nc}, h); err != nil {
				log.Warn("a client was cut off", "error", err)
			}
		})
	}
}

// serveClient answers one client until it closes the connection.
func serveClient(ctx context.Context, c *conn, h Handler) error {
	pid, err := peer(c.UnixConn)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		c.SetReadDeadline(time.Unix(1, 0))
		c.SetWriteDeadline(time.Now().Add(partingTimeout))
	})()
	s := &Session{PID: pid}
	h.Connected(s)
	defer h.Closed(s)
	for {
		var r request
		f, err := c.receive(&r, requestLimit)
		if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		end, err := h.Begin()
		if err != nil {
			if f != nil {
				f.Close()
			}
			<-ctx.Done()
			return nil
		}
		a, out, err := handle(ctx, h, s, r, f)
		end()
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return nil // not refused: the next guard may do it
		}
		err = c.send(reply(a, err), out)
		if out != nil {
			out.Close()
		}
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
				return nil // the client gave up
			}
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
}

// handle runs one request. f is what came with it.
func handle(ctx context.Context, h Handler, s *Session, r request, f *os.File) (answer, *os.File, error) {
	if r.Op == opPrepare && f != nil {
		p, err := h.Prepare(ctx, s, f, !r.WatchOnly)
		return answer{Prepared: &p}, nil, err
	}
	if f != nil {
		f.Close()
	}
	var a answer
	var out *os.File
	var err error
	switch r.Op {
	case opAdd:
		var m MappingState
		m, err = h.Add(ctx, s, r.Name)
		a.Mapping = &m
	case opDrop:
		err = h.Drop(ctx, r.Name)
	case opGrow:
		err = h.Grow(ctx, r.Name)
	case opOpen:
		out, err = h.Open(ctx, record.Image{Path: r.Path, FileID: guard.FileID{Inode: r.Inode, Major: r.Major, Minor: r.Minor}})
	case opRecord:
		var m record.Record
		m, err = h.Record(ctx, r.Name)
		a.Record = &m
	case opStatus:
		var st Status
		st, err = h.Status(ctx)
		a.Status = &st
	case opCheck:
		var m MappingState
		m, err = h.Check(ctx, r.Name)
		a.Mapping = &m
	case opMetrics:
		a.Metrics, err = h.Metrics(ctx)
	case opPrepare:
		err = Errorf(KindFailed, "no descriptor of the image came with the request")
	default:
		err = Errorf(KindFailed, "unknown request %q: guard and command are of different versions, restart the guard", r.Op)
	}
	return a, out, err
}

// reply turns err, if any, into the answer.
func reply(a answer, err error) answer {
	if err == nil {
		return a
	}
	var e *Error
	if errors.As(err, &e) {
		return answer{Error: e.Message, Kind: e.Kind}
	}
	return answer{Error: err.Error(), Kind: KindFailed}
}

// peer returns the process at the other end, which must belong to root or to the
// guard's own user.
func peer(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("SO_PEERCRED: %w", credErr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("process %d of user %d may not talk to the guard", cred.Pid, cred.Uid)
	}
	return int(cred.Pid), nil
}
