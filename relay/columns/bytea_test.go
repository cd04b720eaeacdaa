package columns

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// What PostgreSQL writes of a bytea, in both forms, is read as the bytes that it has.
func TestAppendBytea(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 5000)
	for i := range random {
		random[i] = `\x01723a`[rnd.IntN(8)]
	}
	for _, want := range [][]byte{{}, {0}, []byte(`\`), []byte(`\x`), []byte(`\\x41`), []byte("text"), all, random} {
		for name, text := range map[string]string{"hex": fmt.Sprintf(`\x%x`, want), "escape": escape(want)} {
			got, err := AppendBytea([]byte("before"), []byte(text))
			if err != nil || !bytes.Equal(got, append([]byte("before"), want...)) {
				t.Errorf("%s of %.40q: %.60q, %v", name, want, got, err)
			}
		}
	}
	for _, bad := range []string{`\x0`, `\xzz`, `\`, `\1`, `\12`, `\400`, `\189`, `a\/00`, `\a`} {
		if got, err := AppendBytea(nil, []byte(bad)); err == nil {
			t.Errorf("%q: %q, want an error", bad, got)
		}
	}
}

// escape is byteaout with bytea_output = escape.
func escape(b []byte) (text string) {
	for _, c := range b {
		switch {
		case c == '\\':
			text += `\\`
		case c < ' ' || c > '~':
			text += fmt.Sprintf(`\%03o`, c)
		default:
			text += string(rune(c))
		}
	}
	return text
}
