package term_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/internal/term"
)

// odd are texts as a row may have them.
var odd = []string{
	"", "order.placed", "-rf", "~root", "=ls", "a b", "it's", `say "x"`, `back\slash`, `end\`, "$(touch x)", "`touch x`", "a;b|c&d>e<f", "#", "*?[a]", "!!", "{a,b}",
	"\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\u009b31m", "line\nbreak", "tab\there", "cr\rhere", "\x00", "\x7f",
	"\u202egpj.exe", "\u2066x\u2069", "zero\u200bwidth", "\ufeffbom", "\u2028", "\U000e0041tag", "\xff\xfe", "half \xe2\x82", "Zoë", "日本語", "😀", "é'\x1b'1", "\x01" + "7",
}

func visible(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
	})
}

func TestText(t *testing.T) {
	for _, s := range odd {
		if got := term.Text(s); !visible(got) {
			t.Errorf("%q: got %q, which a terminal obeys", s, got)
		} else if visible(s) && got != s {
			t.Errorf("%q: got %q, want it as it is", s, got)
		}
		if got := term.Lines(s); !visible(strings.ReplaceAll(got, "\n", "")) {
			t.Errorf("%q: lines %q, which a terminal obeys", s, got)
		}
	}
	for s, want := range map[string]string{"a\x1bb": `a\x1bb`, "a\nb": "a b", "\u202ex": `\u202ex`, "\u009bm": `\u009bm`, "\xff": `\xff`, "\U000e0041": `\U000e0041`} {
		if got := term.Text(s); got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
	if got := term.Text(strings.Repeat("é", 1<<20)); utf8.RuneCountInString(got) != 4000 || !strings.HasSuffix(got, "…") {
		t.Errorf("a megabyte: got %d characters, want 4000 of which the last shows the cut", utf8.RuneCountInString(got))
	}
}

// A real shell reads each word as it was, and runs nothing.
func TestShell(t *testing.T) {
	for _, shell := range []string{"sh", "bash"} {
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range odd {
			word := term.Shell(s)
			if !visible(word) {
				t.Errorf("%q: got %q, which a terminal obeys", s, word)
			}
			if strings.HasPrefix(word, "$'") && shell == "sh" || strings.Contains(s, "\x00") {
				continue // dash has no $'…', and no word has a NUL
			}
			out, err := exec.Command(path, "-c", "printf %s k="+word).Output()
			if err != nil || string(out) != "k="+s {
				t.Errorf("%s reads %s as %q (%v), want %q", shell, word, out, err, "k="+s)
			}
		}
	}
}

func TestJSON(t *testing.T) {
	for _, s := range odd {
		encoded, err := json.Marshal(map[string]string{"k": s})
		if err != nil {
			t.Fatal(err)
		}
		got := term.JSON(encoded)
		if !visible(string(got)) {
			t.Errorf("%q: got %q, which a terminal obeys", s, got)
		}
		var back map[string]string
		if err := json.Unmarshal(got, &back); err != nil || utf8.ValidString(s) && back["k"] != s {
			t.Errorf("%q: %q reads %q (%v)", s, got, back["k"], err)
		}
	}
}

func TestWriter(t *testing.T) {
	var b bytes.Buffer
	if n, err := term.Writer(&b).Write([]byte("a\x1b[2J\nb\u202e\n")); n != 11 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if got, want := b.String(), "a\\x1b[2J\nb\\u202e\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
