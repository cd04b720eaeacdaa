package relay

import (
	"fmt"
	"hash/fnv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Texts of rows are of any length and may hold anything. What is kept of them beyond the event
// itself, or leaves the process besides it, passes through here: label values, names in memory, log
// lines, attributes of spans, the status page.
const (
	labelBytes = 128 // of a label value: each series repeats it
	// ShortBytes is how much of a text log lines and spans have.
	ShortBytes = 256
)

// Label makes a text the value of a metric's label. It is a copy, because a part of a row's text
// keeps all of it in memory.
func Label(text string) string { return short(text, labelBytes) }

// Short is a copy of a text, fit for a log line or an attribute: of bounded length, valid UTF-8,
// without control characters. One that is too long ends with a hash of all of it, so that two long
// texts stay two.
func Short(text string) string { return short(text, ShortBytes) }

func short(text string, most int) string {
	if isPlain(text) && len(text) <= most {
		return strings.Clone(text)
	}
	cut := text
	if len(text) > most {
		h := fnv.New64a()
		_, _ = h.Write([]byte(text)) // a hash takes everything
		suffix := fmt.Sprintf("~%016x", h.Sum64())
		cut = text[:most-len(suffix)]
		// Not through a character.
		for n := 1; n < utf8.UTFMax && !utf8.RuneStart(text[len(cut)]); n++ {
			cut = cut[:len(cut)-1]
		}
		return printable(cut) + suffix
	}
	return printable(cut)
}

// isPlain reports whether all of a text is printable ASCII.
func isPlain(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

// printable replaces what is not UTF-8, and control characters.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}
