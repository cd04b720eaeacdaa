package main

import (
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// The commands find the archive in the sessions that they make: what is only there can be shown and
// delivered again.
func TestArchiveIsFound(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated(), pgtest.SQL(`INSERT INTO saga_outbox_archive (event_id, saga_id, aggregate_id, event_type, payload, status, sent_at)
		VALUES ('`+sentEvent+`', 'saga-1', 'order-1', 'OrderPaid', '{}', 'sent', now())`))
	env := map[string]string{"DATABASE_URL": db.DSN, "BROKER_TYPE": "file"}
	for command, want := range map[string]string{
		"replay --dry-run --event-id " + sentEvent: "1 of them would be copied back from saga_outbox_archive", "dead-letter show " + sentEvent: "sent, in saga_outbox_archive",
	} {
		if text, code := outcome(t, env, strings.Fields(command)...); code != 0 || !strings.Contains(text, want) {
			t.Errorf("%s: exit code %d, want %q in\n%s", command, code, want, text)
		}
	}
}

// The command tunes a table that the library made, and finds nothing to do the second time.
func TestMigrateTunes(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated(), pgtest.SQL(`DROP INDEX idx_outbox_pending; CREATE INDEX idx_outbox_pending ON saga_outbox (created_at) WHERE status = 'pending'`))
	env := map[string]string{"DATABASE_URL": db.DSN}
	for _, want := range []string{"tuned: index idx_outbox_pending is now on", "tuned already"} {
		if text, code := outcome(t, env, "migrate", "--tune", "--no-publication"); code != 0 || !strings.Contains(text, want) {
			t.Errorf("exit code %d, want %q in\n%s", code, want, text)
		}
	}
}
