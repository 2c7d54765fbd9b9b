// Package sums says which source the gate's objects were compiled from.
package sums

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// File is where the sums are written down, in the gate's folder.
const File = "gate.sum"

// Of what: the source, the flags that it is compiled with, and the objects.
var files = []string{"gate.c", "kernel.h", "generate.go", "gate_bpfel.o", "gate_bpfeb.o"}

// Sum returns a line for each file of the gate's folder that decides what is loaded into the
// kernel: its SHA-256 and its name.
func Sum(folder string) (string, error) {
	var lines strings.Builder
	for _, name := range files {
		content, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&lines, "%x  %s\n", sha256.Sum256(content), name)
	}
	return lines.String(), nil
}
