package relay

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

// Whatever a text is, what is kept of it is valid and short, and differs for two long texts.
func TestShort(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "",
		"OrderCreated":           "OrderCreated",
		"Café.ouvert":            "Café.ouvert",
		"Caf\xe9.ouvert":         "Caf\uFFFD.ouvert",
		"a\x00b\nc\x1b[2J\u0085": "a\uFFFDb\uFFFDc\uFFFD[2J\uFFFD",
	} {
		if got := Label(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	seen := make(map[string]bool)
	for _, filler := range []string{"x", "é", "🙂", "\xff", "\x00"} {
		for n := range 2 {
			got := Label(strings.Repeat(filler, 1<<20) + fmt.Sprint(n))
			if len(got) > 3*labelBytes || utf8.RuneCountInString(got) > labelBytes || !utf8.ValidString(got) || seen[got] {
				t.Errorf("1 MB of %q: got %q, seen before: %t", filler, got, seen[got])
			}
			seen[got] = true
		}
	}
}
