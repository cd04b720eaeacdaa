package e2e

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
)

// pruned is how many rows a relay has removed for their age.
func (p *process) pruned() string {
	return p.metric(fmt.Sprintf("outbox_pruned_events_total{worker_id=%q}", p.name))
}

// Rows that were sent go when they are old, under load, without a mark that waits for it; rows that
// were not sent stay, however old. Of two relays the owner does it.
func TestRetention(t *testing.T) {
	t.Parallel()
	for _, action := range []string{relay.RetentionDelete, relay.RetentionArchive} {
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			const old = 5000 // rows of long ago: several batches
			w := newWorld(t)
			q := newQueue(t, brokertest.RabbitMQ(t).URL, "order.*")
			sent := func(status string, n int) {
				w.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, status, created_at, sent_at, retry_count)
					SELECT gen_random_uuid(), 'saga', 'order', 'old-' || i, 'order.created', '{}', $1::text, now() - interval '1 hour', CASE $1::text WHEN 'sent' THEN now() - interval '1 hour' END, 3
					FROM generate_series(1, $2::int) AS i`, status, n)
			}
			sent("sent", old)
			sent("dead_letter", 7)
			env := q.env().with(settings{
				"RELAY_RETENTION": "2s", "RELAY_RETENTION_ACTION": action, "INITIAL_RETRY_DELAY_SECONDS": "3600", "MAX_RETRY_DELAY_SECONDS": "3600",
			})
			owner := w.relay("owner", env)
			owner.waitStreaming()
			standby := w.relay("standby", env)
			standby.waitReady()
			w.insert(row{key: "refused", topic: "payment.due", created: "2020-01-01"}, row{key: "refused", topic: "order.created", created: "2020-01-01"})
			w.db.Until(t, `SELECT count(*) = 2 FROM saga_outbox_delivery`)

			l := w.load(loadOptions{topic: "order.created", rate: 300})
			var lag float64
			watch := func(p *process, events int) {
				t.Helper()
				// how often we look
				for want := l.committed() + events; l.committed() < want; time.Sleep(20 * time.Millisecond) {
					lag = max(lag, p.status().Slots[0].LagSeconds)
					if n := value[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'sagaz-relay%' AND wait_event_type = 'Lock'`); n != 0 {
						t.Errorf("%d sessions of relays wait for a lock", n)
					}
				}
			}
			watch(owner, 1500)
			// Not those of the load: removing takes a tenth of the time, and on a machine that is
			// slow enough the load is faster. They are asked for when it has ended.
			eventually(t, patience, "rows that were sent long ago are gone", func() string {
				if n := value[int](w, `SELECT count(*) FROM saga_outbox WHERE status = 'sent' AND aggregate_id LIKE 'old-%'`); n != 0 {
					return owner.mustRun(fmt.Sprintf("%d are there", n))
				}
				return ""
			})
			eventually(t, patience, "the owner has removed rows of the load, too", func() string {
				if n, err := strconv.Atoi(owner.pruned()); err != nil || n <= old {
					return owner.mustRun(owner.pruned() + " rows removed")
				}
				return ""
			})
			if n := standby.pruned(); n != "0" {
				t.Errorf("the standby has removed %s rows, want 0", n)
			}
			owner.stop()
			standby.waitStreaming()
			watch(standby, 600)
			l.stop()
			w.db.Until(t, `SELECT count(*) = 9 FROM saga_outbox`)
			t.Logf("%d rows committed under load, the longest lag %.1f s; removed by the second owner: %s", l.committed(), lag, standby.pruned())
			if n := standby.pruned(); n == "0" || n == "" {
				t.Errorf("the second owner has removed %q rows", n)
			}
			got := w.statuses()
			if got["dead_letter"] != 7 || got["failed"] != 1 || got["pending"] != 1 {
				t.Errorf("rows by status: %v, want the 7 dead letters, the failed one and the one behind it", got)
			}
			want := 0
			if action == relay.RetentionArchive {
				want = old + l.committed()
			}
			if n := value[int](w, `SELECT count(*) FROM saga_outbox_archive WHERE status = 'sent' AND sent_at IS NOT NULL`); n != want {
				t.Errorf("%d rows in the archive, want %d", n, want)
			}
			standby.stop()
			l.judge("rabbitmq", messageEvents(t, q.drain()), 0)
		})
	}
}
