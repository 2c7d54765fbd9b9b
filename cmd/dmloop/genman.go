//go:build man

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
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
	withoutExitStatus(root)
	if err := doc.GenManTree(root, header, folder); err != nil {
		return err
	}
	pages, err := filepath.Glob(filepath.Join(folder, "*.8"))
	if err != nil {
		return err
	}
	for _, path := range pages {
		page, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text, links, found := strings.Cut(string(page), ".SH SEE ALSO\n")
		if !found {
			return fmt.Errorf("%s has no SEE ALSO", path)
		}
		text += exitStatusSection() + ".SH SEE ALSO\n" + strings.TrimRight(links, "\n") + ", " + related + "\n"
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// related are the pages that every page leads to.
const related = `\fBdmlooptab(5)\fP, \fBdmloop-tutorial(7)\fP, \fBlosetup(8)\fP, \fBdmsetup(8)\fP`

// withoutExitStatus takes the exit status out of the descriptions: pages have a section for it.
func withoutExitStatus(c *cobra.Command) {
	c.Long = strings.Replace(c.Long, exitStatusHelp, "", 1)
	for _, sub := range c.Commands() {
		withoutExitStatus(sub)
	}
}

// exitStatusSection is exitStatusHelp as a list.
func exitStatusSection() string {
	_, list, _ := strings.Cut(strings.Join(strings.Fields(exitStatusHelp), " "), ": ")
	section := ".SH EXIT STATUS\n"
	for _, one := range strings.Split(strings.TrimSuffix(list, "."), ", ") {
		code, meaning, _ := strings.Cut(one, " ")
		section += ".TP\n" + code + "\n" + meaning + "\n"
	}
	return section + ".PP\n"
}
