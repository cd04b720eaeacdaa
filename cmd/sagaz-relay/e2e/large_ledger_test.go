package e2e

import (
	"cmp"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
)

// largeLedgerMemory is what the relay may hold resident with a large ledger: what it may hold
// anyway, and the counts by hash bucket.
const largeLedgerMemory = 100 << 20

// startLimit is from the start of the process to the first delivery of an event that is newer than
// it.
const startLimit = time.Minute

// A sink was down for hours, and is back. From the relay's start to the first delivery of a new
// event takes seconds, and no more memory than on another day. While the ledger is read the relay
// logs it, and SIGTERM ends it.
//
// SAGAZ_E2E_LEDGER=5000000 makes it that large: see docs/measurements.md.
func TestStartWithALargeLedger(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Fatal("memory is read from /proc, which only Linux has")
	}
	n, err := strconv.Atoi(cmp.Or(os.Getenv("SAGAZ_E2E_LEDGER"), "50000"))
	if err != nil {
		t.Fatalf("SAGAZ_E2E_LEDGER: %v", err)
	}
	w, s := newWorld(t), newScripted(t)
	env := s.env.with(settings{"GOMEMLIMIT": "460MiB"})
	p := w.relayOf(program.Plain(t), "before", env)
	p.waitStreaming()
	began := time.Now()
	w.fillLedger("file", n)
	t.Logf("%d entries were made within %s", n, time.Since(began).Round(time.Second))
	filled := value[string](w, `SELECT pg_current_wal_lsn()::text`)
	eventually(t, 10*patience, "the stream has passed what made the ledger", func() string {
		if value[bool](w, `SELECT confirmed_flush_lsn >= $2::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, w.slot, filled) {
			return ""
		}
		return p.mustRun("not yet")
	})
	p.stop()
	w.waitGone()

	// SIGTERM ends the reading of a ledger that lasts.
	p = w.relayOf(program.Plain(t), "stopped", env)
	eventually(t, patience, "the ledger is being read", func() string {
		if value[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'sagaz-relay count%' AND state = 'active'`) > 0 || len(p.logged("ledger read")) > 0 {
			return ""
		}
		return p.mustRun("not yet")
	})
	began = time.Now()
	p.stop()
	took := time.Since(began)
	t.Logf("SIGTERM while the ledger is read (read already: %t): ended within %s", len(p.logged("ledger read")) > 0, took.Round(time.Millisecond))
	if took > 15*time.Second {
		t.Errorf("SIGTERM ended it after %s", took)
	}
	w.waitGone()

	s.back()
	began = time.Now()
	p = w.relayOf(program.Plain(t), "started", env)
	rows := make([]row, 200)
	for i := range rows {
		rows[i] = row{key: fmt.Sprintf("new-%d", i), topic: "T"}
	}
	ids := make([][16]byte, 0, len(rows))
	for _, id := range w.insert(rows...) {
		ids = append(ids, id)
	}
	ready := time.Duration(0)
	var notReady []byte
	eventually(t, 10*patience, "the first new event is delivered", func() string {
		if code, body := p.get("/health/ready"); code == http.StatusOK && ready == 0 {
			ready = time.Since(began)
		} else if code != http.StatusOK {
			notReady = body
		}
		if value[int](w, `SELECT count(*) FROM saga_outbox WHERE event_id = ANY($1::uuid[]) AND status = 'sent'`, ids) > 0 {
			return ""
		}
		return p.mustRun("none yet")
	})
	took = time.Since(began)
	memory := p.peakMemory()
	t.Logf("%d entries: the first new event was delivered %s after the start, ready after %s (before: %.300s), peak resident memory %d MB, %d lines of progress in the log",
		n, took.Round(time.Millisecond), ready.Round(time.Millisecond), notReady, memory>>20, len(p.logged("reading the ledger: nothing is delivered")))
	if took > startLimit {
		t.Errorf("the first new event was delivered %s after the start, want %s", took, startLimit)
	}
	// Some rounds of the ledger, too.
	w.db.Until(t, `SELECT count(*) > $1 / 50 FROM saga_outbox WHERE status = 'sent'`, min(n, 50_000))
	memory = p.peakMemory()
	t.Logf("after some rounds of the ledger: peak resident memory %d MB, %d new events delivered", memory>>20,
		value[int](w, `SELECT count(*) FROM saga_outbox WHERE event_id = ANY($1::uuid[]) AND status = 'sent'`, ids))
	if memory > largeLedgerMemory {
		t.Errorf("peak resident memory %d MB, want at most %d", memory>>20, largeLedgerMemory>>20)
	}
	p.stop()
}

// fillLedger makes n ready entries of n/5 keys; every hundredth has its row, and so have the first
// thousand. The others' rows are gone.
func (w *world) fillLedger(sink string, n int) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.db.DSN)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(w.t.Context()) //nolint:errcheck // nothing depends on it
	exec := func(sql string, args ...any) {
		w.t.Helper()
		if _, err := conn.Exec(w.t.Context(), sql, args...); err != nil {
			w.t.Fatal(err)
		}
	}
	exec(`CREATE TEMPORARY TABLE keys (i int PRIMARY KEY, key text, hash int)`)
	if _, err := conn.CopyFrom(w.t.Context(), pgx.Identifier{"keys"}, []string{"i", "key", "hash"}, pgx.CopyFromSlice(n/5, func(i int) ([]any, error) {
		key := fmt.Sprintf("order-%d", i)
		return []any{int32(i), key, int32(relay.KeyHash(key))}, nil
	})); err != nil {
		w.t.Fatal(err)
	}
	const id = `('00000000-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid`
	exec(`INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, reason, event_at)
		SELECT `+id+`, $2, $3, i, key, hash, 'T', 'retry', 'sink_down', now() FROM (SELECT g AS i, key, hash FROM generate_series(1, $1::int) g JOIN keys k ON k.i = g % ($1::int / 5) ORDER BY g) e`, n, sink, w.slot)
	exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at)
		SELECT `+id+`, 'saga', 'order', 'order-' || i % ($1::int / 5), 'T', jsonb_build_object('seq', i, 'note', $2::text, 'pad', repeat('x', 350)), '{}', 'pending', now()
		FROM generate_series(1, $1::int) i WHERE i <= 1000 OR i % 100 = 0`, n, w.marker)
}
