package partcorpus

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The table in docs/testing.md is the corpus.
func TestTableInDocs(t *testing.T) {
	var table strings.Builder
	for _, c := range Cases() {
		shown := "the same"
		switch {
		case c.Refuse != "":
			shown = "refused: " + c.Refuse
		case c.Fewer == "-":
			shown = "nothing"
		case c.Fewer != "":
			shown = brief(c.Fewer)
		}
		fmt.Fprintf(&table, "| %s | %d | %s | %s |\n", c.Name, c.Block, brief(c.Kernel), shown)
	}
	doc, err := os.ReadFile("../../../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), table.String()) {
		t.Errorf("docs/testing.md wants this table:\n%s", table.String())
	}
}

func brief(partitions string) string {
	all := strings.Fields(partitions)
	switch {
	case partitions == "?":
		return "1:4096+18446744073709551521 2:2048+8" // a length below 0
	case len(all) == 0:
		return "nothing"
	case len(all) > 6:
		return fmt.Sprintf("%s %s … %s, %d in all", all[0], all[1], all[len(all)-1], len(all))
	}
	return partitions
}
