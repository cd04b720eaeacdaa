// Package columns knows which columns saga_outbox has and of which types they may be. The start,
// doctor, the stream and the sweep all ask it, so a type that one of them accepts means the same to
// the others.
package columns

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// Names are the columns that an event is made of, in the order in which a publication lists them.
var Names = []string{
	"event_id", "saga_id", "aggregate_type", "aggregate_id", "event_type",
	"payload", "headers", "status", "created_at",
}

// Column is a column as the catalog describes it (SQL).
type Column struct {
	Name string
	// OID is the type's own, also for a domain.
	OID uint32
	// Type is the type as people write it, such as character varying(255).
	Type string
	// Send is the name of the type's binary output function. A domain has that of the type it is
	// made of, an enum has enum_send. So it shows what a type is, whatever it is called.
	Send string
	// Length is the most characters that the type holds; 0 without a limit.
	Length int
	// Collation is the column's, qualified, when it is one that somebody has made; else empty.
	Collation string
}

// SQL reads the columns of a table, given by its OID, in the order of Column's fields.
func SQL(table uint32) string {
	return fmt.Sprintf(`SELECT a.attname::text, a.atttypid::int8, pg_catalog.format_type(a.atttypid, a.atttypmod), p.proname::text,
			CASE WHEN p.proname IN ('varcharsend', 'bpcharsend') THEN greatest(0, greatest(a.atttypmod, t.typtypmod) - 4) ELSE 0 END,
			coalesce((SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname) FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
				WHERE c.oid = a.attcollation AND c.oid >= %d), '')
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid LEFT JOIN pg_catalog.pg_proc p ON p.oid = t.typsend
		WHERE a.attrelid = %d AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, firstMade, table)
}

// The kinds of types, by their send functions. What the type's output function writes is what is
// delivered.
var (
	texts      = []string{"varcharsend", "textsend"}
	names      = []string{"varcharsend", "textsend", "bpcharsend", "citextsend", "enum_send", "uuid_send", "int8send", "int4send", "int2send"}
	documents  = []string{"jsonb_send", "json_send", "textsend", "varcharsend"}
	payloads   = append(slices.Clone(documents), byteaSend)
	timestamps = []string{"timestamptz_send", "timestamp_send"} // one without time zone is in UTC
	numbers    = []string{"int4send", "int8send", "int2send"}
)

// byteaSend is bytea's send function. A domain over bytea has it, too, and is not accepted: where
// its values come as text, they could not be told from a text.
const byteaSend = "byteasend"

// rule is what a column may be.
type rule struct {
	column   string
	sends    []string
	accepted string // the same for people
	standard string // the type that the library gives it
	length   int    // the least length that a limited text needs
}

const (
	acceptedNames = "varchar, text, char(n), citext, an enum, uuid, bigint, integer or smallint"
	acceptedTexts = "varchar or text"
	acceptedJSON  = "jsonb, json, or a text or varchar with JSON"
	acceptedAny   = "jsonb, json, text, varchar or bytea"
	acceptedTimes = "timestamptz or timestamp"
)

// rules are all columns that are read or written.
var rules = []rule{
	{"event_id", []string{"uuid_send"}, "uuid", "uuid", 0},
	{"saga_id", names, acceptedNames, "varchar(255)", 0},
	{"aggregate_type", names, acceptedNames, "varchar(255)", 0},
	{"aggregate_id", names, acceptedNames, "varchar(255)", 0},
	{"event_type", names, acceptedNames, "varchar(255)", 0},
	{"payload", payloads, acceptedAny, "jsonb", 0},
	{"headers", documents, acceptedJSON, "jsonb", 0},
	{"status", texts, acceptedTexts + " of at least 11 characters", "varchar(50)", 11},
	{"created_at", timestamps, acceptedTimes, "timestamptz", 0},
	{"claimed_at", timestamps, acceptedTimes, "timestamptz", 0},
	{"sent_at", timestamps, acceptedTimes, "timestamptz", 0},
	{"retry_count", numbers, "integer, bigint or smallint", "integer", 0},
	{"last_error", texts, "text", "text", 2100},
	{"worker_id", texts, acceptedTexts, "varchar(255)", 0},
}

// Problem is a column whose type is not accepted.
type Problem struct {
	Column, Type string
	Accepted     string
	Fix          string // the statement
}

func (p *Problem) String() string {
	return fmt.Sprintf("column %s has type %s; accepted: %s", p.Column, p.Type, p.Accepted)
}

// Check returns the columns of a table whose types are not accepted. Columns that are missing are
// reported elsewhere. table is the table's name, qualified and quoted.
func Check(table string, all []Column) []Problem {
	var problems []Problem
	for _, c := range all {
		i := slices.IndexFunc(rules, func(r rule) bool { return r.column == c.Name })
		if i < 0 {
			continue
		}
		r := rules[i]
		domain := c.Send == byteaSend && c.OID != OIDBytea
		if slices.Contains(r.sends, c.Send) && !domain && (c.Length == 0 || c.Length >= r.length) {
			continue
		}
		fix := fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s TYPE %s USING %s::text::%s;", table, c.Name, r.standard, c.Name, r.standard)
		if domain && slices.Contains(r.sends, byteaSend) {
			fix = fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s TYPE bytea;", table, c.Name)
		}
		problems = append(problems, Problem{Column: c.Name, Type: c.Type, Accepted: r.accepted, Fix: fix})
	}
	return problems
}

// SetupError is Check as one error; nil when all types are accepted.
func SetupError(table string, all []Column) error {
	problems := Check(table, all)
	if problems == nil {
		return nil
	}
	var texts, fixes []string
	for i := range problems {
		texts, fixes = append(texts, problems[i].String()), append(fixes, problems[i].Fix)
	}
	return &relay.SetupError{Problem: fmt.Sprintf("table %s: %s", table, strings.Join(texts, "; ")), Fix: "as the table's owner (it rewrites the table, and locks it meanwhile): " + strings.Join(fixes, " "), SQL: fixes}
}

// OIDs of the types that need no look into the catalog (PostgreSQL's pg_type.dat).
const (
	OIDBytea       = 17
	OIDText        = 25
	OIDJSON        = 114
	OIDBPChar      = 1042
	OIDVarchar     = 1043
	OIDTimestamp   = 1114
	OIDTimestampTZ = 1184
	OIDUUID        = 2950
	OIDJSONB       = 3802

	oidInt8 = 20
	oidInt2 = 21
	oidInt4 = 23

	// What somebody has made in the database has OIDs from this on (FirstNormalObjectId).
	firstMade = 16384
)

// ReadsBinary reports whether the binary form of a type in this column is one that the decoder
// reads: the text itself, but for event_id, created_at and jsonb. The library's own types are among
// these. Columns of any other type make the stream be asked for text.
func ReadsBinary(column string, oid uint32) bool {
	switch column {
	case "event_id":
		return oid == OIDUUID
	case "created_at":
		return oid == OIDTimestampTZ || oid == OIDTimestamp
	case "payload", "headers":
		return oid == OIDJSONB || oid == OIDJSON || oid == OIDText || oid == OIDVarchar || oid == OIDBytea && column == "payload"
	default:
		return oid == OIDVarchar || oid == OIDText || oid == OIDBPChar
	}
}

// IsJSON reports whether PostgreSQL makes sure that a value of this type is a JSON document without
// a name that occurs twice.
func IsJSON(oid uint32) bool { return oid == OIDJSONB }
