package sessions

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"
)

// tables maps a table of ours, by its bare name, to its name with schema, quoted.
type tables map[string]string

func (t tables) add(name, schema string) {
	if _, is := t[name]; !is {
		t[name] = pgx.Identifier{schema}.Sanitize()
	}
}

// qualify gives each of the tables that a statement names its schema. A name in a string counts
// where it is made a table's by a cast to regclass or by one of the functions that take one. What
// has a schema, is quoted, or is a name given here (AS) or only repeated (FOR UPDATE OF), stays as
// it is.
func (t tables) qualify(sql string) string {
	var out strings.Builder
	done := 0
	qualify := func(at int, schema string) {
		out.WriteString(sql[done:at])
		out.WriteString(schema)
		out.WriteByte('.')
		done = at
	}
	for at := 0; at < len(sql); {
		end := at
		switch {
		case sql[at] == '\'': // a string, up to its last quote
			if end = at + 1 + strings.IndexByte(sql[at+1:], '\''); end <= at {
				end = len(sql) - 1
			}
			schema, is := t[sql[min(at+1, end):end]]
			if before, after := sql[:at], sql[end:]; is && (strings.HasPrefix(after, "'::regclass") || takesTable(before)) {
				qualify(at+1, strings.ReplaceAll(schema, "'", "''"))
			}
			end++
		case letter(sql[at]):
			for end < len(sql) && letter(sql[end]) {
				end++
			}
			if schema, is := t[sql[at:end]]; is && wantsSchema(sql[:at]) {
				qualify(at, schema)
			}
		default:
			end++
		}
		at = end
	}
	out.WriteString(sql[done:])
	return out.String()
}

func letter(c byte) bool {
	return c == '_' || c == '$' || c >= 0x80 || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// takesTable reports whether what comes next is the first argument of a function that takes a
// table.
func takesTable(before string) bool {
	return strings.HasSuffix(before, "regclass(") || strings.HasSuffix(before, "_size(") || strings.HasSuffix(before, "_privilege(")
}

// wantsSchema reports whether a bare table name that comes next wants its schema.
func wantsSchema(before string) bool {
	if strings.HasSuffix(before, ".") || strings.HasSuffix(before, `"`) {
		return false
	}
	word := before[max(0, len(before)-4):]
	return !strings.EqualFold(word, " AS ") && !strings.EqualFold(word, " OF ")
}

// qualifier forwards what goes to the server, and gives the tables in its statements their schemas.
// That costs nothing where no statement is sent: a prepared one is sent once. Every Write is of
// whole messages, as pgproto3 makes them.
type qualifier struct {
	to     io.Writer
	tables tables // nil until they are known
}

func (q *qualifier) Write(p []byte) (int, error) {
	if len(q.tables) == 0 {
		return q.to.Write(p)
	}
	if _, err := q.to.Write(q.rewrite(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// rewrite returns p itself when nothing in it changes.
func (q *qualifier) rewrite(p []byte) []byte {
	var out []byte
	done := 0
	for at := 0; at+5 <= len(p); {
		kind, size := p[at], int(binary.BigEndian.Uint32(p[at+1:]))
		end := at + 1 + size
		if size < 4 || end > len(p) {
			break
		}
		if body := p[at+5 : end]; kind == 'Q' || kind == 'P' {
			if changed := q.statement(kind, body); changed != nil {
				out = append(out, p[done:at+1]...)
				out = binary.BigEndian.AppendUint32(out, uint32(4+len(changed)))
				out = append(out, changed...)
				done = end
			}
		}
		at = end
	}
	if done == 0 {
		return p
	}
	return append(out, p[done:]...)
}

// statement returns the body of a Query or Parse message with the tables qualified, or nil if it
// names none.
func (q *qualifier) statement(kind byte, body []byte) []byte {
	name := 0 // Parse: the statement's name comes first
	if kind == 'P' {
		name = 1 + bytes.IndexByte(body, 0)
	}
	end := bytes.IndexByte(body[name:], 0)
	if end < 0 {
		return nil
	}
	sql := string(body[name : name+end])
	qualified := q.tables.qualify(sql)
	if qualified == sql {
		return nil
	}
	changed := append(append(body[:name:name], qualified...), body[name+end:]...)
	return changed
}
