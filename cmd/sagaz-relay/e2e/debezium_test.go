package e2e

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay/verify"
)

// debeziumSQL are SQL blocks of docs/migrating-from-debezium.md: there, has it finished, back.
func debeziumSQL(t testing.TB) (there, finished, back string) {
	t.Helper()
	blocks := debeziumBlocks(t)
	return blocks[1], blocks[3], blocks[4]
}

// debeziumBlocks are all SQL blocks of the document. The first and the third are for payloads as they
// are: before the view is made, and at the end of its transaction.
func debeziumBlocks(t testing.TB) (blocks [5]string) {
	t.Helper()
	text, err := os.ReadFile("../../../docs/migrating-from-debezium.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(found) != len(blocks) {
		t.Fatalf("%d blocks of SQL in the document, want %d", len(found), len(blocks))
	}
	for i := range found {
		blocks[i] = found[i][1]
	}
	return blocks
}

// outboxWriter inserts into outboxevent as applications do that came from Debezium: a row a
// transaction, which every second one deletes at once, as the Quarkus extension does.
type outboxWriter struct {
	w       *world
	stop    context.CancelFunc
	done    sync.WaitGroup
	mu      sync.Mutex
	written []verify.Event // in commit order per key: each key has one writer
	err     error
}

func (w *world) writeOutbox(writers int) *outboxWriter {
	ctx, stop := context.WithCancel(w.t.Context())
	o := &outboxWriter{w: w, stop: stop}
	for k := range writers {
		key := fmt.Sprintf("order-%d", k)
		o.done.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := o.insert(key, n); err != nil {
					o.mu.Lock()
					o.err = err
					o.mu.Unlock()
					return
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	return o
}

func (o *outboxWriter) insert(key string, n int) error {
	ctx := context.Background()
	tx, err := o.w.db.Pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // after a commit it is none
	id := newID()
	if _, err := tx.Exec(ctx, `INSERT INTO outboxevent (id, aggregatetype, aggregateid, type, payload) VALUES ($1, 'order', $2, 'OrderPaid', $3)`, id.String(), key, fmt.Sprintf(`{"n": %d}`, n)); err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	if n%2 == 1 {
		gone, err := tx.Exec(ctx, `DELETE FROM outboxevent WHERE id = $1`, id.String())
		if err != nil || gone.RowsAffected() != 1 {
			return fmt.Errorf("delete: %d rows: %w", gone.RowsAffected(), err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	o.mu.Lock()
	o.written = append(o.written, verify.Event{ID: id, Key: key})
	o.mu.Unlock()
	return nil
}

func (o *outboxWriter) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.written)
}

// The way that docs/migrating-from-debezium.md describes, under load: no insert fails, each row is
// in one table or the other, and what came after the switch is delivered as the outbox event router
// does it. Then back.
func TestFromDebezium(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	prefix := newTopicName()
	k := newNamedTopic(t, broker.Plaintext, prefix+".order", 2)
	there, finished, back := debeziumSQL(t)
	w.exec(`CREATE TABLE outboxevent (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload text)`)
	w.exec(`ALTER TABLE outboxevent OWNER TO ` + w.role)
	// The old table keeps its rows for the test to count, whatever applications delete.
	w.exec(`CREATE TABLE kept AS SELECT id FROM outboxevent`)
	w.exec(`CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO kept VALUES (NEW.id); RETURN NEW; END'`)
	w.exec(`CREATE TRIGGER keep AFTER INSERT ON outboxevent FOR EACH ROW EXECUTE FUNCTION keep()`)

	load := w.writeOutbox(4)
	eventually(t, patience, "rows of before", func() string { return atLeast(load.count(), 100) })
	w.exec(there)
	middle := load.count()
	eventually(t, patience, "rows between the switch and the relay", func() string { return atLeast(load.count(), middle+100) })
	w.exec(strings.TrimSuffix(strings.TrimSpace(finished), ";"))
	p := w.relay("relay", settings{
		"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext, "RELAY_ENVELOPE": "debezium",
		"RELAY_TOPIC": prefix + ".{aggregate_type}", // the document's, but for the name
	})
	p.waitStreaming()
	middle = load.count()
	eventually(t, patience, "rows after the start of the relay", func() string { return atLeast(load.count(), middle+100) })
	load.stop()
	load.done.Wait()
	if load.err != nil {
		t.Fatalf("an application's transaction failed: %v", load.err)
	}
	w.waitNonePending(p)
	p.stop()

	old := map[string]bool{}
	rows, err := w.db.Pool.Query(t.Context(), `SELECT id::text FROM kept`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		old[id] = true
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{} // by key
	for _, e := range load.written {
		if !old[e.ID.String()] {
			want[e.Key] = append(want[e.Key], e.ID.String())
		}
	}
	got := map[string][]string{}
	for _, r := range k.read() {
		if r.header("eventType") != "OrderPaid" || !strings.HasPrefix(string(r.value), `{"n": `) {
			t.Fatalf("a record with headers %v and value %s", r.headers, r.value)
		}
		got[r.key] = append(got[r.key], r.header("id"))
	}
	total := 0
	for key, ids := range want {
		total += len(ids)
		if strings.Join(got[key], " ") != strings.Join(ids, " ") {
			t.Errorf("key %s: %d events arrived, want these %d in order", key, len(got[key]), len(ids))
		}
	}
	t.Logf("%d rows were Debezium's, %d ours", len(old), total)
	if len(old) < 100 || total < 200 || len(old)+total != len(load.written) {
		t.Errorf("%d rows in the old table and %d in saga_outbox, of %d", len(old), total, len(load.written))
	}

	w.exec(back)
	again := w.writeOutbox(1)
	eventually(t, patience, "rows in the old table again", func() string { return atLeast(again.count(), 10) })
	again.stop()
	again.done.Wait()
	if n := value[int](w, `SELECT count(*) FROM kept`); again.err != nil || n != len(old)+again.count() {
		t.Errorf("back: %d rows in the old table, want %d: %v", n, len(old)+again.count(), again.err)
	}
}

func atLeast(n, want int) string {
	if n >= want {
		return ""
	}
	return fmt.Sprintf("%d of %d", n, want)
}

// What Debezium takes for a payload, and the columns that frameworks add, break no transaction of
// an application behind the document's view.
func TestDebeziumViewTakesWhatTheTableTook(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	there, _, back := debeziumSQL(t)
	type insert struct{ payload, want string } // as SQL, and as JSON text in saga_outbox
	texts := []insert{
		{"NULL", "null"},
		{`'{"n": 1}'`, `{"n": 1}`},
		{`'hello'`, `"hello"`},
		{`''`, `""`},
		{`'{"n": '`, `"{\"n\": "`},
		{`'{"a": "\u0000"}'`, `"{\"a\": \"\\u0000\"}"`},
		{`'[1, 2]'`, `[1, 2]`},
		{`'Zoë'`, `"Zoë"`},
	}
	for payloadType, inserts := range map[string][]insert{
		"text": texts, "varchar(4000)": texts,
		"jsonb": {{"NULL", "null"}, {`'{"n": 1}'`, `{"n": 1}`}, {`'"x"'`, `"x"`}},
		"json":  {{"NULL", "null"}, {`'{"n": 1}'`, `{"n": 1}`}, {`'{"a": "\u0000"}'`, `"{\"a\": \"\\u0000\"}"`}},
		"bytea": {{"NULL", "null"}, {`'{"n": 1}'::bytea`, `{"n": 1}`}, {`'\xff00'::bytea`, `"/wA="`}, {`'hello'::bytea`, `"aGVsbG8="`}},
	} {
		for _, idType := range []string{"uuid", "varchar(255)", "bigint"} {
			// The columns of Quarkus' extension, in another order, and one of somebody's own.
			w.exec(`CREATE TABLE outboxevent (tenant int NOT NULL, id ` + idType + ` PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid text, type varchar(255) NOT NULL,
				"timestamp" timestamp NOT NULL, payload ` + payloadType + `, tracingspancontext varchar(256))`)
			w.exec(there)
			for i, in := range inserts {
				id := map[string]string{"uuid": newID().String(), "varchar(255)": fmt.Sprint("order ", i), "bigint": fmt.Sprint(i)}[idType]
				w.exec(`INSERT INTO outboxevent (tenant, id, aggregatetype, aggregateid, type, "timestamp", payload, tracingspancontext)
					VALUES (7, '` + id + `', 'order', 'k', 'OrderPaid', now()::timestamp, ` + in.payload + `, 'x=y')`)
				const newest = ` FROM saga_outbox ORDER BY created_at DESC LIMIT 1`
				if got := value[string](w, `SELECT payload::text`+newest); got != in.want {
					t.Errorf("%s %s: got %s, want %s", payloadType, in.payload, got, in.want)
				}
				wantHeaders := "{}"
				if idType != "uuid" {
					wantHeaders = fmt.Sprintf(`{"id": %q}`, id)
				}
				if got := value[string](w, `SELECT headers::text`+newest); got != wantHeaders {
					t.Errorf("id %s: headers %s, want %s", id, got, wantHeaders)
				}
				if idType == "uuid" {
					w.exec(`UPDATE outboxevent SET payload = NULL WHERE id = '` + id + `'`)
					gone, err := w.db.Pool.Exec(t.Context(), `DELETE FROM outboxevent WHERE id = '`+id+`'`)
					if err != nil || gone.RowsAffected() != 1 {
						t.Errorf("the delete at once found %d rows (%v), want 1", gone.RowsAffected(), err)
					}
				}
			}
			odd := map[string]string{"uuid": "gen_random_uuid()", "varchar(255)": "'x'", "bigint": "-1"}[idType]
			w.exec(`INSERT INTO outboxevent (tenant, id, aggregatetype, type, "timestamp") VALUES (7, ` + odd + `, 'order', repeat('x', 255), 'infinity')`)
			if n := value[int](w, `SELECT count(*) FROM saga_outbox`); n != len(inserts)+1 {
				t.Errorf("%s, %s: %d rows, want %d", idType, payloadType, n, len(inserts)+1)
			}
			w.exec(back)
			w.exec(`DROP TABLE outboxevent`)
			w.exec(`DELETE FROM saga_outbox`)
		}
	}
}

// With the document's lines for payloads as they are, every text and all bytes are in saga_outbox as
// they were inserted, and so is NULL.
func TestDebeziumPayloadsAsTheyAre(t *testing.T) {
	t.Parallel()
	for kind, payloads := range map[string][]string{
		"text":  {"NULL", `''`, `'{"b":1,  "a":2}'`, `'hello'`, `E'{"a": "\\u0000"}'`},
		"bytea": {"NULL", `''`, `'\x00ff'::bytea`, `'{"b":1}'::bytea`},
	} {
		w := newWorld(t)
		doc := debeziumBlocks(t)
		other := strings.NewReplacer("TYPE text", "TYPE "+kind, "(text)", "("+kind+")", "payload text", "payload "+kind, "RETURNS text", "RETURNS "+kind)
		w.exec(strings.Replace(other.Replace(doc[0]), "TYPE bytea", "TYPE bytea USING convert_to(payload::text, 'UTF8')", 1))
		w.migrate()
		w.exec(`CREATE TABLE outboxevent (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload ` + kind + `)`)
		w.exec(strings.Replace(doc[1], "COMMIT;", other.Replace(doc[2])+"COMMIT;", 1))
		for _, payload := range payloads {
			w.exec(`INSERT INTO outboxevent (id, aggregatetype, aggregateid, type, payload) VALUES ($1, 'order', 'k', 'OrderPaid', `+payload+`)`, newID().String())
			if !value[bool](w, `SELECT payload IS NOT DISTINCT FROM `+payload+` FROM saga_outbox ORDER BY created_at DESC LIMIT 1`) {
				t.Errorf("%s: %s is not what was inserted", kind, payload)
			}
		}
	}
}
