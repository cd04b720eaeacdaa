package term

import (
	"strings"
	"testing"
)

func TestHang(t *testing.T) {
	text := strings.Repeat("word ", 30) + "\x1b[2Jlast"
	got := Hang(text, 10)
	lines := strings.Split(got, "\n")
	if len(lines) != 2 || len(lines[0]) != 84 || !strings.HasPrefix(lines[1], strings.Repeat(" ", 10)+"word") || !strings.HasSuffix(lines[1], `word \x1b[2Jlast`) {
		t.Errorf("got %q", got)
	}
	if got := Hang("a  b", 4); got != "a b" {
		t.Errorf("got %q, want one line", got)
	}
}

func TestWriteJSON(t *testing.T) {
	var out strings.Builder
	if err := WriteJSON(&out, map[string]string{"a": "\u202e"}); err != nil {
		t.Fatal(err)
	}
	if want := "{\n  \"a\": \"\\u202e\"\n}\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
