package route

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// glob is a pattern over a whole text: * is any text, also none, ? is one character, all else is
// itself.
type glob struct {
	text   string
	simple bool // no sign but perhaps one * at its end
}

// The signs of a pattern among its characters.
const (
	anyText = -1 - iota
	anyCharacter
)

// parseGlob reads a pattern for texts of at most longest characters; 0 is no limit.
func parseGlob(text string, longest int) (glob, error) {
	if text == "" {
		return glob{}, fmt.Errorf("it is empty and matches nothing: want a name, or a pattern with * and ?")
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return glob{}, fmt.Errorf("%q: want text without control characters", text)
	}
	if i := strings.IndexAny(text, `[]{}\`); i >= 0 {
		return glob{}, fmt.Errorf("%q: %q has no meaning here: want * for any text and ? for one character, several patterns as a list (for the character itself: ?)", text, text[i:i+1])
	}
	least := 0
	for _, sign := range signs(text) {
		if sign != anyText {
			least++
		}
	}
	if longest > 0 && least > longest {
		return glob{}, fmt.Errorf("a pattern for texts of at least %d characters, and the column has at most %d: it matches nothing", least, longest)
	}
	wild := strings.IndexAny(text, "*?")
	return glob{text: text, simple: wild < 0 || wild == len(text)-1 && text[wild] == '*'}, nil
}

// match reports whether the whole text is of the pattern.
func (g *glob) match(s string) bool {
	if g.simple {
		if prefix, open := strings.CutSuffix(g.text, "*"); open {
			return strings.HasPrefix(s, prefix)
		}
		return s == g.text
	}
	// Where the text does not go on as the pattern does, the last * takes one character more. An
	// earlier one never has to: what is between the two has matched as early as it can.
	p, i := 0, 0
	star, from := -1, 0
	for i < len(s) {
		switch {
		case p < len(g.text) && g.text[p] == '*':
			star, from = p, i
			p++
		case p < len(g.text) && g.text[p] == '?':
			_, size := utf8.DecodeRuneInString(s[i:])
			p, i = p+1, i+size
		case p < len(g.text) && g.text[p] == s[i]:
			p, i = p+1, i+1
		case star >= 0:
			_, size := utf8.DecodeRuneInString(s[from:])
			from += size
			p, i = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(g.text[p:], "*") == ""
}

// signs are the pattern's characters and signs. Of neighbouring signs the * comes last and once, so
// patterns that match the same look the same.
func signs(text string) (all []rune) {
	open := false
	for _, r := range text {
		switch r {
		case '*':
			open = true
		case '?':
			all = append(all, anyCharacter)
		default:
			if open {
				all, open = append(all, anyText), false
			}
			all = append(all, r)
		}
	}
	if open {
		all = append(all, anyText)
	}
	return all
}

// covers reports whether every text of q is one of g. It may be wrong in one way only: not to see
// it.
func (g *glob) covers(q *glob) bool {
	// q's signs are matched as if they were characters, which only signs of g that mean as much can
	// take.
	wide, narrow := signs(g.text), signs(q.text)
	p, i, star, from := 0, 0, -1, 0
	for i < len(narrow) {
		switch {
		case p < len(wide) && wide[p] == anyText:
			star, from = p, i
			p++
		case p < len(wide) && narrow[i] != anyText && (wide[p] == anyCharacter || wide[p] == narrow[i]):
			p, i = p+1, i+1
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	return p == len(wide) || p == len(wide)-1 && wide[p] == anyText
}

// globs are patterns of which one has to match; none of them stands for any text.
type globs []glob

func (gs globs) match(s string) bool {
	if len(gs) == 0 {
		return true
	}
	for i := range gs {
		if gs[i].match(s) {
			return true
		}
	}
	return false
}

// covers reports whether one of the patterns covers q.
func (gs globs) covers(q *glob) bool {
	if len(gs) == 0 {
		return true
	}
	for i := range gs {
		if gs[i].covers(q) {
			return true
		}
	}
	return false
}

// each are the patterns, a * where there are none.
func (gs globs) each() globs {
	if len(gs) == 0 {
		return globs{{text: "*", simple: true}}
	}
	return gs
}

// texts are the patterns as they were written.
func (gs globs) texts() (all []string) {
	for i := range gs {
		all = append(all, gs[i].text)
	}
	return all
}
