package relay_test

import (
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

func TestParseTraceParent(t *testing.T) {
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for _, c := range []struct {
		text        string
		ok, sampled bool
	}{
		{"00-" + trace + "-" + span + "-01", true, true},
		{"00-" + trace + "-" + span + "-00", true, false},
		{"00-" + trace + "-" + span + "-03", true, true},
		{"00-" + trace + "-" + span + "-02", true, false},
		{"01-" + trace + "-" + span + "-01", true, true},
		{"01-" + trace + "-" + span + "-01-what comes later", true, true},
		{"00-" + trace + "-" + span + "-01-more", false, false},
		{"01-" + trace + "-" + span + "-01more", false, false},
		{"ff-" + trace + "-" + span + "-01", false, false},
		{"00-" + trace + "-" + span + "-1", false, false},
		{"00-" + trace + "-" + span + "-0g", false, false},
		{"0x-" + trace + "-" + span + "-01", false, false},
		{"00-4BF92F3577B34DA6A3CE929D0E0E4736-" + span + "-01", false, false},
		{"00-00000000000000000000000000000000-" + span + "-01", false, false},
		{"00-" + trace + "-0000000000000000-01", false, false},
		{"00_" + trace + "-" + span + "-01", false, false},
		{"00-1-2-01", false, false},
		{"", false, false},
		{"null", false, false},
	} {
		got, ok := relay.ParseTraceParent(c.text)
		if ok != c.ok || got.Sampled() != c.sampled || got.IsValid() != c.ok {
			t.Errorf("%q: %+v %v, want ok %v, sampled %v", c.text, got, ok, c.ok, c.sampled)
		}
		if ok && c.text[:2] == "00" && string(got.AppendText(nil)) != c.text {
			t.Errorf("%q is written as %q", c.text, got.AppendText(nil))
		}
	}
}

func FuzzParseTraceParent(f *testing.F) {
	f.Add("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	f.Add("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x")
	f.Fuzz(func(t *testing.T, text string) {
		c, ok := relay.ParseTraceParent(text)
		if ok != c.IsValid() {
			t.Errorf("%q: %+v, %v", text, c, ok)
		}
		if ok && string(c.AppendText(nil))[2:] != text[2:55] {
			t.Errorf("%q is written as %q", text, c.AppendText(nil))
		}
	})
}
