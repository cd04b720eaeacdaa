// Package term renders text that others wrote (rows, brokers, servers, roles) where a person or a
// shell reads it: on a terminal, in a command to paste, in a statement to paste, in a line of JSON.
//
// A row can have any character. One that a terminal obeys (ESC, C1) can rewrite what is shown, one
// that changes the direction of text (bidi) shows another command than the one that is pasted, and
// a line break forges a line. So foreign text is printed only through one of these functions.
package term

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// textLimit bounds what Text returns, in characters. Longer foreign text is of no use.
const textLimit = 4000

// Text makes one line of foreign text: line breaks and tabs are spaces. Whatever else is invisible
// or is obeyed by a terminal is shown as an escape such as \x1b or \u202e.
func Text(s string) string { return Cut(clean(s, false), textLimit) }

// Lines is Text for text of several lines, which are kept.
func Lines(s string) string { return clean(s, true) }

// Cut shortens s to at most n characters; the last one shows that something is missing.
func Cut(s string, n int) string {
	if len(s) <= n || utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

func clean(s string, lines bool) string {
	if !strings.ContainsFunc(s, unsafe) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\n' && lines:
			b.WriteByte('\n')
		case r == '\n' || r == '\r' || r == '\t':
			b.WriteByte(' ')
		case r == utf8.RuneError && n == 1, r < utf8.RuneSelf && unsafe(r):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unsafe(r):
			b.WriteString(escape(r))
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// unsafe reports whether a terminal obeys the character or does not show it: control characters
// (C0, DEL, C1), those that format (bidi controls, zero width, tags), and separators of lines.
func unsafe(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == 0x7f
	}
	return r < 0xa0 || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co)
}

func escape(r rune) string {
	if r > 0xffff {
		return fmt.Sprintf(`\U%08x`, r)
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// plainWord are the characters without a meaning for any shell.
func plainWord(r rune) bool {
	return r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("_-./:,@%+", r))
}

// Shell renders one word of a command line to paste into sh, bash or zsh. Invisible characters make
// it $'…', which sh may not know; then it is a wrong word, but a harmless one.
func Shell(word string) string {
	switch {
	case word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plainWord(r) }):
		return word
	case !strings.ContainsFunc(word, unsafe) && utf8.ValidString(word):
		return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for i := 0; i < len(word); {
		r, n := utf8.DecodeRuneInString(word[i:])
		switch {
		case r == '\'' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == utf8.RuneError && n == 1 || unsafe(r):
			for _, c := range []byte(word[i : i+n]) {
				// three digits always, so that what follows is not taken for one
				fmt.Fprintf(&b, `\%03o`, c)
			}
		default:
			b.WriteRune(r)
		}
		i += n
	}
	b.WriteByte('\'')
	return b.String()
}

// Ident renders an SQL identifier for a statement to paste.
func Ident(name string) string {
	quoted := `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
	if !strings.ContainsFunc(name, unsafe) {
		return quoted
	}
	return `U&` + unicodeEscapes(quoted)
}

// Literal renders an SQL string for a statement to paste, whatever standard_conforming_strings
// says.
func Literal(text string) string {
	quoted := `'` + strings.ReplaceAll(text, `'`, `''`) + `'`
	if strings.ContainsFunc(text, unsafe) {
		return `U&` + unicodeEscapes(quoted)
	}
	if strings.Contains(text, `\`) {
		return `E` + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

// unicodeEscapes are those of U&"…" and U&'…'.
func unicodeEscapes(quoted string) string {
	var b strings.Builder
	for _, r := range quoted {
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case unsafe(r):
			fmt.Fprintf(&b, `\+%06x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// JSON escapes in encoded JSON what a terminal would obey and encoding/json leaves as it is: DEL,
// C1, bidi controls. They occur only in strings, so \u is right wherever they are.
func JSON(encoded []byte) []byte {
	special := func(r rune) bool { return r >= 0x7f && unsafe(r) }
	if !bytes.ContainsFunc(encoded, special) {
		return encoded
	}
	var b bytes.Buffer
	for _, r := range string(encoded) {
		switch {
		case !special(r):
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			b.WriteString(escape(r))
		}
	}
	return b.Bytes()
}

// Writer is a terminal on which nothing but text and line breaks is obeyed. It is a second
// protection, for what was printed without Text. Each Write is whole characters, as those of fmt
// and encoding/json are.
func Writer(w io.Writer) io.Writer { return &writer{w} }

type writer struct{ w io.Writer }

func (t *writer) Write(p []byte) (int, error) {
	if _, err := io.WriteString(t.w, Lines(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// OrDash shows that there is nothing to show.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Size is a number of bytes as people read it; "-" where it is not known.
func Size(bytes *int64) string {
	if bytes == nil {
		return "-"
	}
	switch b := *bytes; {
	case b < 10<<10:
		return fmt.Sprintf("%d B", b)
	case b < 10<<20:
		return fmt.Sprintf("%d kB", b>>10)
	default:
		return fmt.Sprintf("%d MB", b>>20)
	}
}
