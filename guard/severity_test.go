package guard

import (
	"encoding/json"
	"testing"
)

func TestSeverityJSON(t *testing.T) {
	for s, want := range map[Severity]string{Note: `"note"`, Weak: `"weak"`, Different: `"different"`} {
		text, err := json.Marshal(s)
		if err != nil || string(text) != want {
			t.Errorf("%s, %v, want %s", text, err, want)
		}
		var back Severity
		if err := json.Unmarshal(text, &back); err != nil || back != s {
			t.Errorf("%s read as %v, %v", text, back, err)
		}
	}
	var s Severity
	if err := json.Unmarshal([]byte(`"worse"`), &s); err == nil {
		t.Error("an unknown severity was read")
	}
}
