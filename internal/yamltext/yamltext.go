// Package yamltext reads what people write in YAML, with errors that repeat nothing of it: a
// password may have got there by mistake.
package yamltext

import (
	"errors"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// line finds the line at which the parser stopped.
var line = regexp.MustCompile(`line \d+: `)

// Read reads a text of one document. An empty text leaves into as it is. The parser would pass over
// a second document, and everything in it, without a word; here it is an error.
func Read(text string, into any) error {
	documents := yaml.NewDecoder(strings.NewReader(text))
	if err := documents.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		// The parser's own message quotes the line.
		what := "no YAML of the form that is wanted"
		if strings.Contains(err.Error(), "already defined") {
			what = "a name is there twice"
		}
		return errors.New(line.FindString(err.Error()) + what)
	}
	for {
		var more any
		switch err := documents.Decode(&more); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil || more != nil:
			return errors.New("a line --- in it begins a second document: want one")
		}
	}
}
