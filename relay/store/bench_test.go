package store

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// benchRows is how many sent rows BenchmarkIdleLook makes: SAGAZ_BENCH_ROWS, or a million.
func benchRows(b *testing.B) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("SAGAZ_BENCH_ROWS"), "1000000"))
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// The library's indexes.
const libraryIndexes = `DROP INDEX idx_outbox_pending, idx_outbox_claimed_at; DROP INDEX IF EXISTS saga_outbox_status;
	CREATE INDEX idx_outbox_pending ON saga_outbox (created_at) WHERE status = 'pending';
	CREATE INDEX idx_outbox_claimed_at ON saga_outbox (claimed_at) WHERE status = 'claimed'`

// BenchmarkIdleLook is what a look for pending rows costs when there are no such rows, among many
// that are sent. Those are inserted as pending, and marked, in turns of 5,000, as in production.
// ns/op is what the caller waits.
//
//	SAGAZ_BENCH_ROWS=5000000 go test ./relay/store -run '^$' -bench IdleLook \
//		-benchtime 20x -timeout 60m
func BenchmarkIdleLook(b *testing.B) {
	n := benchRows(b)
	for _, version := range pgtest.Versions() {
		b.Run(version, func(b *testing.B) {
			db := pgtest.NewVersion(b, version, pgtest.Migrated())
			s := newStore(b, testConfig(db), nil)
			l := acquire(b, s, "outbox")
			began := time.Now()
			for from := 1; from < n; from += 5000 {
				if _, err := db.Pool.Exec(b.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
					SELECT ('00000000-0000-0000-' || lpad(to_hex(i >> 48), 4, '0') || '-' || lpad(to_hex(i), 12, '0'))::uuid, 's' || i, 'a' || i, 'Tested', jsonb_build_object('n', i, 'x', repeat('x', 200)) FROM generate_series($1::bigint, $2) i`, from, from+4999); err != nil {
					b.Fatal(err)
				}
				// What is marked is two turns behind.
				for half := from - 5000; half < from; half += 2500 {
					ids := make(uuids, 0, 2500)
					for i := half; i < half+2500; i++ {
						ids = append(ids, id(max(i, 1)))
					}
					if _, err := db.Pool.Exec(b.Context(), `UPDATE saga_outbox SET status = 'sent', sent_at = now() WHERE event_id = ANY($1::uuid[])`, ids); err != nil {
						b.Fatal(err)
					}
				}
			}
			if _, err := db.Pool.Exec(b.Context(), `UPDATE saga_outbox SET status = 'sent', sent_at = now() WHERE status = 'pending'`); err != nil {
				b.Fatal(err)
			}
			b.Logf("%d rows made in %s, %s", n, time.Since(began).Round(time.Second), value[string](b, db.Pool, `SELECT pg_size_pretty(pg_table_size('saga_outbox'))`))
			look := func(name string, q relay.SweepQuery) {
				b.Run(name, func(b *testing.B) {
					for b.Loop() {
						if err := l.Sweep(b.Context(), q, func([]relay.Event) error { return fmt.Errorf("found some") }); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
			all := func(name string) {
				look(name+"/pending", relay.SweepQuery{})
				look(name+"/pending since 2m", relay.SweepQuery{Since: relay.TimestampOf(time.Now().Add(-2 * time.Minute))})
				look(name+"/claimed", relay.SweepQuery{Kind: relay.SweepClaimed})
				look(name+"/failed", relay.SweepQuery{Kind: relay.SweepFailed})
			}
			all("ours as it grew")
			b.StopTimer()
			if _, err := db.Pool.Exec(b.Context(), `VACUUM (ANALYZE) saga_outbox`); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			all("ours after vacuum")
			if _, err := db.Pool.Exec(b.Context(), `DROP INDEX IF EXISTS saga_outbox_status`); err != nil {
				b.Fatal(err)
			}
			all("ours without BRIN")
			if db.Version >= "16" {
				if _, err := db.Pool.Exec(b.Context(), `CREATE INDEX saga_outbox_status ON saga_outbox USING brin (status) WITH (pages_per_range = 64, autosummarize = on)`); err != nil {
					b.Fatal(err)
				}
				all("ours, BRIN made again")
			}
			if _, err := db.Pool.Exec(b.Context(), libraryIndexes); err != nil {
				b.Fatal(err)
			}
			all("library's")
		})
	}
}

// BenchmarkLedger is what entries cost: written by Mark, 2,500 events at a time, read by Due and
// taken out by Resolve.
//
//	go test ./relay/store -run '^$' -bench Ledger -benchtime 100x
func BenchmarkLedger(b *testing.B) {
	db := pgtest.New(b, pgtest.Migrated())
	l := acquire(b, newStore(b, testConfig(db), nil), "outbox")
	const batch = 2500
	next := 1
	b.Run("park", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			marks := parking(marksOf(insert(b, db, next, next+batch-1)), held("kafka"))
			next += batch
			b.StartTimer()
			mark(b, l, marks)
		}
		b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "entries/s")
	})
	b.Run("due and resolve", func(b *testing.B) {
		var reading time.Duration
		n := 0
		for b.Loop() {
			at := time.Now()
			entries, _, err := l.Due(b.Context(), "kafka", 1000, 4<<20)
			if err != nil {
				b.Fatal(err)
			}
			reading += time.Since(at)
			n += len(entries)
			resolve(b, l, "kafka", relay.FateDelivered, entries...)
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "entries/s")
		b.ReportMetric(float64(n)/reading.Seconds(), "due/s")
		b.ReportMetric(float64(n)/(b.Elapsed()-reading).Seconds(), "resolved/s")
	})
}
