package guardd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// The metrics are one page for one reader at a time, over HTTP/1. net/http would
// be a third of the program and of the time that every command takes to start.
const (
	readerPatience = 10 * time.Second // for a request and its answer
	requestSize    = 8 << 10          // bytes of a request
	readersAtATime = 4
)

// A page is what is served at one path.
type page struct {
	path string
	text func(context.Context) (string, error)
	may  func(net.Conn) error // says why the other end may not have it; nil for everybody
}

// servePage answers GET of the page's path, until ctx ends. It owns l.
func servePage(ctx context.Context, l net.Listener, p page) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	turn := make(chan struct{}, readersAtATime)
	for {
		conn, err := l.Accept()
		if err != nil {
			l.Close()
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		turn <- struct{}{}
		go func() {
			defer func() { <-turn }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			// Whoever does not speak HTTP, or goes away, gets nothing.
			_ = answer(ctx, conn, p)
		}()
	}
}

// answer reads one request and answers it.
func answer(ctx context.Context, conn net.Conn, p page) error {
	if err := conn.SetDeadline(time.Now().Add(readerPatience)); err != nil {
		return err
	}
	method, target, err := readRequest(io.LimitReader(conn, requestSize))
	if err != nil {
		return reply(conn, "400 Bad Request", err.Error(), false)
	}
	switch target, _, _ = strings.Cut(target, "?"); {
	case target != p.path:
		return reply(conn, "404 Not Found", "only "+p.path+" is here", false)
	case method != "GET" && method != "HEAD":
		return reply(conn, "405 Method Not Allowed", "only GET is understood", false)
	}
	if p.may != nil {
		if err := p.may(conn); err != nil {
			return reply(conn, "403 Forbidden", err.Error()+"\n", method == "HEAD")
		}
	}
	text, err := p.text(ctx)
	if err != nil {
		return reply(conn, "500 Internal Server Error", err.Error(), method == "HEAD")
	}
	return reply(conn, "200 OK", text, method == "HEAD")
}

// readRequest reads up to the empty line that ends the header.
func readRequest(r io.Reader) (method, target string, err error) {
	lines := bufio.NewReader(r)
	first, err := lines.ReadString('\n')
	if err != nil {
		return "", "", fmt.Errorf("no request: %w", err)
	}
	words := strings.Fields(first)
	if len(words) != 3 || !strings.HasPrefix(words[2], "HTTP/1.") {
		return "", "", fmt.Errorf("no HTTP/1 request")
	}
	for line := first; strings.TrimRight(line, "\r\n") != ""; {
		if line, err = lines.ReadString('\n'); err != nil {
			return "", "", fmt.Errorf("the header has no end: %w", err)
		}
	}
	return words[0], words[1], nil
}

func reply(conn net.Conn, status, text string, headOnly bool) error {
	_, err := fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
		status, len(text))
	if err == nil && !headOnly {
		_, err = io.WriteString(conn, text)
	}
	return err
}
