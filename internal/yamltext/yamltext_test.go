package yamltext

import (
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		"# nothing\n":               "",
		"a: 1":                      "",
		"---\na: 1\n":               "",
		"a: 1\n---\n":               "",
		"a: 1\n...\n":               "",
		"a: 1\n---\nhush: 2\n":      "a second document",
		"a: 1\n---\nhush: [\n":      "a second document",
		"---\n---\nhush: 2\n":       "a second document",
		"hush: 1\nb: 2\nhush: 3\n":  "line 3: a name is there twice",
		"a: 1\nhush: [\n":           "no YAML",
		"- hush\n":                  "line 1: no YAML of the form that is wanted",
		"a: 1\n---\nhush: 2\n---\n": "a second document",
	} {
		var into map[string]any
		err := Read(text, &into)
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush")):
			t.Errorf("%q: %v, want %s and nothing of the text", text, err, want)
		}
	}
}
