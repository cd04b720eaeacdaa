package columns

import (
	"bytes"
	"encoding/hex"
	"errors"
)

var errBytea = errors.New("the text is none of a bytea")

// AppendBytea appends the bytes of a bytea's text: \x and hexadecimal digits, as sessions of ours
// ask for. Behind a pooler somebody's bytea_output may be escape: then a backslash is two, and a byte
// that is not printable is a backslash and three octal digits. It cannot begin with \x.
func AppendBytea(b, text []byte) ([]byte, error) {
	if digits, is := bytes.CutPrefix(text, []byte(`\x`)); is {
		b, err := hex.AppendDecode(b, digits)
		if err != nil {
			return b, errBytea
		}
		return b, nil
	}
	for i := 0; i < len(text); i++ {
		rest := text[i:]
		switch {
		case rest[0] != '\\':
			b = append(b, rest[0])
		case len(rest) > 1 && rest[1] == '\\':
			b = append(b, '\\')
			i++
		case len(rest) > 3 && rest[1]-'0' < 4 && rest[2]-'0' < 8 && rest[3]-'0' < 8:
			b = append(b, (rest[1]-'0')<<6|(rest[2]-'0')<<3|(rest[3]-'0'))
			i += 3
		default:
			return b, errBytea
		}
	}
	return b, nil
}
