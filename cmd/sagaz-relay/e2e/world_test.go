package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// payloadMarker begins a text that is in every payload, and may be in no log.
const payloadMarker = "payload-secret-"

// world is a database that one test has for itself, with what a relay needs in it, and a role that
// is no superuser.
type world struct {
	t        testing.TB
	db       *pgtest.DB
	role     string
	password string
	url      string // DATABASE_URL of the role
	slot     string
	shards   int // RELAY_SHARDS; 0: not set
	marker   string
}

// newWorld makes one on the shared server.
func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldAt(t, pgtest.Server(t, pgtest.Version()))
}

// newWorldAt makes one on the server with this superuser's URL, migrates it, and makes the slot:
// what is committed from now on is to be delivered.
func newWorldAt(t testing.TB, superuser string) *world {
	t.Helper()
	w := bareWorldAt(t, superuser)
	w.migrate("--slot")
	return w
}

// bareWorldAt is newWorldAt without tables and slot.
func bareWorldAt(t testing.TB, superuser string) *world {
	t.Helper()
	id := strings.ToLower(rand.Text()[:10])
	w := &world{t: t, role: "e2e_" + id, password: "pw-" + rand.Text(), slot: "e2e_" + id, marker: payloadMarker + rand.Text()}
	adminSQL(t, superuser, fmt.Sprintf("CREATE ROLE %s LOGIN REPLICATION PASSWORD '%s'", w.role, w.password))
	t.Cleanup(func() { // after the database, which the role owns
		if !t.Failed() {
			adminSQL(t, superuser, "DROP ROLE "+w.role)
		}
	})
	w.db = pgtest.NewAt(t, superuser)
	w.exec(fmt.Sprintf("ALTER DATABASE %q OWNER TO %s", w.db.Name, w.role))
	u, err := url.Parse(w.db.DSN)
	if err != nil {
		t.Fatal("the DSN is no URL")
	}
	u.User = url.UserPassword(w.role, w.password)
	w.url = u.String()
	return w
}

func adminSQL(t testing.TB, dsn, sql string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Errorf("connect as superuser: %v", err)
		return
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Errorf("%.60s: %v", sql, err)
	}
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.db.Pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%.200s: %v", sql, err)
	}
}

// value runs a query for a single value.
func value[T any](w *world, sql string, args ...any) T {
	w.t.Helper()
	var v T
	if err := w.db.Pool.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%.200s: %v", sql, err)
	}
	return v
}

// env are the variables of a relay in this world, but for the sink's.
func (w *world) env() settings {
	all := settings{
		"DATABASE_URL":    w.url,
		"RELAY_SLOT":      w.slot,
		"RELAY_HTTP_ADDR": "127.0.0.1:0",
		// tests do not wait a quarter of an hour for a dead letter
		"RELAY_UNROUTABLE_PATIENCE": "0s",
	}
	if w.shards > 0 {
		all["RELAY_SHARDS"] = strconv.Itoa(w.shards)
	}
	return all
}

func (w *world) secrets() []string {
	return []string{w.password, url.QueryEscape(w.password), w.marker}
}

// relay starts "sagaz-relay run" with these variables and those of env.
func (w *world) relay(name string, more settings) *process {
	w.t.Helper()
	return w.relayOf(program.Path(w.t), name, more)
}

func (w *world) relayOf(path, name string, more settings) *process {
	w.t.Helper()
	secrets := w.secrets()
	if raw := more["RABBITMQ_URL"]; raw != "" {
		if u, err := url.Parse(raw); err == nil && u.User != nil {
			if password, ok := u.User.Password(); ok {
				secrets = append(secrets, password)
			}
		}
	}
	if password := more["KAFKA_SASL_PASSWORD"]; password != "" {
		secrets = append(secrets, password)
	}
	return launch(w.t, path, name, w.env().with(settings{"WORKER_ID": name}).with(more), secrets, "run")
}

// migrate runs "sagaz-relay migrate" as the world's role. Every test does, and it is one thing
// after the other: no race detector.
func (w *world) migrate(args ...string) {
	w.t.Helper()
	p := launch(w.t, program.Plain(w.t), "migrate", w.env().with(settings{"RELAY_HTTP_ADDR": ""}), w.secrets(), append([]string{"migrate"}, args...)...)
	if code := p.end(patience); code != 0 {
		w.t.Fatalf("migrate: exit code %d\n%s%s", code, p.stdout.String(), p.stderr.String())
	}
}

// row is what a test sets of a row to insert; what is empty gets a default.
type row struct {
	id        relay.UUID
	saga      string
	aggregate string // aggregate_type
	key       string // aggregate_id
	topic     string // event_type
	payload   string
	headers   string
	status    string
	created   string
}

// sqlNull as a row's headers is no value, not JSON's null.
const sqlNull = "NULL"

func newID() relay.UUID {
	var id relay.UUID
	_, _ = rand.Read(id[:]) // it does not fail
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

// payload is a small payload with the world's marker.
func (w *world) payload() string { return fmt.Sprintf(`{"note": %q}`, w.marker) }

// insert commits rows in one transaction, with the column list that applications use.
func (w *world) insert(rows ...row) []relay.UUID {
	w.t.Helper()
	ids := make([]relay.UUID, len(rows))
	var batch pgx.Batch
	for i, r := range rows {
		if r.id == (relay.UUID{}) {
			r.id = newID()
		}
		ids[i] = r.id
		def := func(s *string, value string) {
			if *s == "" {
				*s = value
			}
		}
		def(&r.saga, "saga-1")
		def(&r.aggregate, "order")
		def(&r.payload, w.payload())
		def(&r.headers, "{}")
		def(&r.status, "pending")
		def(&r.created, "now")
		headers := &r.headers
		if r.headers == sqlNull {
			headers = nil
		}
		batch.Queue(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at)
			VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7::text::jsonb, $8, $9::text::timestamptz)`,
			[16]byte(r.id), r.saga, r.aggregate, r.key, r.topic, r.payload, headers, r.status, r.created)
	}
	if err := w.db.Pool.SendBatch(w.t.Context(), &batch).Close(); err != nil {
		w.t.Fatalf("insert: %v", err)
	}
	return ids
}

// waitNonePending waits until every row has its fate, and returns how many have which.
func (w *world) waitNonePending(p *process) map[string]int {
	w.t.Helper()
	eventually(w.t, patience, "no row is pending", func() string {
		n, err := w.pending()
		switch {
		case err != nil:
			return err.Error()
		case n == 0:
			return ""
		case p != nil:
			return p.mustRun(fmt.Sprintf("%d rows pending", n))
		}
		return fmt.Sprintf("%d rows pending", n)
	})
	return w.statuses()
}

func (w *world) pending() (n int, err error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	err = w.db.Pool.QueryRow(ctx, `SELECT count(*) FROM saga_outbox WHERE status = 'pending'`).Scan(&n)
	return n, err
}

func (w *world) statuses() map[string]int {
	w.t.Helper()
	rows, err := w.db.Pool.Query(w.t.Context(), `SELECT status, count(*)::int FROM saga_outbox GROUP BY status`)
	if err != nil {
		w.t.Fatal(err)
	}
	counts := make(map[string]int)
	var status string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&status, &n}, func() error { counts[status] = n; return nil }); err != nil {
		w.t.Fatal(err)
	}
	return counts
}

// fate is a row's status and last_error.
func (w *world) fate(id relay.UUID) (status, lastError string) {
	w.t.Helper()
	err := w.db.Pool.QueryRow(w.t.Context(), `SELECT status, coalesce(last_error, '') FROM saga_outbox WHERE event_id = $1`, [16]byte(id)).Scan(&status, &lastError)
	if err != nil {
		w.t.Fatalf("look at row %s: %v", id, err)
	}
	return status, lastError
}

// sentIDs are the rows that are sent.
func (w *world) sentIDs() map[relay.UUID]bool {
	w.t.Helper()
	rows, err := w.db.Pool.Query(w.t.Context(), `SELECT event_id FROM saga_outbox WHERE status = 'sent'`)
	if err != nil {
		w.t.Fatal(err)
	}
	sent := make(map[relay.UUID]bool)
	var id [16]byte
	if _, err := pgx.ForEachRow(rows, []any{&id}, func() error { sent[id] = true; return nil }); err != nil {
		w.t.Fatal(err)
	}
	return sent
}

// waitGone waits until the server has ended all connections of relays to this database.
func (w *world) waitGone() {
	w.t.Helper()
	eventually(w.t, patience, "the server has noticed that the relay is gone", func() string {
		n := value[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'sagaz-relay%'`)
		if n == 0 {
			return ""
		}
		return fmt.Sprintf("%d connections", n)
	})
}

// judge gives the checker what a sink got and wants its promises kept, with at most so many
// duplicates. It returns their number.
func (l *load) judge(sink string, got []verify.Event, maxDuplicates int) int {
	l.w.t.Helper()
	l.check.Deliver(sink, got...)
	report := l.check.Report()
	for _, s := range report.Sinks {
		if s.Sink != sink {
			continue
		}
		l.w.t.Logf("sink %s: %d committed, %d delivered, %d again", sink, report.Committed, s.Delivered, len(s.Duplicates))
		if len(s.Duplicates) > maxDuplicates {
			l.w.t.Errorf("sink %s: %d duplicates, want at most %d", sink, len(s.Duplicates), maxDuplicates)
		}
		if err := report.Err(); err != nil {
			l.w.t.Error(err)
		}
		return len(s.Duplicates)
	}
	l.w.t.Errorf("the report has no sink %s", sink)
	return 0
}
