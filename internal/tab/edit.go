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
	return strings.Join([]string{encode(name), encode(source), uuid, options}, "\t")
}

// Append returns text with one more line at its end.
func Append(text, line string) string {
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + line + "\n"
}

// Remove returns text without the first line that is exactly this one, and whether
// there was such a line.
func Remove(text, line string) (string, bool) {
	var b strings.Builder
	found := false
	for have := range strings.Lines(text) {
		if !found && strings.TrimSuffix(have, "\n") == line {
			found = true
			continue
		}
		b.WriteString(have)
	}
	return b.String(), found
}
