package route

import (
	"regexp"
	"strings"
	"testing"
)

func mustGlob(t testing.TB, text string) glob {
	t.Helper()
	g, err := parseGlob(text, 0)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGlob(t *testing.T) {
	for _, tt := range []struct{ glob, matches, not string }{
		{"Order", "Order", "Orders,order,,Orde"},
		{"Order*", "Order,OrderPlaced", "Orde,XOrder"},
		{"*Placed", "Placed,OrderPlaced,PlacedPlaced", "Place,PlacedX"},
		{"*", ",x,Größe", ""},
		{"Order?", "Orders,Orderß,Order注", "Order,Orderss"},
		{"*.v?", "a.v1,.v2,a.v1.v2", "a.v,a.v10"},
		{"a*b*c", "abc,aXbYc,abbcc", "acb,ab"},
		{"?*", "a,ab", ""},
		{"a.b", "a.b", "axb"},
		{"??", "ab,注文", "a,abc"},
	} {
		g := mustGlob(t, tt.glob)
		for _, s := range strings.Split(tt.matches, ",") {
			if !g.match(s) {
				t.Errorf("%q does not match %q", tt.glob, s)
			}
		}
		for _, s := range strings.Split(tt.not, ",") {
			if tt.not != "" && g.match(s) {
				t.Errorf("%q matches %q", tt.glob, s)
			}
		}
	}
}

func TestGlobCovers(t *testing.T) {
	for _, tt := range []struct {
		wide, narrow string
		want         bool
	}{
		{"*", "Order*", true},
		{"Order*", "*", false},
		{"Order*", "OrderPlaced", true},
		{"Order*", "Order*Placed", true},
		{"Order*", "Orde*", false},
		{"*d", "OrderPlaced", true},
		{"*d", "Order*", false},
		{"?", "*", false},
		{"?*", "*?", true},
		{"*?*", "?", true},
		{"??*", "*?", false},
		{"a?c", "abc", true},
		{"a?c", "a?c", true},
		{"abc", "a?c", false},
		{"*a*", "*ab*", true},
		{"*ab*", "*a*", false},
	} {
		wide, narrow := mustGlob(t, tt.wide), mustGlob(t, tt.narrow)
		if got := wide.covers(&narrow); got != tt.want {
			t.Errorf("%q covers %q: %t, want %t", tt.wide, tt.narrow, got, tt.want)
		}
	}
}

// naive is what a glob means, by a regular expression.
func naive(text string) *regexp.Regexp {
	return regexp.MustCompile(`(?s)\A` + strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(text)) + `\z`)
}

// A glob matches what the naive matcher does, and what covers another matches all that it does.
func FuzzGlob(f *testing.F) {
	for _, seed := range [][3]string{{"a*b", "a*", "aab"}, {"*?", "?*", "ß"}, {"a*a*a", "*", "aaaa"}, {"??", "?", "\xff\xfe"}, {"*ab*b", "*b", "abcabb"}} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, text, other, s string) {
		g, err := parseGlob(text, 0)
		if err != nil {
			return
		}
		got, want := g.match(s), naive(text).MatchString(s)
		if got != want {
			t.Errorf("%q matches %q: %t, want %t", text, s, got, want)
		}
		if o, err := parseGlob(other, 0); err == nil && o.covers(&g) && got && !o.match(s) {
			t.Errorf("%q is to cover %q, and does not match %q", other, text, s)
		}
		if !g.covers(&g) {
			t.Errorf("%q does not cover itself", text)
		}
	})
}
