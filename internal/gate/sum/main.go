// Command sum writes gate.sum, after the objects were made.
package main

import (
	"fmt"
	"os"

	"dmloop/internal/gate/sums"
)

func main() {
	lines, err := sums.Sum(".")
	if err == nil {
		err = os.WriteFile(sums.File, []byte(lines), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
