package e2e

import (
	"fmt"
	"slices"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// leave inserts rows of one key as a worker or a relay may have left them: more are further columns
// and their values. No stream delivers rows that are not inserted as pending.
func (w *world) leave(topic, key string, more map[string]string) (ids []relay.UUID) {
	w.t.Helper()
	columns, values := "", ""
	for column, value := range more {
		columns, values = columns+", "+column, values+", "+value
	}
	for range 12 {
		id := newID()
		ids = append(ids, id)
		w.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, created_at`+columns+`)
			VALUES ($1, 'saga', $2, $3, '{}', clock_timestamp()`+values+`)`, [16]byte(id), key, topic)
	}
	return ids
}

func uuids(ids []relay.UUID) [][16]byte {
	out := make([][16]byte, len(ids))
	for i, id := range ids {
		out[i] = id
	}
	return out
}

// waitSent waits until these rows are sent. A look at the table that takes long, as on a busy
// machine, puts off the next one to 500 times as long, so this may take more patience than other
// things.
func (w *world) waitSent(p *process, what string, ids []relay.UUID) {
	w.t.Helper()
	eventually(w.t, 3*patience, "rows are sent: "+what, func() string {
		if n := value[int](w, `SELECT count(*) FROM saga_outbox WHERE event_id = ANY($1::uuid[]) AND status <> 'sent'`, uuids(ids)); n != 0 {
			return p.mustRun(fmt.Sprintf("%d of %d are not", n, len(ids)))
		}
		return ""
	})
}

// setBack sets rows back to pending, as a person does.
func (w *world) setBack(ids []relay.UUID) {
	w.t.Helper()
	w.exec(`UPDATE saga_outbox SET status = 'pending', sent_at = NULL WHERE event_id = ANY($1::uuid[])`, uuids(ids))
}

// The library's worker, or a relay of an earlier version, leaves rows behind that the stream does
// not deliver, and people set rows back by hand. A relay finds them in the table, while it streams
// or when it polls, and sends them in the order of their key. What the stream delivers it sends
// once.
func TestLeftOver(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cdc", "polling"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
			w.migrate()
			broker := brokertest.Kafka(t)
			k := newTopic(t, broker.Plaintext, 4)
			l := w.load(loadOptions{topic: k.name, rate: 400})
			l.waitCommitted(300)
			left := map[string][]relay.UUID{"from before the slot": w.leave(k.name, "old", nil)}
			p := w.relay("relay", settings{
				"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext, "RELAY_MODE": mode, "POLL_INTERVAL": "0.2", "STUCK_CLAIM_TIMEOUT_SECONDS": "2",
			})
			if mode == "cdc" {
				p.waitStreaming()
			} else {
				p.waitPolling()
			}
			l.waitCommitted(200)

			claim := func(status string) map[string]string {
				return map[string]string{"status": "'" + status + "'", "worker_id": "'python-1'", "claimed_at": "clock_timestamp()"}
			}
			left["claimed"] = w.leave(k.name, "claimed", claim("claimed"))
			left["failed, by a worker that died"] = w.leave(k.name, "failed-worker", claim("failed"))
			left["failed, by a relay without a ledger"] = w.leave(k.name, "failed-relay", map[string]string{"status": "'failed'", "retry_count": "5", "last_error": "'kafka: rejected'"})
			l.waitCommitted(200)

			again := w.leave(k.name, "again", nil)
			w.waitSent(p, "to be set back", again)
			w.setBack(again)
			l.waitCommitted(200)
			for what, ids := range left {
				w.waitSent(p, what, ids)
			}
			w.waitSent(p, "set back", again)
			l.stop()
			w.waitNonePending(p)
			if got := w.statuses(); len(got) != 1 {
				t.Errorf("rows by status: %v, want all sent", got)
			}
			// One more look at the table finds what is set back now, and nothing of all that.
			last := w.insert(row{key: "last", topic: k.name})
			w.waitSent(p, "the last one", last)
			w.setBack(last)
			w.waitSent(p, "the last one again", last)
			p.stop()

			// Deliveries of each key that is not the load's, in the order of their partition.
			by := make(map[string][]relay.UUID)
			arrivals := slices.DeleteFunc(k.read(), func(a arrival) bool {
				switch a.key {
				case "old", "claimed", "failed-worker", "failed-relay", "again", "last":
					by[a.key] = append(by[a.key], a.id(t))
					return true
				}
				return false
			})
			for key, want := range map[string][]relay.UUID{
				"old": left["from before the slot"], "claimed": left["claimed"], "failed-worker": left["failed, by a worker that died"],
				"failed-relay": left["failed, by a relay without a ledger"],
				"again":        slices.Concat(again, again), "last": slices.Concat(last, last),
			} {
				if got := by[key]; !slices.Equal(got, want) {
					t.Errorf("key %s: %d deliveries, want %d, in this order: got %v, want %v", key, len(got), len(want), got, want)
				}
			}
			l.judge("kafka", events(t, arrivals), 0)
			for _, what := range []string{"claimed", "failed, by a worker that died"} {
				if n := value[int](w, `SELECT count(*) FROM saga_outbox WHERE event_id = ANY($1::uuid[]) AND sent_at < created_at + interval '2 s'`, uuids(left[what])); n != 0 {
					t.Errorf("%s: %d rows were sent before STUCK_CLAIM_TIMEOUT_SECONDS", what, n)
				}
			}
		})
	}
}
