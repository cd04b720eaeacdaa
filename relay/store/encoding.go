package store

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay/sessions"
)

// noteEncoding notes the database's encoding. We talk UTF-8 with every server, which converts, but
// for one without an encoding (sessions.AnyBytes).
func (s *Store) noteEncoding(conn *pgx.Conn) {
	encoding := sessions.Encoding(conn.PgConn())
	s.ascii.Store(encoding != "" && encoding != "UTF8" && encoding != sessions.AnyBytes)
	s.unchecked.Store(encoding == sessions.AnyBytes)
}

// storable changes a text of our own to one that a text column of this database takes: of limited
// length, without NUL, and in UTF-8. Where the database has another encoding it is ASCII: LATIN1
// has no ellipsis. Texts that come from rows are not changed: the database has them already.
func (s *Store) storable(text string) string {
	text = validText(text)
	if s.ascii.Load() {
		text = escaped(text)
	}
	return text
}

// allStorable is storable for each of the texts.
func (s *Store) allStorable(texts []string) []string {
	if s.ascii.Load() {
		for i := range texts {
			texts[i] = escaped(texts[i])
		}
	}
	return texts
}

// escaped writes what is not ASCII as \uXXXX.
func escaped(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return r >= utf8.RuneSelf }) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if r < utf8.RuneSelf {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
