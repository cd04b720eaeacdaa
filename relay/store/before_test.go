package store

import (
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// TestBefore asks, as a relay whose BROKER_TYPE is not set does, where events went before it.
func TestBefore(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		for _, s := range []*Store{newStore(t, testConfig(db), nil), behindPooler(t, db, nil)} {
			exec(t, db, `DELETE FROM saga_outbox_relay`)
			exec(t, db, `DELETE FROM saga_outbox`)
			want := func(what, sinks string, sent bool) {
				t.Helper()
				got, err := s.Before(t.Context(), "outbox")
				if err != nil || strings.Join(got.Sinks, ",") != sinks || got.Sent != sent {
					t.Errorf("%s: got %+v, %v; want sinks %q, sent %v", what, got, err, sinks, sent)
				}
			}
			row := `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, status) VALUES (gen_random_uuid(), 's', 'order', 'o', 'e', '{}', '%s')`
			want("an empty table", "", false)
			exec(t, db, strings.ReplaceAll(row, "%s", "pending"))
			want("nothing was sent", "", false)
			exec(t, db, strings.ReplaceAll(row, "%s", "sent"))
			want("another worker has sent", "", true)
			exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner) VALUES ('outbox', 0, '')`)
			want("a slot was made, and has had no owner", "", true)
			l := acquire(t, s, "outbox")
			want("a relay that has noted nothing", "", false)
			if _, err := l.NoteSinks(t.Context(), []string{"kafka", "rabbitmq"}); err != nil {
				t.Fatal(err)
			}
			want("a relay with two sinks", "kafka,rabbitmq", false)
			release(t, l)
			exec(t, db, `UPDATE saga_outbox_relay SET slot = 'outbox_old'`)
			want("under another slot's name", "kafka,rabbitmq", false)
			exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner, sinks, renewed_at) VALUES ('outbox', 3, '', 'file', '2020-01-01')`)
			want("both: its own goes first", "file", false)
		}
	})
}
