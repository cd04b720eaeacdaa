package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/file"
)

// holdSlot streams from the slot as a stranger would, until the function that it returns is called.
func (w *world) holdSlot() (letGo func()) {
	w.t.Helper()
	conn, err := pgconn.Connect(w.t.Context(), w.db.DSN+"&replication=database&application_name=stranger")
	if err != nil {
		w.t.Fatal(err)
	}
	closed := false
	letGo = func() {
		if !closed {
			closed = true
			_ = conn.Conn().Close() // as a client that dies
		}
	}
	w.t.Cleanup(letGo)
	conn.Frontend().SendQuery(&pgproto3.Query{String: `START_REPLICATION SLOT "` + w.slot + `" LOGICAL 0/0 (proto_version '1', publication_names 'sagaz_outbox')`})
	if err := conn.Frontend().Flush(); err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, patience, "the stranger streams", func() string {
		if value[bool](w, `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, w.slot) {
			return ""
		}
		return "the slot is not active"
	})
	return letGo
}

// expectation is a row and what is to become of it.
type expectation struct {
	name   string
	row    row
	status string // sent, failed, or another: untouched
	reason string // in last_error
	check  func(t *testing.T, a arrival)
}

// One odd row stops nobody but itself: each of these gets its fate, and the good ones between them
// arrive in order.
func TestOddRowsToKafka(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 4)
	w.exec(`ALTER TABLE saga_outbox ALTER headers DROP NOT NULL`)
	p := w.relay("relay", twoTries.with(settings{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext}))
	p.waitStreaming()

	long := strings.Repeat("k", 255)
	hasKey := func(key string) func(*testing.T, arrival) {
		return func(t *testing.T, a arrival) {
			if got := decodeBody(t, a.value).AggregateID; a.key != key || got != key {
				t.Errorf("key %.20q, aggregate_id %.20q, want %.20q", a.key, got, key)
			}
		}
	}
	hasHeader := func(name, value string) func(*testing.T, arrival) {
		return func(t *testing.T, a arrival) {
			if got := a.header(name); got != value {
				t.Errorf("header %s: %q, want %q", name, got, value)
			}
		}
	}
	hasTime := func(stamp string) func(*testing.T, arrival) {
		return func(t *testing.T, a arrival) {
			if got := decodeBody(t, a.value).Timestamp; got != stamp {
				t.Errorf("timestamp %s, want %s", got, stamp)
			}
		}
	}
	all := []expectation{
		{name: "20 MB", row: row{key: "large", payload: `{"note": "` + w.marker + `", "pad": "` + strings.Repeat("x", 20<<20) + `"}`}, status: "dead_letter", reason: "too_large"},
		{name: "the same key after 20 MB", row: row{key: "large"}, status: "sent", check: hasKey("large")},
		{name: "headers are an array", row: row{key: "a", headers: `["` + w.marker + `"]`}, status: "dead_letter", reason: "encode"},
		{name: "headers are a string", row: row{key: "a", headers: `"` + w.marker + `"`}, status: "dead_letter", reason: "encode"},
		{name: "headers are null", row: row{key: "a", headers: `null`}, status: "sent", check: hasHeader("content_type", "application/json")},
		{name: "headers are NULL", row: row{key: "a", headers: sqlNull}, status: "sent", check: hasHeader("content_type", "application/json")},
		{name: "headers with nested values", row: row{key: "a", headers: `{"deep": {"a": [1, {"b": null}]}, "n": 1.50}`}, status: "sent", check: hasHeader("deep", `{"a": [1, {"b": null}]}`)},
		{name: "headers with a number", row: row{key: "a", headers: `{"n": 1.50}`}, status: "sent", check: hasHeader("n", "1.50")},
		{name: "aggregate_id is empty", row: row{key: ""}, status: "sent", check: hasKey("")},
		{name: "aggregate_id of 255 characters", row: row{key: long}, status: "sent", check: hasKey(long)},
		{name: "aggregate_id of 255 wide characters", row: row{key: strings.Repeat("語", 255)}, status: "sent", check: hasKey(strings.Repeat("語", 255))},
		{name: "aggregate_id is not ASCII", row: row{key: "Größe 日本 🚀\n\"\\"}, status: "sent", check: hasKey("Größe 日本 🚀\n\"\\")},
		{name: "event_type is no topic", row: row{key: "t", topic: "order created!"}, status: "dead_letter", reason: "unknown_topic"},
		{name: "event_type is empty", row: row{key: "t", topic: " "}, status: "dead_letter", reason: "unknown_topic"},
		// asyncpg gives Python an infinity as datetime.max or min, which have no zone.
		{name: "created at infinity", row: row{key: "c", created: "infinity"}, status: "sent", check: hasTime("9999-12-31T23:59:59.999999")},
		{name: "created at -infinity", row: row{key: "c", created: "-infinity"}, status: "sent", check: hasTime("0001-01-01T00:00:00")},
		{name: "created in year 1", row: row{key: "c", created: "0001-01-01 00:00:00+00"}, status: "sent", check: hasTime("0001-01-01T00:00:00+00:00")},
		{name: "created before Christ", row: row{key: "c", created: "4713-01-01 00:00:00+00 BC"}, status: "sent", check: hasTime("0001-01-01T00:00:00+00:00")},
		{name: "payload is null", row: row{key: "p", payload: "null"}, status: "sent"},
		{name: "payload is deep", row: row{key: "p", payload: strings.Repeat("[", 500) + strings.Repeat("]", 500)}, status: "sent"},
		{name: "inserted as sent", row: row{key: "s", status: "sent"}, status: "sent", reason: "untouched"},
		{name: "inserted as dead_letter", row: row{key: "s", status: "dead_letter"}, status: "dead_letter", reason: "untouched"},
		{name: "a good one at the end", row: row{key: "s"}, status: "sent", check: hasKey("s")},
	}
	var ids []relay.UUID
	for i := range all {
		if all[i].row.topic == "" {
			all[i].row.topic = k.name
		}
		ids = append(ids, w.insert(all[i].row)...)
	}
	w.waitFinal(p)
	arrivals := k.read()
	for i, want := range all {
		t.Run(want.name, func(t *testing.T) {
			var got []arrival
			for _, a := range arrivals {
				if a.id(t) == ids[i] {
					got = append(got, a)
				}
			}
			status, lastError := w.fate(ids[i])
			if status != want.status {
				t.Fatalf("the row is %s (%.200s), want %s", status, lastError, want.status)
			}
			if want.status == "dead_letter" || want.reason == "untouched" {
				if len(got) != 0 {
					t.Errorf("it was published")
				}
				if want.reason != "untouched" && !strings.Contains(lastError, want.reason) {
					t.Errorf("last_error %q, want the word %s", lastError, want.reason)
				}
				if strings.Contains(lastError, w.marker) {
					t.Error("last_error holds the payload")
				}
				if want.reason == "untouched" && value[bool](w, `SELECT sent_at IS NOT NULL OR retry_count <> 0 FROM saga_outbox WHERE event_id = $1`, [16]byte(ids[i])) {
					t.Error("the row was marked")
				}
				return
			}
			if len(got) != 1 {
				t.Fatalf("it was published %d times", len(got))
			}
			if payload := decodeBody(t, got[0].value).Payload; !json.Valid(payload) {
				t.Error("the payload is no JSON")
			}
			if want.check != nil {
				want.check(t, got[0])
			}
		})
	}
	if got := value[int](w, `SELECT retry_count FROM saga_outbox WHERE event_id = $1`, [16]byte(ids[0])); got != 2 {
		t.Errorf("retry_count %d of the row that is too large, want 2", got)
	}
	p.stop()
}

// twoTries lets a relay give up soon what is refused.
var twoTries = settings{"MAX_RETRIES": "2", "INITIAL_RETRY_DELAY_SECONDS": "0.1"}

// waitFinal waits until no row will change any more.
func (w *world) waitFinal(p *process) {
	w.t.Helper()
	eventually(w.t, patience, "every row has its last fate", func() string {
		n := value[int](w, `SELECT count(*) FROM saga_outbox WHERE status NOT IN ('sent', 'dead_letter')`)
		if n == 0 {
			return ""
		}
		return p.mustRun(fmt.Sprintf("%d rows are on their way", n))
	})
}

// MAX_RETRIES=1 leaves no second try: a row that is refused is a dead letter at once.
func TestDeadLetter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 1)
	p := w.relay("relay", settings{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext, "MAX_RETRY_ATTEMPTS": "1"})
	p.waitStreaming()
	ids := w.insert(row{key: "k", topic: "not legal"}, row{key: "k", topic: k.name})
	w.waitNonePending(p)
	if status, lastError := w.fate(ids[0]); status != "dead_letter" || !strings.Contains(lastError, "unknown_topic") {
		t.Errorf("the row is %s (%s), want dead_letter", status, lastError)
	}
	if status, _ := w.fate(ids[1]); status != "sent" {
		t.Errorf("the row behind it is %s, want sent", status)
	}
	if got := p.metric(`outbox_failed_events_total{event_type="not legal",worker_id="relay"}`); got != "1" {
		t.Errorf("outbox_failed_events_total %s, want 1", got)
	}
	p.stop()
}

// What no queue is bound for comes back from RabbitMQ, and its row shows it; the rest goes on.
func TestUnroutable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "order.*")
	p := w.relay("relay", twoTries.with(q.env()))
	p.waitStreaming()
	var rows []row
	for i := range 300 {
		r := row{key: fmt.Sprint("k", i%7), topic: "order.created"}
		if i%10 == 3 {
			r.topic = "nobody.listens"
		}
		rows = append(rows, r)
	}
	// more than AMQP's 255 bytes
	rows = append(rows, row{key: "long", topic: strings.Repeat("ä", 200)})
	ids := w.insert(rows...)
	w.waitFinal(p)
	var want []relay.UUID
	for i, r := range rows {
		status, lastError := w.fate(ids[i])
		switch {
		case r.topic == "order.created":
			want = append(want, ids[i])
			if status != "sent" {
				t.Errorf("row %d is %s (%s), want sent", i, status, lastError)
			}
		case r.key == "long":
			if status != "dead_letter" || !strings.Contains(lastError, "encode") {
				t.Errorf("row %d is %s (%s), want dead_letter: encode", i, status, lastError)
			}
		case status != "dead_letter" || !strings.Contains(lastError, "unroutable") || !strings.Contains(lastError, "nobody.listens"):
			t.Errorf("row %d is %s (%s), want dead_letter: unroutable", i, status, lastError)
		}
	}
	p.stop()
	var got []relay.UUID
	for _, e := range messageEvents(t, q.drain()) {
		got = append(got, e.ID)
	}
	order := func(a, b relay.UUID) int { return slices.Compare(a[:], b[:]) }
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	if !slices.Equal(got, want) {
		t.Errorf("%d messages arrived, want %d", len(got), len(want))
	}
}

// One of two sinks refuses a row: the other has it, and the row shows which does not.
func TestRefusedByOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 1)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "nothing.of.this")
	p := w.relay("relay", q.env().with(settings{"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext}))
	p.waitStreaming()
	id := w.insert(row{key: "k", topic: k.name})[0]
	w.waitNonePending(p)
	status, lastError := w.fate(id)
	if status != "failed" || !strings.Contains(lastError, "rabbitmq: unroutable") || strings.Contains(lastError, "kafka:") {
		t.Errorf("the row is %s (%s), want failed: rabbitmq: unroutable", status, lastError)
	}
	if got := len(k.read()); got != 1 {
		t.Errorf("kafka has %d records, want 1", got)
	}
	p.stop()
}

// Others change the table while a relay works on it. Columns come and go, rows go before they are
// marked, all rows go.
func TestTableChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := toFile(t)
	l := w.load(loadOptions{topic: d.topic})
	p := w.relay("relay", d.env)
	p.waitStreaming()
	l.waitCommitted(100)
	for _, change := range []string{
		`ALTER TABLE saga_outbox ADD COLUMN region text NOT NULL DEFAULT 'eu'`,
		`ALTER TABLE saga_outbox DROP COLUMN region`,
		`ALTER TABLE saga_outbox ADD COLUMN region2 int`,
		`VACUUM FULL saga_outbox`,
		`CREATE INDEX CONCURRENTLY ON saga_outbox (status)`,
	} {
		w.exec(change)
		l.waitCommitted(60)
	}
	l.finish(p)
	if n := len(p.logged("replication")); n != 0 {
		t.Errorf("replication was interrupted: %v", p.logged("replication"))
	}
	p.stop()
	for sink, got := range d.got() {
		l.judge(sink, got, 0)
	}
}

func TestRowsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := toFile(t)
	p := w.relay("relay", d.env)
	p.waitStreaming()
	// Inserted and deleted in one transaction, or right after it: the stream delivers rows that
	// cannot be marked.
	for range 20 {
		id := newID()
		w.exec(`DO $$ BEGIN
			INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES ('` + id.String() + `', 's', 'k', 'T', '{}');
			DELETE FROM saga_outbox WHERE event_id = '` + id.String() + `';
		END $$`)
		w.exec(`DELETE FROM saga_outbox WHERE event_id = $1`, [16]byte(w.insert(row{key: "k", topic: "T"})[0]))
	}
	good := w.insert(row{key: "k", topic: "T"})[0]
	w.waitNonePending(p)
	if status, _ := w.fate(good); status != "sent" {
		t.Errorf("the row behind deleted ones is %s", status)
	}
	w.waitConfirmed(p)
	// TRUNCATE under load: by somebody's decision rows are gone, and the relay goes on.
	quit := w.load(loadOptions{topic: d.topic, rate: 500})
	quit.waitCommitted(100)
	for range 5 {
		w.exec(`TRUNCATE saga_outbox`)
		quit.waitCommitted(50)
	}
	quit.stop()
	w.waitNonePending(p)
	last := w.insert(row{key: "k", topic: "T"})[0]
	w.waitNonePending(p)
	if status, _ := w.fate(last); status != "sent" {
		t.Errorf("the row after TRUNCATE is %s", status)
	}
	w.waitConfirmed(p)
	p.stop()
}

// waitConfirmed waits until nothing is in flight and the slot has moved past all that is in the WAL
// now: nothing is held back.
func (w *world) waitConfirmed(p *process) {
	w.t.Helper()
	lsn := value[string](w, `SELECT pg_current_wal_lsn()::text`)
	eventually(w.t, patience, "the slot has moved past "+lsn, func() string {
		at := value[string](w, `SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1`, w.slot)
		if n := p.status().Slots[0].Inflight; n != 0 || !value[bool](w, `SELECT $1::text::pg_lsn >= $2::text::pg_lsn`, at, lsn) {
			return p.mustRun(fmt.Sprintf("it is at %s, and %d events are in flight", at, n))
		}
		return ""
	})
}

// Applications insert through views of their own, each with its own names, and the key of one is a
// header. Both are delivered by one relay, in order.
func TestOwnNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, args := range [][]string{
		{"view", "make", "orders", "id=event_id", "order_no:bigint=aggregate_id", "kind=event_type", "body=payload"},
		{"view", "make", "invoices", "no=aggregate_id", "kind=event_type", "body:text=payload", "customer=header:customer", "--key", "header:customer"},
	} {
		if out, code := w.command(nil, args...); code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
	}
	path := filepath.Join(t.TempDir(), "events.jsonl")
	p := w.relay("relay", settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": path})
	p.waitStreaming()
	for i := range 50 {
		w.exec(`INSERT INTO orders (order_no, kind, body) VALUES (7, 'Ordered', jsonb_build_object('n', $1::int))`, i)
		w.exec(`INSERT INTO invoices (no, kind, body, customer) VALUES ('i' || $1::int, 'Billed', '{"n": ' || $1::int || '}', 'c')`, i)
	}
	w.waitNonePending(p)
	p.stop()
	next := map[string]int{"7": 0, "c": 0}
	err := file.Read(path, func(l file.Line) error {
		var body struct {
			Payload struct{ N int }
		}
		if err := json.Unmarshal(l.Value, &body); err != nil {
			return err
		}
		if want, known := next[l.Key]; !known || body.Payload.N != want {
			t.Errorf("key %q: event %d, want %d", l.Key, body.Payload.N, want)
		}
		next[l.Key]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if next["7"] != 50 || next["c"] != 50 {
		t.Errorf("events by key: %v, want 50 each", next)
	}
}
