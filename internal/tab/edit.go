package tab

import "strings"

// Format returns the line, without its end, that Parse reads as these four fields.
// An empty uuid is written as a dash, and no options as defaults.
func Format(name, source, uuid, options string) string {
	if uuid == "" {
		uuid = "-"
	}
	if options == "" {
		options = "defaults"
	}
	return strings.Join([]string{Encode(name), Encode(source), uuid, options}, "\t")
}
