package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// A slot costs its owner three connections to PostgreSQL: the lease's, the marks' and the stream's.
// What else there is, the slots of a process have in common. A standby has one. docs/sharding.md
// states these numbers.
func TestConnectionsPerSlot(t *testing.T) {
	const (
		each   = 3
		common = 15 // the roster, two of the streams, and at most two for each of six purposes
	)
	for _, slots := range []int{1, 4, 16} {
		t.Run(fmt.Sprintf("%d slots", slots), func(t *testing.T) {
			t.Parallel()
			w := bareWorldAt(t, pgtest.OwnServer(t, pgtest.Version(), map[string]string{"max_replication_slots": "40", "max_wal_senders": "40"}).DSN("postgres"))
			w.shards = slots
			w.migrate("--slot")
			owner := w.relayOf(program.Plain(t), "owner", settings{"BROKER_TYPE": "stdout"})
			eventually(t, patience, "all slots stream", func() string {
				if n := len(owner.streams()); n != slots {
					return fmt.Sprintf("%d do", n)
				}
				return ""
			})
			insert := func() {
				w.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) SELECT gen_random_uuid(), 's', 'k' || n, 'T', '{}' FROM generate_series(1, 2000) n`)
			}
			insert()
			most := ""
			count := func() (all, own int) {
				t.Helper()
				own = value[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '^sagaz-relay (lease|marks|slot) '`)
				all = value[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'sagaz-relay%'`)
				return all, own
			}
			highest := 0
			for range 40 { // looks at slots and table, sweeps, counts
				all, own := count()
				if own > each*slots {
					t.Errorf("%d connections of the slots' own, want %d", own, each*slots)
				}
				if all > highest {
					highest, most = all, value[string](w, `SELECT string_agg(n || ' ' || name, ', ' ORDER BY name) FROM (SELECT count(*) AS n, split_part(application_name, ' ', 2) AS name
						FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'sagaz-relay%' GROUP BY 2) all_of_them`)
				}
				insert()
				time.Sleep(100 * time.Millisecond)
			}
			t.Logf("%d slots: %d connections: %s", slots, highest, most)
			if highest > each*slots+common {
				t.Errorf("%d connections, want at most %d: %s", highest, each*slots+common, most)
			}
			if slots > 1 {
				return // another relay would take its share
			}
			w.relayOf(program.Plain(t), "standby", settings{"BROKER_TYPE": "stdout"})
			eventually(t, patience, "the standby has one connection", func() string {
				if value[int](w, `SELECT count(DISTINCT client_port) FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '^sagaz-relay roster '`) != 2 {
					return "the standby has none"
				}
				if all, _ := count(); all > each+common+1 {
					return fmt.Sprintf("%d connections", all)
				}
				return ""
			})
		})
	}
}
