package store

import (
	"flag"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

var largeLedger = flag.Int("ledger-entries", 200_000, "entries of TestLargeLedger")

// A sink was down for hours. From the lease to the first delivered entries takes seconds (a minute
// at most, on a busy disk). It makes no difference whether the entries are of one key or of as many
// as there are, to retry now or held. A mark and an outcome do not take longer than in a small
// ledger.
//
// With -ledger-entries=5000000: see docs/measurements.md.
func TestLargeLedger(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	n := *largeLedger
	fresh := insert(t, db, 1, 3000)
	for _, c := range []struct {
		name string
		key  string // of entry i
		held bool   // behind the first of its key, which has a next attempt
	}{
		{"a fifth as many keys", `'k' || i % ($1 / 5)`, false},
		{"one key", `'k'`, false},
		{"one key, held", `'k'`, true},
		{"a fifth as many keys, held", `'k' || i % ($1 / 5)`, true},
	} {
		exec(t, db, `TRUNCATE saga_outbox_delivery`)
		exec(t, db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, next_attempt_at)
			SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(i), 12, '0'))::uuid, 'kafka', 'outbox', i, k, hashtext(k), 'Tested', CASE WHEN $2 AND row_number() OVER w > 1 THEN 'held' ELSE 'retry' END,
				CASE WHEN $2 AND row_number() OVER w = 1 THEN now() - interval '1 s' END
			FROM (SELECT i, `+c.key+` AS k FROM generate_series(1, $1::int) i) e WINDOW w AS (PARTITION BY k ORDER BY i)`, n, c.held)

		began := time.Now()
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		took := func(limit time.Duration, what string) {
			t.Helper()
			if d := time.Since(began); d > limit {
				t.Errorf("%s: %s after %s", c.name, what, d)
			} else {
				t.Logf("%s: %s after %s", c.name, what, d.Round(time.Millisecond))
			}
			began = time.Now()
		}
		took(time.Minute, "the lease was taken")
		entries, calls := 0, 0
		if err := l.Blocking(t.Context(), 1<<22-1, func(_ string, _ uint32, _, n int) { entries += n; calls++ }); err != nil || entries != n || calls > 1<<22 {
			t.Fatalf("%s: %d entries in %d calls, %v", c.name, entries, calls, err)
		}
		took(time.Minute, "the ledger was read")
		counts, err := l.Counts(t.Context())
		if err != nil || len(counts) == 0 {
			t.Fatalf("%s: counts %v, %v", c.name, counts, err)
		}
		took(time.Minute, "it was counted")
		if _, _, err := l.Heal(t.Context(), "kafka", -1<<31); err != nil {
			t.Error(err)
		}
		took(time.Minute, "some lines were looked at")
		due, _, err := l.Due(t.Context(), "kafka", 2000, 2<<20)
		if err != nil || len(due) == 0 {
			t.Fatalf("%s: %d entries due, %v", c.name, len(due), err)
		}
		took(time.Minute, "the first entries were found")
		resolve(t, l, "kafka", relay.FateDelivered, due...)
		took(time.Minute, "they were delivered")
		if due, _, err = l.Due(t.Context(), "kafka", 2000, 2<<20); err != nil || len(due) == 0 || due[0].Position < 2 {
			t.Fatalf("%s: then %d entries due, %v", c.name, len(due), err)
		}
		resolve(t, l, "kafka", relay.FateRefused, due[0])
		took(time.Minute, "one was refused")
		parked := ofKey(parking(marksOf(fresh), held("kafka")), "k")
		for i := range parked {
			parked[i].ID[0], parked[i].Position = 1, l.LastPosition()+int64(i)
		}
		mark(t, l, parked[:1000])
		took(time.Minute, "a thousand more were parked")
		release(t, l)
	}
}
