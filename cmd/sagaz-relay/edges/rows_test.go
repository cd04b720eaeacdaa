package edges

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/encode"
	"github.com/sagaz-relay/relay/relay/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Closing(m)) }

// patience is for what a server does in its own time, on a machine that has much else to do.
const patience = 2 * time.Minute

// shape is a table with certain types, and rows that are odd for them. A row is the values of
// saga_id, aggregate_type, aggregate_id, event_type, payload, headers and created_at, in SQL.
type shape struct {
	name     string
	encoding string // of the database
	prepare  string // before the table is changed
	types    map[string]string
	nulls    bool // columns may be NULL
	maxBytes int  // RELAY_MAX_EVENT_BYTES, where it is another
	encode   func(*encode.Config)
	rows     []string
	// rows that are no JSON or no UTF-8: refused alike, wherever they are read
	refused int
	keys    []string            // of the records that are not refused, in order
	bodies  map[string]string   // by event_type: what has to be in the record's value
	headers map[string][]string // by event_type: "name=value"
}

var shapes = []shape{
	{
		name: "library", nulls: true,
		rows: []string{
			`'s', 'order', 'a-1', 'T1', '{"b": 1.10, "a": [1e3, "ü", {"x": null}]}', '{}', '2026-01-01 00:00:00.000001+02'`,
			`'', '', '', '', 'null', NULL, 'infinity'`,
			`' s ', E'o\tr\n"d\\er', '  a  ', 'T2', '"\u0001\ud83d\ude00\\"', '{"saga_name": "S", "n": 1, "o": {"k": [true]}}', '-infinity'`,
			`repeat('🙂', 255), repeat('é', 255), repeat('ß', 255), repeat('x', 255), '[]', '{"": "", "event_id": "mine"}', '0044-03-15 12:00:00+00 BC'`,
			`NULL, NULL, NULL, 'T3', '{}', '{}', '12345-01-01 00:00:00+00'`,
			`'s', 'order', E'\u2028\u202e\ufeff', E'\u0085', '0.000', '{"a\u0001": "b\u0002"}', 'epoch'`,
		},
		keys: []string{"a-1", "", "  a  ", strings.Repeat("ß", 255), "", "\u2028\u202e\ufeff"},
	},
	{
		name:  "text, json, timestamp",
		types: map[string]string{"saga_id": "text", "aggregate_type": "char(8)", "aggregate_id": "text", "event_type": "text", "payload": "json", "headers": "json", "created_at": "timestamp"},
		rows: []string{
			`'s', 'order', repeat('k', 3000), 'T1', '{ "b" : 1.10,   "a":1, "a":2 }', '{"x": "1", "y": 2, "x": "3"}', '2026-01-01 00:00:00.5'`,
			`'s', '', '', 'T2', E'{"nul": "\\u0000"}', E'{"nul": "\\u0000"}', '1969-12-31 23:59:59'`,
			`'s', 'o', 'k', 'T3', ' [1] ', '{}', 'infinity'`,
		},
		keys:    []string{strings.Repeat("k", 3000), "", "k"},
		bodies:  map[string]string{"T1": `{ "b" : 1.10,   "a":1, "a":2 }`, "T2": `"\u0000"`},
		headers: map[string][]string{"T1": {"x=3", "y=2"}},
	},
	{
		name: "domain, enum",
		prepare: `CREATE DOMAIN short AS varchar(40); CREATE DOMAIN shorter AS short CHECK (length(value) < 30); CREATE DOMAIN document AS jsonb CHECK (value IS NOT NULL);
			CREATE TYPE kind AS ENUM ('order', 'größe', ' odd'); CREATE DOMAIN moment AS timestamptz; CREATE DOMAIN ident AS uuid; CREATE DOMAIN label AS text`,
		types: map[string]string{
			"event_id": "ident", "saga_id": "short", "aggregate_type": "kind", "aggregate_id": "shorter", "event_type": "label", "payload": "document", "headers": "document",
			"status": "label", "created_at": "moment",
		},
		rows: []string{
			`'s', 'order', 'a', 'T1', '{"b": 1.10}', '{"k": "v"}', now()`,
			`'s', 'größe', 'ä', 'T2', '"x"', '{}', 'infinity'`,
			`'s', ' odd', '', 'T3', '1', '[]', now()`,
		},
		refused: 1, keys: []string{"a", "ä"},
	},
	{
		name:  "bigint, uuid, text payload",
		types: map[string]string{"saga_id": "uuid", "aggregate_type": "smallint", "aggregate_id": "bigint", "event_type": "varchar", "payload": "text", "headers": "text", "retry_count": "bigint"},
		rows: []string{
			`'00000000-0000-0000-0000-0000000000AB', 7, 42, 'T1', '{"a": 1}', '{"k": "v", "k": "w"}', now()`,
			`gen_random_uuid(), -1, 9223372036854775807, 'T2', ' "x" ', '', now()`,
			`gen_random_uuid(), 0, -9223372036854775808, 'T3', 'no JSON', '{}', now()`,
			`gen_random_uuid(), 0, 0, 'T4', '{}', '{no', now()`,
		},
		refused: 2, keys: []string{"42", "9223372036854775807"},
		bodies: map[string]string{"T1": `"saga_id":"00000000-0000-0000-0000-0000000000ab","aggregate_type":"7","aggregate_id":"42"`}, headers: map[string][]string{"T1": {"k=w"}},
	},
	{
		name: "bigint key", types: map[string]string{"aggregate_id": "bigint"},
		rows: []string{`'s', 'order', 42, 'T1', '{}', '{}', now()`}, keys: []string{"42"},
	},
	{
		name: "int, enum key", prepare: `CREATE TYPE region AS ENUM ('eu', 'us')`,
		types: map[string]string{"saga_id": "int", "aggregate_id": "region", "payload": "varchar", "event_type": "char(4)"},
		rows:  []string{`1, 'x', 'eu', 'T1', '{}', '{}', now()`, `-1, 'x', 'us', 'T2', '[]', '{}', now()`},
		keys:  []string{"eu", "us"},
	},
	{
		name: "LATIN1", encoding: "LATIN1",
		rows: []string{
			`'s', 'Größe', 'Zoë', 'Café.ouvert', '{"name": "José Müller"}', '{"saga_name": "Señor"}', now()`,
			`'s', 'order', 'plain', 'T2', '{"name": "x"}', '{}', now()`,
		},
		keys: []string{"Zoë", "plain"}, bodies: map[string]string{"Café.ouvert": "José Müller"}, headers: map[string][]string{"Café.ouvert": {"saga_name=Señor"}},
	},
	{
		name: "SQL_ASCII", encoding: "SQL_ASCII", types: map[string]string{"payload": "text"},
		rows: []string{
			`'s', 'order', 'Zoë', 'T1', '{"name": "José"}', '{}', now()`,
			`'s', 'order', E'Zo\xeb', 'T2', '{}', '{}', now()`,
			`'s', 'order', 'plain', 'T3', E'{"name": "Jos\xe9"}', '{}', now()`,
			`'s', 'order', 'after', 'T4', '{}', '{}', now()`,
		},
		refused: 2, keys: []string{"Zoë", "after"}, bodies: map[string]string{"T1": "José"},
	},
}

// Whatever the columns are, as long as they are accepted: the stream, the sweep, the poll and the
// ledger make the same record of a row, byte by byte, or refuse it alike. The database's own
// settings are of no account.
func TestSameBytesOnEveryPath(t *testing.T) {
	for _, version := range pgtest.Versions() {
		for _, s := range slices.Concat(shapes, payloadShapes) {
			t.Run(version+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				testShape(t, version, &s)
			})
		}
	}
}

func testShape(t *testing.T, version string, s *shape) {
	options := []pgtest.Option{pgtest.Migrated()}
	if s.encoding != "" {
		options = append(options, pgtest.Encoding(s.encoding))
	}
	db := pgtest.NewVersion(t, version, options...)
	// What somebody may have set for other programs.
	encoding := "LATIN1"
	if s.encoding == "SQL_ASCII" {
		encoding = "UTF8"
	}
	conn := connect(t, db)
	exec(t, conn, fmt.Sprintf(`ALTER DATABASE %[1]s SET timezone = 'Asia/Tokyo'; ALTER DATABASE %[1]s SET datestyle = 'German';
		ALTER DATABASE %[1]s SET client_encoding = '%[2]s'; ALTER DATABASE %[1]s SET extra_float_digits = -3`, pgx.Identifier{db.Name}.Sanitize(), encoding))
	alter(t, conn, s)

	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	source, err := cdc.New(func() cdc.Config {
		c := cdc.DefaultConfig()
		c.DatabaseURL, c.MaxEventBytes = db.DSN, s.limit()
		return c
	}(), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	if err := source.Check(ctx, relay.Alone("outbox", "sagaz_outbox").Set); err != nil {
		t.Fatal(err)
	}
	st := newStore(t, db, func(c *store.Config) { c.MaxEventBytes = s.limit() })
	if err := st.Check(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := source.Create(ctx, relay.Alone("outbox_"+db.Name[len(db.Name)-8:], "sagaz_outbox")); err != nil {
		t.Fatal(err)
	}
	for i, row := range s.rows {
		exec(t, conn, fmt.Sprintf(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, created_at)
			VALUES ('%s', %s)`, id(i+1), row))
	}
	streamed := stream(t, ctx, source, "outbox_"+db.Name[len(db.Name)-8:], len(s.rows))

	lease, err := st.Acquire(ctx, relay.Alone("outbox", "sagaz_outbox"))
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release(ctx, true) //nolint:errcheck // the test is over
	swept := sweep(t, ctx, lease, relay.SweepQuery{})
	horizon, err := lease.Horizon(ctx)
	if err != nil {
		t.Fatal(err)
	}
	alongside := sweep(t, ctx, lease, relay.SweepQuery{Seen: horizon.Snapshot})
	retried := park(t, ctx, lease, streamed)

	cfg := encode.DefaultConfig()
	if s.encode != nil {
		s.encode(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	encoder, err := encode.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	refused := 0
	for i := range s.rows {
		event := streamed[id(i+1)]
		want, err := record(encoder, event)
		for name, other := range map[string]map[relay.UUID]relay.Event{"sweep": swept, "sweep while streaming": alongside, "ledger": retried} {
			ev, is := other[id(i+1)]
			if !is {
				t.Errorf("row %d: the %s does not have it", i, name)
				continue
			}
			if got, otherErr := record(encoder, ev); got != want || fmt.Sprint(err) != fmt.Sprint(otherErr) {
				t.Errorf("row %d: the stream gives\n%s (%v), the %s\n%s (%v)", i, want, err, name, got, otherErr)
			}
		}
		if err != nil {
			refused++
			continue
		}
		keys = append(keys, event.AggregateID)
		eventType := strings.TrimRight(event.EventType, " ")
		if part := s.bodies[eventType]; !strings.Contains(want, part) {
			t.Errorf("row %d: no %s in %s", i, part, want)
		}
		for _, header := range s.headers[eventType] {
			if !strings.Contains(want, "\n"+header) {
				t.Errorf("row %d: no header %s in %q", i, header, want)
			}
		}
	}
	if refused != s.refused || !slices.Equal(keys, s.keys) {
		t.Errorf("refused %d, keys %q; want %d, %q", refused, keys, s.refused, s.keys)
	}
}

// limit is how large events may be.
func (s *shape) limit() int { return cmp.Or(s.maxBytes, relay.DefaultMaxEventBytes) }

// record is what is published of an event, as text.
func record(encoder *encode.Encoder, ev relay.Event) (string, error) {
	var rec relay.Record
	if err := encoder.Encode(&rec, &ev); err != nil {
		return "", err
	}
	text := fmt.Sprintf("%s\n%s\n%s\n%s\n%s\n%s", rec.Topic, rec.RoutingKey, rec.Key, rec.Value, rec.ContentType, rec.Timestamp)
	if rec.Value == nil {
		text += "\nno value"
	}
	for _, h := range rec.Headers {
		text += "\n" + h.Key + "=" + h.Value
	}
	return text, nil
}

// alter gives the table a shape.
func alter(t testing.TB, conn *pgx.Conn, s *shape) {
	t.Helper()
	exec(t, conn, s.prepare)
	if s.nulls {
		for _, column := range []string{"saga_id", "aggregate_type", "aggregate_id", "payload", "headers"} {
			exec(t, conn, `ALTER TABLE saga_outbox ALTER COLUMN `+column+` DROP NOT NULL`)
		}
	}
	if s.types["status"] != "" {
		exec(t, conn, `ALTER TABLE saga_outbox DROP CONSTRAINT valid_status`)
	}
	for column, kind := range s.types {
		exec(t, conn, fmt.Sprintf(`ALTER TABLE saga_outbox ALTER COLUMN %[1]s DROP DEFAULT, ALTER COLUMN %[1]s TYPE %[2]s USING %[1]s::text::%[2]s`, column, kind))
	}
	exec(t, conn, `ALTER TABLE saga_outbox ALTER COLUMN status SET DEFAULT 'pending', ALTER COLUMN retry_count SET DEFAULT 0`)
}

// stream reads so many events.
func stream(t testing.TB, ctx context.Context, source opener, slot string, n int) map[relay.UUID]relay.Event {
	t.Helper()
	events := make(map[relay.UUID]relay.Event)
	for ctx.Err() == nil && len(events) < n { // a column may make it begin again
		st, err := source.Open(ctx, relay.Alone(slot, "sagaz_outbox"), 0)
		if err != nil {
			t.Logf("open: %v", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		reading, enough := context.WithCancel(ctx)
		err = st.Run(reading, &intake{events: events, want: n, enough: enough})
		_ = st.Close(ctx)
		enough()
		if len(events) < n {
			t.Logf("stream: %v", err)
		}
	}
	if len(events) != n {
		t.Fatalf("the stream has delivered %d events of %d", len(events), n)
	}
	return events
}

// opener is a source.
type opener interface {
	Open(ctx context.Context, shard relay.Shard, known relay.LSN) (relay.Stream, error)
}

// slotSource gives slots names of their own: a server has one set of names for all databases.
type slotSource struct {
	*cdc.Source
	suffix string
}

func (s *slotSource) Open(ctx context.Context, shard relay.Shard, known relay.LSN) (relay.Stream, error) {
	shard.Slot += "_" + s.suffix
	return s.Source.Open(ctx, shard, known)
}

func (s *slotSource) Create(ctx context.Context, shard relay.Shard) (relay.LSN, error) {
	shard.Slot += "_" + s.suffix
	return s.Source.Create(ctx, shard)
}

// intake gathers events.
type intake struct {
	mu     sync.Mutex
	events map[relay.UUID]relay.Event
	want   int
	enough func()
}

func (in *intake) Admit(_ context.Context, events []relay.Event) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, ev := range events {
		in.events[ev.ID] = ev
	}
	if len(in.events) >= in.want {
		in.enough()
	}
	return nil
}

func (in *intake) Pass(relay.LSN)       {}
func (in *intake) Heard(relay.LSN)      {}
func (in *intake) Watermark() relay.LSN { return 0 }

func sweep(t testing.TB, ctx context.Context, lease relay.Lease, q relay.SweepQuery) map[relay.UUID]relay.Event {
	t.Helper()
	found := make(map[relay.UUID]relay.Event)
	err := lease.Sweep(ctx, q, func(events []relay.Event) error {
		for _, ev := range events {
			found[ev.ID] = ev
		}
		return nil
	})
	if err != nil {
		t.Fatalf("sweep: %v", err)
	}
	return found
}

// park puts events into the ledger and returns what is read of them to be tried again.
func park(t testing.TB, ctx context.Context, lease relay.Lease, events map[relay.UUID]relay.Event) map[relay.UUID]relay.Event {
	t.Helper()
	var batch relay.MarkBatch
	for _, ev := range events {
		batch.Marks = append(batch.Marks, relay.Mark{
			ID: ev.ID, XID: ev.XID, CommitLSN: ev.CommitLSN, EventType: ev.EventType, Key: ev.AggregateID, KeyHash: relay.KeyHash(ev.AggregateID), Position: int64(len(batch.Marks) + 1),
			Parked: []relay.Parked{{Sink: "kafka", State: relay.StateHeld, Reason: relay.ReasonSinkDown, Error: "„nicht erreichbar“ …"}},
		})
	}
	if _, err := lease.Mark(ctx, batch); err != nil {
		t.Fatalf("park: %v", err)
	}
	due, _, err := lease.Due(ctx, "kafka", 100, 1<<20)
	if err != nil {
		t.Fatalf("due: %v", err)
	}
	found := make(map[relay.UUID]relay.Event)
	for i := range due {
		found[due[i].Event.ID] = due[i].Event
	}
	// Texts of our own fit into any database.
	outcomes := make([]relay.Outcome, len(due))
	for i := range due {
		outcomes[i] = relay.Outcome{Entry: &due[i], Fate: relay.FateRefused, Reason: relay.ReasonRejected, Error: "„abgelehnt“ … 拒否", Attempts: 1, Delay: time.Hour}
	}
	if err := lease.Resolve(ctx, "kafka", outcomes); err != nil {
		t.Errorf("resolve: %v", err)
	}
	return found
}

func newStore(t testing.TB, db *pgtest.DB, change ...func(*store.Config)) *store.Store {
	t.Helper()
	cfg := store.DefaultConfig()
	for _, f := range change {
		f(&cfg)
	}
	cfg.DatabaseURL, cfg.Owner, cfg.Slot = db.DSN, "relay-ワーカー-1", "outbox"
	st, err := store.New(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// connect opens a connection that talks UTF-8.
func connect(t testing.TB, db *pgtest.DB) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["client_encoding"] = "UTF8"
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// exec runs a script.
func exec(t testing.TB, conn *pgx.Conn, script string) {
	t.Helper()
	if script == "" {
		return
	}
	if _, err := conn.PgConn().Exec(t.Context(), script).ReadAll(); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
}

// id is the event_id of the nth row.
func id(n int) (u relay.UUID) {
	u[14], u[15] = byte(n>>8), byte(n)
	return u
}
