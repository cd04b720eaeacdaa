package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// belongings runs uninstall and returns its line about each thing, by kind and name.
func (w *world) belongings(code int, args ...string) map[string]string {
	w.t.Helper()
	out, got := w.command(settings{"BROKER_TYPE": "stdout"}, append([]string{"uninstall", "--json"}, args...)...)
	var all []struct {
		Kind, Name, Error string
		Stays, Removed    bool
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil || got != code {
		w.t.Fatalf("uninstall ended with %d, want %d, and printed %s (%v)", got, code, out, err)
	}
	found := make(map[string]string)
	for _, b := range all {
		found[b.Kind+" "+b.Name] = fmt.Sprintf("stays %t removed %t", b.Stays, b.Removed)
	}
	return found
}

// uninstall takes all that is ours out of a database and its server, by the relay's own role with
// the documented rights, and nothing of a neighbour's; it refuses while a relay lives.
func TestUninstall(t *testing.T) {
	t.Parallel()
	w := newWorldAt(t, pgtest.Server(t, pgtest.Version()))
	neighbour := pgtest.NewAt(t, pgtest.Server(t, pgtest.Version()))
	neighbours := w.slot + "_neighbour"
	adminSQL(t, neighbour.DSN, `SELECT pg_create_logical_replication_slot('`+neighbours+`', 'pgoutput')`)
	adminSQL(t, neighbour.DSN, `SELECT pg_replication_origin_create('sagaz_relay_' || oid || '_`+w.slot+`') FROM pg_database WHERE datname = current_database()`)
	w.exec(fmt.Sprintf(`INSERT INTO saga_outbox_relay (slot, epoch, owner, released_at) VALUES ('%s', 1, 'somebody', now())`, neighbours))
	w.exec(`GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_session_setup(text), pg_replication_origin_drop(text), pg_replication_origin_oid(text) TO ` + w.role)
	w.exec(`GRANT SELECT ON pg_replication_origin TO ` + w.role)
	w.exec(`CREATE TABLE saga_outbox_report (n int)`) // not ours, and nobody's but its maker's

	p := w.relay("relay", settings{"BROKER_TYPE": "stdout"})
	p.waitStreaming()
	if out, code := w.command(settings{"BROKER_TYPE": "stdout"}, "uninstall", "--yes"); code != 1 {
		t.Errorf("next to a relay that runs it ended with %d: %s", code, out)
	}
	p.healthy("after uninstall was refused")
	p.stop()

	origin := value[string](w, `SELECT 'sagaz_relay_' || oid || '_`+w.slot+`' FROM pg_database WHERE datname = current_database()`)
	shown := w.belongings(0)
	want := []string{"origin " + origin, "publication sagaz_outbox", "slot " + w.slot, "slot " + neighbours}
	var got []string
	for what := range shown {
		got = append(got, what)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("shown: %q, want %q", got, want)
	}
	if value[int](w, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, w.slot) != 1 {
		t.Error("what was only to be shown is gone")
	}

	w.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 's', 'k', 'T', '{}')`)
	removed := w.belongings(0, "--yes", "--tables")
	if removed["slot "+neighbours] != "stays true removed false" || removed["slot "+w.slot] != "stays false removed true" {
		t.Errorf("removed: %v", removed)
	}
	left := value[string](w, `SELECT concat_ws(', ', (SELECT string_agg('slot ' || slot_name, ', ' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_name LIKE $1 || '%'),
		(SELECT string_agg('publication ' || pubname, ', ') FROM pg_publication),
		(SELECT string_agg('origin', ', ') FROM pg_replication_origin WHERE roname LIKE '%' || $1),
		(SELECT string_agg(tablename, ', ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'), (SELECT count(*) || ' row' FROM saga_outbox))`, w.slot)
	if want := "slot " + neighbours + ", origin, consumer_inbox, saga_outbox, saga_outbox_archive, saga_outbox_report, 1 row"; left != want {
		t.Errorf("left:\n%s, want\n%s", left, want)
	}
	if out, code := w.command(settings{"BROKER_TYPE": "stdout"}, "uninstall", "--yes"); code != 0 || !strings.Contains(out, "nothing of a relay is left") {
		t.Errorf("once more it ended with %d: %s", code, out)
	}
}
