package guardrpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os/exec"
	"testing"
	"time"
)

// ended runs a server and returns what ends it, and what tells that it has ended.
func ended(t *testing.T, h *fakeHandler) (dir string, end context.CancelFunc, done <-chan error) {
	t.Helper()
	dir = t.TempDir()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, h, slog.New(slog.NewTextHandler(io.Discard, nil))) }()
	return dir, cancel, served
}

// A request that is under way when the guard ends is answered.
func TestEndAnswersWhatIsUnderWay(t *testing.T) {
	h := &fakeHandler{began: make(chan struct{})}
	dir, end, done := ended(t, h)
	c, idle := dial(t, dir), dial(t, dir)
	answered := make(chan error, 1)
	go func() {
		text, err := c.Metrics(context.Background())
		if err == nil && text == "" {
			err = errors.New("an empty answer")
		}
		answered <- err
	}()
	<-h.began
	end()
	// The deadlines of connections are set once the socket is gone: the other client sees it.
	if _, err := idle.c.Read(make([]byte, 1)); err == nil {
		t.Error("a client without a request is not cut off")
	}
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNoGuard) {
		t.Errorf("a client was cut off, and the socket is there: %v", err)
	}
	h.began <- struct{}{}
	if err := <-answered; err != nil {
		t.Errorf("the request under way: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A request that comes too late is not answered, and when its client is cut off the socket
// is gone: the same guard is not asked again.
func TestEndRefusesWhatComesLater(t *testing.T) {
	h := &fakeHandler{ending: make(chan struct{})}
	dir, end, done := ended(t, h)
	c := dial(t, dir)
	cut := make(chan error, 1)
	go func() { cut <- c.Drop(context.Background(), "vol") }()
	<-h.ending
	end()
	var refused *Error
	if err := <-cut; err == nil || errors.As(err, &refused) {
		t.Errorf("the request was answered: %v", err)
	}
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNoGuard) {
		t.Errorf("the socket is there still: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A guard that was started while another one had the lock, which then ended: another one
// is started.
func TestStartedAgainAfterOneThatEnded(t *testing.T) {
	dir := t.TempDir()
	started := 0
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := await(ctx, dir, func() (<-chan error, error) {
		exited := make(chan error, 1)
		if started++; started == 1 {
			exited <- exec.Command("sh", "-c", "exit 5").Run()
			return exited, nil
		}
		l, err := Listen(dir)
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return exited, err
	})
	if err != nil || started != 2 {
		t.Fatalf("after %d starts: %v", started, err)
	}
	c.Close()
}
