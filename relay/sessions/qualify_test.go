package sessions

import (
	"bytes"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Each bare name of a table gets its schema, and nothing else changes.
func TestQualify(t *testing.T) {
	known := make(tables)
	known.add("saga_outbox", "app")
	known.add("saga_outbox", "later")
	known.add("saga_outbox_relay", `o'd "d`)
	for sql, want := range map[string]string{
		`SELECT 1`:                                                                      `SELECT 1`,
		`UPDATE saga_outbox o SET x = 1`:                                                `UPDATE "app".saga_outbox o SET x = 1`,
		`SELECT saga_outbox.x FROM saga_outbox`:                                         `SELECT "app".saga_outbox.x FROM "app".saga_outbox`,
		`INSERT INTO saga_outbox_relay AS s (slot)`:                                     `INSERT INTO "o'd ""d".saga_outbox_relay AS s (slot)`,
		`SELECT 'saga_outbox'::regclass, to_regclass('saga_outbox')`:                    `SELECT '"app".saga_outbox'::regclass, to_regclass('"app".saga_outbox')`,
		`SELECT to_regclass('saga_outbox_relay')`:                                       `SELECT to_regclass('"o''d ""d".saga_outbox_relay')`,
		`WHERE relname = 'saga_outbox'`:                                                 `WHERE relname = 'saga_outbox'`,
		`SELECT 'the saga_outbox, it is'`:                                               `SELECT 'the saga_outbox, it is'`,
		`FROM public.saga_outbox JOIN "saga_outbox" ON true`:                            `FROM public.saga_outbox JOIN "saga_outbox" ON true`,
		`CREATE INDEX saga_outbox_status ON saga_outbox (status)`:                       `CREATE INDEX saga_outbox_status ON "app".saga_outbox (status)`,
		`FROM x AS saga_outbox FOR UPDATE OF saga_outbox`:                               `FROM x AS saga_outbox FOR UPDATE OF saga_outbox`,
		`SELECT 'it''s saga_outbox', 'saga_outbox, '' of saga_outbox' FROM saga_outbox`: `SELECT 'it''s saga_outbox', 'saga_outbox, '' of saga_outbox' FROM "app".saga_outbox`,
		`SELECT 'saga_outbox`:                                                           `SELECT 'saga_outbox`,
		`SELECT '`:                                                                      `SELECT '`,
		`saga_outbox`:                                                                   `"app".saga_outbox`,
		`SELECT my_saga_outbox, saga_outboxes, saga_outbox$, ésaga_outbox`:              `SELECT my_saga_outbox, saga_outboxes, saga_outbox$, ésaga_outbox`,
	} {
		if got := known.qualify(sql); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", sql, got, want)
		}
	}
}

// Statements are changed on their way, whatever is around them, and nothing else is.
func TestQualifierOnTheWire(t *testing.T) {
	known := make(tables)
	known.add("saga_outbox", "app")
	send := func(qualified bool, table string) []byte {
		var out bytes.Buffer
		q := &qualifier{to: &out}
		if qualified {
			q.tables = known
		}
		f := pgproto3.NewFrontend(nil, q)
		f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "saga_outbox"}})
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		f.Send(&pgproto3.Parse{Name: "saga_outbox", Query: "SELECT $1 FROM " + table, ParameterOIDs: []uint32{25}})
		f.Send(&pgproto3.Bind{PreparedStatement: "saga_outbox", Parameters: [][]byte{[]byte("saga_outbox")}, ParameterFormatCodes: []int16{0}})
		f.Send(&pgproto3.Execute{})
		f.Send(&pgproto3.Parse{Query: "SELECT 1"})
		f.Send(&pgproto3.Sync{})
		f.Send(&pgproto3.Query{String: "SELECT FROM " + table})
		f.Send(&pgproto3.CopyData{Data: []byte("FROM saga_outbox")})
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	if got, want := send(true, "saga_outbox"), send(false, `"app".saga_outbox`); !bytes.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	sent := []byte("Q\x00\x00\x00\x0dSELECT 1\x00")
	if got := (&qualifier{tables: known}).rewrite(sent); &got[0] != &sent[0] {
		t.Error("what does not change was copied")
	}
}
