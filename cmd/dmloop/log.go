package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"dmloop/internal/fault"
)

// warnings prints warnings and notes as people read them, or with --json as scripts do. The
// guard and --verbose have log lines with times instead.
type warnings struct {
	out   io.Writer
	json  bool
	attrs []slog.Attr
}

var _ slog.Handler = (*warnings)(nil)

// Enabled implements slog.Handler.
func (w *warnings) Enabled(_ context.Context, level slog.Level) bool {
	return level >= fault.LevelNote
}

// WithAttrs implements slog.Handler.
func (w *warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &warnings{out: w.out, json: w.json, attrs: append(w.attrs[:len(w.attrs):len(w.attrs)], attrs...)}
}

// WithGroup implements slog.Handler. Warnings have no groups.
func (w *warnings) WithGroup(string) slog.Handler { return w }

// inWords puts a hint of a log line into words.
func inWords(_ []string, a slog.Attr) slog.Attr {
	if how, is := a.Value.Any().(fault.HowTo); is {
		a.Value = slog.StringValue(hint(how.Image, how.Remedy))
	}
	return a
}

// Handle implements slog.Handler.
func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	fields := map[string]string{}
	var list []string
	add := func(a slog.Attr) bool {
		a = inWords(nil, a)
		fields[a.Key] = a.Value.String()
		list = append(list, fmt.Sprintf("%s %s", a.Key, a.Value))
		return true
	}
	for _, a := range w.attrs {
		add(a)
	}
	r.Attrs(add)
	word := "warning"
	if r.Level < slog.LevelWarn {
		word = "note"
	}
	if w.json {
		b, err := json.Marshal(map[string]any{word: map[string]any{"message": r.Message, "details": fields}})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.out, "%s\n", b)
		return err
	}
	line := "dmloop: " + word + ": " + r.Message
	if len(list) > 0 {
		line += " (" + strings.Join(list, ", ") + ")"
	}
	_, err := fmt.Fprintln(w.out, printable(line))
	return err
}
