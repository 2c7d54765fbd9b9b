//go:build man

package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra/doc"
)

// main writes the manual pages of all commands into a folder: make man. Their
// date is fixed, so that the same source gives the same pages.
func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run -tags man ./cmd/dmloop FOLDER")
		os.Exit(2)
	}
	if err := generate(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func generate(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	root := newRootCommand(&cliEnv{stdout: io.Discard, stderr: io.Discard})
	root.DisableAutoGenTag = true
	date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
	header := &doc.GenManHeader{Section: "8", Source: "dmloop " + version, Manual: "System Administration", Date: &date}
	return doc.GenManTree(root, header, folder)
}
