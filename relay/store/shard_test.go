package store

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// What looks at the table has the shard's condition, once, and for a table that is not divided the
// statements are what they are without.
func TestShardStatements(t *testing.T) {
	shard := relay.Set{Shards: 4}.Shard(3)
	condition := ` AND (hashtext(coalesce((concat(aggregate_id))::text, '') COLLATE "C") & 2147483647) % 4 = 3`
	for kind := range wanted {
		for what, sql := range map[string]func(relay.Shard) string{
			"keys":    func(s relay.Shard) string { return keysSQL(s, kind, false) },
			"window":  func(s relay.Shard) string { return keysSQL(s, kind, true) },
			"piece":   func(s relay.Shard) string { return pieceSQL(s, kind) },
			"backlog": backlogSQL,
		} {
			divided, whole := sql(shard), sql(relay.Alone("outbox", ""))
			if strings.Count(divided, condition) != 1 || strings.Replace(divided, condition, "", 1) != whole {
				t.Errorf("%s of %v: got\n%s\nand undivided\n%s", what, kind, divided, whole)
			}
			if strings.Contains(whole, "hashtext") {
				t.Errorf("%s of %v, undivided: %s", what, kind, whole)
			}
		}
	}
}

// The owners of the shards find each row once: in sweeps of every kind and in both directions, and
// in their backlogs.
func TestShardsSweep(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		const rows = 300
		insert(t, db, 1, rows)
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		for _, kind := range []struct {
			kind relay.SweepKind
			sql  string
		}{
			{relay.SweepPending, `UPDATE saga_outbox SET status = 'pending'`},
			{relay.SweepClaimed, `UPDATE saga_outbox SET status = 'claimed', worker_id = 'w', claimed_at = now() - interval '1 day'`},
			{relay.SweepFailed, `UPDATE saga_outbox SET status = 'failed', worker_id = NULL, claimed_at = NULL`},
		} {
			exec(t, db, kind.sql)
			for _, shards := range []int{1, 2, 3, 7, 64} {
				for _, since := range []relay.Timestamp{0, 1} {
					found, backlog := make(map[string]int), 0
					for _, shard := range (relay.Set{Slot: "outbox", Shards: shards}).All() {
						l.shard = shard
						of := strings.Fields(swept(t, l, relay.SweepQuery{Kind: kind.kind, Since: since}))
						for _, n := range of {
							found[n]++
						}
						n, err := l.Backlog(t.Context(), 2*rows)
						if err != nil {
							t.Fatal(err)
						}
						if backlog += n; kind.kind == relay.SweepPending && n != len(of) {
							t.Errorf("%s: a backlog of %d, and %d found", shard.Slot, n, len(of))
						}
					}
					for n := 1; n <= rows; n++ {
						if got := found[fmt.Sprintf("%x", n)]; got != 1 {
							t.Errorf("%v, %d shards, since %d: row %d is found %d times", kind.kind, shards, since, n, got)
						}
					}
					if want := map[bool]int{true: rows}[kind.kind == relay.SweepPending]; backlog != want {
						t.Errorf("%v, %d shards: a backlog of %d, want %d", kind.kind, shards, backlog, want)
					}
				}
			}
		}
	})
}
