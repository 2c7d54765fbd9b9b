package guardd

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// serve starts a page on a loopback port and returns its address.
func serve(t *testing.T, may func(net.Conn) error, text func(context.Context) (string, error)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- servePage(ctx, l, page{path: "/metrics", text: text, may: may}) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("the server does not end")
		}
	})
	return l.Addr().String()
}

func TestPageOverHTTP(t *testing.T) {
	fails := false
	address := serve(t, nil, func(context.Context) (string, error) {
		if fails {
			return "", errors.New("out of order")
		}
		return "a 1\nb 2\n", nil
	})
	ask := func(method, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text)
	}
	for range 2 * readersAtATime {
		if code, text := ask("GET", "/metrics"); code != 200 || text != "a 1\nb 2\n" {
			t.Fatalf("%d %q", code, text)
		}
	}
	if code, text := ask("HEAD", "/metrics?x=1"); code != 200 || text != "" {
		t.Errorf("HEAD: %d %q", code, text)
	}
	if code, _ := ask("POST", "/metrics"); code != 405 {
		t.Errorf("POST: %d", code)
	}
	if code, _ := ask("GET", "/"); code != 404 {
		t.Errorf("another path: %d", code)
	}
	fails = true
	if code, text := ask("GET", "/metrics"); code != 500 || !strings.Contains(text, "out of order") {
		t.Errorf("a page that fails: %d %q", code, text)
	}
}

func TestPageThatNotEverybodyMayHave(t *testing.T) {
	address := serve(t, func(net.Conn) error { return errNotRoot }, func(context.Context) (string, error) { return "secret", nil })
	res, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 403 || !strings.Contains(string(text), "--metrics-public") || strings.Contains(string(text), "secret") {
		t.Errorf("%d %q, %v", res.StatusCode, text, err)
	}
}

func TestPageOddRequests(t *testing.T) {
	address := serve(t, nil, func(context.Context) (string, error) { return "x", nil })
	for name, request := range map[string]string{
		"no HTTP":        "hello\r\n\r\n",
		"HTTP/2":         "PRI * HTTP/2.0\r\n\r\n",
		"endless header": "GET /metrics HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", requestSize),
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		// The server may close before it has read everything.
		_, _ = io.WriteString(conn, request)
		text, _ := io.ReadAll(conn)
		conn.Close()
		if len(text) > 0 && !strings.HasPrefix(string(text), "HTTP/1.1 400 ") {
			t.Errorf("%s: %q", name, text)
		}
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.0\n\n"); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(conn); err != nil || !strings.HasSuffix(string(text), "\r\n\r\nx") {
		t.Errorf("%q, %v", text, err)
	}
}
