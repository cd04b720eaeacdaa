package term

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// width is what Hang wraps to.
const width = 96

// Hang makes one text of foreign text, broken at spaces, to be printed after margin columns.
func Hang(text string, margin int) string {
	var lines []string
	line := ""
	for _, word := range slices.DeleteFunc(strings.Split(Text(text), " "), func(w string) bool { return w == "" }) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width-margin {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return strings.Join(append(lines, line), "\n"+strings.Repeat(" ", margin))
}

// WriteJSON writes a value for people and programs.
func WriteJSON(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(JSON(text), '\n'))
	return err
}
