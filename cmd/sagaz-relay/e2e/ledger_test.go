package e2e

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// ledger counts a sink's entries, with a further condition (SQL, or "").
func (w *world) ledger(sink, more string) int {
	w.t.Helper()
	n, err := w.ledgerNow(sink, more)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) ledgerNow(sink, more string) (n int, err error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	if more == "" {
		more = "true"
	}
	err = w.db.Pool.QueryRow(ctx, `SELECT count(*) FROM saga_outbox_delivery WHERE sink = $1 AND `+more, sink).Scan(&n)
	return n, err
}

// waitLedger waits until a sink has at least so many entries, or, for 0, none: for as long as their
// number changes, since how fast depends on the machine.
func (w *world) waitLedger(p *process, sink string, entries int) {
	w.t.Helper()
	last, changed := -1, time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		n, err := w.ledgerNow(sink, "")
		switch {
		case err == nil && (entries == 0 && n == 0 || entries > 0 && n >= entries):
			return
		case err == nil && n != last:
			last, changed = n, time.Now()
		}
		p.mustRun("")
		if time.Since(changed) > 2*patience {
			w.t.Fatalf("the ledger of %s comes to %d entries: it has had %d for %s (%v)", sink, entries, last, 2*patience, err)
		}
		time.Sleep(pause)
	}
}

// waitPassed waits until the slot has passed everything that is in the WAL now.
func (w *world) waitPassed() {
	w.t.Helper()
	end := value[string](w, `SELECT pg_current_wal_lsn()::text`)
	w.db.Until(w.t, `SELECT confirmed_flush_lsn >= $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, w.slot, end)
}

// settle stops the load, waits until the sink's ledger is empty, and wants every row sent.
func (l *load) settle(p *process, sink string) {
	l.w.t.Helper()
	l.stop()
	l.w.waitLedger(p, sink, 0)
	l.finish(p)
}

// bulk commits so many events in one transaction, under 50 keys that the load does not use.
func (l *load) bulk(n int) {
	l.w.t.Helper()
	rows, err := l.w.db.Pool.Query(l.w.t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, created_at)
		SELECT gen_random_uuid(), 'saga', 'order', 'bulk-' || i % 50, $1, jsonb_build_object('seq', i, 'note', $2::text, 'pad', repeat('x', 200)), clock_timestamp()
		FROM generate_series(1, $3::int) AS i RETURNING event_id, aggregate_id`, l.opts.topic, l.w.marker, n)
	if err != nil {
		l.w.t.Fatal(err)
	}
	events, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (e verify.Event, err error) {
		var id [16]byte
		err = r.Scan(&id, &e.Key)
		e.ID = relay.UUID(id)
		return e, err
	})
	if err != nil {
		l.w.t.Fatal(err)
	}
	l.check.Commit(events...)
}
