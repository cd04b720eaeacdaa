package repair

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

func TestReplay(t *testing.T) {
	onEach(t, func(t *testing.T, db *table) {
		for n := 1; n <= 4; n++ {
			db.row(n, "a", "sent", 0)
		}
		db.row(5, "b", "sent", 0)
		db.row(6, "a", "pending", 0)
		db.row(7, "a", "dead_letter", 5)
		db.entry(7, "kafka", "a", "dead detached", 5, "too_large")
		db.entry(2, "kafka", "a", "now detached", 0, "") // being replayed already
		db.row(8, "a", "sent", 0)
		db.exec(`WITH gone AS (DELETE FROM saga_outbox WHERE event_id = $1::text::uuid RETURNING *) INSERT INTO saga_outbox_archive SELECT * FROM gone`, id(8).String())

		r := Replay{SagaID: "saga-a", Set: relay.Alone("sagaz_outbox", "").Set, Sinks: []string{"kafka", "rabbitmq"}}
		plan, err := PlanReplay(t.Context(), db.conn, r)
		if err != nil {
			t.Fatal(err)
		}
		if plan.Events != 5 || plan.Archived != 1 || !reflect.DeepEqual(plan.Unsent, map[string]int{"pending": 1, "dead_letter": 1}) || len(plan.Missing) > 0 || plan.NoArchive {
			t.Errorf("the plan is %+v", plan)
		}
		db.want("planned", map[int]string{1: "sent 0", 8: "gone"})

		done, err := plan.Run(t.Context(), db.conn, r)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[string]int{"kafka": 4, "rabbitmq": 5}; !reflect.DeepEqual(done.Sinks, want) || done.Passed != 1 || done.Restored != 1 {
			t.Errorf("got %+v, want %v, one passed, one restored", done, want)
		}
		db.want("replayed", map[int]string{
			1: "sent 0 | kafka retry 0 now detached | rabbitmq retry 0 now detached",
			2: "sent 0 | kafka retry 0 now detached | rabbitmq retry 0 now detached",
			5: "sent 0",
			6: "pending 0",
			7: "dead_letter 5 | kafka dead 5 detached",
			8: "sent 0 | kafka retry 0 now detached | rabbitmq retry 0 now detached",
		})
		rows, err := db.Pool.Query(t.Context(), `SELECT event_id, position, key_hash, replayed_at IS NOT NULL, commit_lsn IS NULL FROM saga_outbox_delivery WHERE sink = 'rabbitmq' ORDER BY position`)
		if err != nil {
			t.Fatal(err)
		}
		type made struct {
			ID             [16]byte
			Position       int64
			Hash           int32
			Replayed, NoLS bool
		}
		got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[made])
		if err != nil {
			t.Fatal(err)
		}
		hash := int32(relay.KeyHash("a"))
		want := []made{{id(1), 8, hash, true, true}, {id(2), 9, hash, true, true}, {id(3), 10, hash, true, true}, {id(4), 11, hash, true, true}, {id(8), 12, hash, true, true}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("the entries are %v, want %v: behind position 7, in created_at order", got, want)
		}
	})
}

func TestReplayChooses(t *testing.T) {
	db := newTable(t, pgtest.New(t, pgtest.Migrated()))
	for n := 1; n <= 5; n++ {
		db.row(n, "a", "sent", 0)
	}
	at := func(n int) time.Time { return time.Date(2026, 11, 23, 7, 0, n, 0, time.UTC) }
	for _, tt := range []struct {
		name    string
		r       Replay
		events  int
		missing int
	}{
		{"Events", Replay{EventIDs: []relay.UUID{id(2), id(4), id(77)}}, 2, 1},
		{"Since", Replay{Since: at(2)}, 4, 0},
		{"SinceUntil", Replay{Since: at(2), Until: at(4)}, 2, 0},
		{"EventType", Replay{Since: at(0), EventType: "Other"}, 0, 0},
		{"EventAndType", Replay{EventIDs: []relay.UUID{id(2)}, EventType: "OrderPlaced"}, 1, 0},
	} {
		plan, err := PlanReplay(t.Context(), db.conn, tt.r)
		if err != nil || plan.Events != tt.events || len(plan.Missing) != tt.missing {
			t.Errorf("%s: %+v, %v; want %d events, %d missing", tt.name, plan, err, tt.events, tt.missing)
		}
	}
	// A row is set back to pending between plan and run: it is on its way already.
	plan, err := PlanReplay(t.Context(), db.conn, Replay{Since: at(1), Set: relay.Alone("sagaz_outbox", "").Set})
	if err != nil {
		t.Fatal(err)
	}
	db.exec(`UPDATE saga_outbox SET status = 'pending' WHERE event_id = $1::text::uuid`, id(3).String())
	done, err := plan.Run(t.Context(), db.conn, Replay{Set: relay.Alone("sagaz_outbox", "").Set, Sinks: []string{"kafka"}})
	if err != nil || done.N() != 4 || done.Passed != 1 {
		t.Errorf("%+v, %v; want 4, and one passed", done, err)
	}
}

// Without the archive, or the right to read it, the rest works.
func TestReplayWithoutArchive(t *testing.T) {
	db := newTable(t, pgtest.New(t, pgtest.Migrated()))
	db.row(1, "a", "sent", 0)
	db.exec(`DROP TABLE saga_outbox_archive`)
	plan, err := PlanReplay(t.Context(), db.conn, Replay{EventIDs: []relay.UUID{id(1)}})
	if err != nil || plan.Events != 1 || !plan.NoArchive {
		t.Errorf("%+v, %v", plan, err)
	}
	if e, err := Show(t.Context(), db.conn, id(2), false); err != nil || e.Row != nil {
		t.Errorf("%+v, %v", e, err)
	}
}

// A role with the relay's rights can replay what is still in saga_outbox. For what is in the
// archive the error names the one right that is missing.
func TestReplayWithNamedRights(t *testing.T) {
	db := newTable(t, pgtest.New(t, pgtest.Migrated()))
	for n := 1; n <= 3; n++ {
		db.row(n, "a", "sent", 0)
	}
	db.exec(`WITH gone AS (DELETE FROM saga_outbox WHERE event_id = $1::text::uuid RETURNING *) INSERT INTO saga_outbox_archive SELECT * FROM gone`, id(3).String())
	role, _, dsn := db.Role(t, "")
	for _, right := range []string{
		"SELECT, UPDATE, DELETE ON saga_outbox", "SELECT, INSERT, UPDATE ON saga_outbox_archive",
		"SELECT, INSERT, UPDATE ON saga_outbox_relay", "SELECT, INSERT, UPDATE ON saga_outbox_set", "SELECT, INSERT, UPDATE, DELETE ON saga_outbox_delivery",
	} {
		db.exec(`GRANT ` + right + ` TO ` + role)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	replay := func(n int, sink string) (*Replayed, error) {
		r := Replay{EventIDs: []relay.UUID{id(n)}, Set: relay.Alone("sagaz_outbox", "").Set, Sinks: []string{sink}}
		plan, err := PlanReplay(t.Context(), conn, r)
		if err != nil {
			t.Fatal(err)
		}
		return plan.Run(t.Context(), conn, r)
	}
	if done, err := replay(1, "kafka"); err != nil || done.N() != 1 {
		t.Errorf("without INSERT: %+v, %v", done, err)
	}
	done, err := replay(3, "kafka")
	setup := (*relay.SetupError)(nil)
	if !errors.As(err, &setup) {
		t.Fatalf("without INSERT, from the archive: %+v, %v; want the right that is missing", done, err)
	}
	db.exec(setup.Fix)
	if done, err := replay(3, "kafka"); err != nil || done.Restored != 1 {
		t.Errorf("with the rights that messages name, from the archive: %+v, %v", done, err)
	}
}

// What a retention is just removing is not promised: replay waits for it, and reports that the
// event is gone.
func TestReplayWaitsForRetention(t *testing.T) {
	db := newTable(t, pgtest.New(t, pgtest.Migrated()))
	for n := 1; n <= 3; n++ {
		db.row(n, "a", "sent", 0)
	}
	r := Replay{SagaID: "saga-a", Set: relay.Alone("sagaz_outbox", "").Set, Sinks: []string{"kafka"}}
	plan, err := PlanReplay(t.Context(), db.conn, r)
	if err != nil || plan.Events != 3 {
		t.Fatalf("the plan is %+v, %v", plan, err)
	}
	retention, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer retention.Rollback(t.Context()) //nolint:errcheck // for the case of an error
	for _, sql := range []string{
		fmt.Sprintf(`SELECT pg_advisory_xact_lock_shared(%d)`, relay.ReplayLock), `DELETE FROM saga_outbox WHERE event_id = '` + id(2).String() + `'`,
		`WITH gone AS (DELETE FROM saga_outbox WHERE event_id = '` + id(3).String() + `' RETURNING *) INSERT INTO saga_outbox_archive SELECT * FROM gone`,
	} {
		if _, err := retention.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	type outcome struct {
		done *Replayed
		err  error
	}
	ended := make(chan outcome, 1)
	go func() {
		done, err := plan.Run(t.Context(), db.conn, r)
		ended <- outcome{done, err}
	}()
	db.Until(t, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`)
	if err := retention.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := <-ended
	if got.err != nil {
		t.Fatal(got.err)
	}
	if d := got.done; d.Sinks["kafka"] != 2 || len(d.Gone) != 1 || d.Gone[0] != id(2).String() || d.Passed != 0 || d.Restored != 1 {
		t.Errorf("got %+v, want 1 and 3 (from the archive) to be delivered, and 2 gone", d)
	}
	db.want("replayed", map[int]string{1: "sent 0 | kafka retry 0 now detached", 2: "gone", 3: "sent 0 | kafka retry 0 now detached"})
}

// Between plan and run the number of slots is changed: nothing is given to slots that are no more.
func TestReplayWhileSlotsChange(t *testing.T) {
	db := newTable(t, pgtest.NewVersion(t, pgtest.Newest, pgtest.Migrated()))
	for n := 1; n <= 20; n++ {
		db.row(n, fmt.Sprint("key", n), "sent", 0)
	}
	db.exec(`INSERT INTO saga_outbox_set (slot, publication, shards, generation) VALUES ('sagaz_outbox', 'sagaz_outbox', 4, 7)`)
	r := Replay{Since: time.Unix(0, 0), Set: relay.Set{Slot: "sagaz_outbox", Shards: 4, Generation: 7}, Sinks: []string{"kafka"}}
	plan, err := PlanReplay(t.Context(), db.conn, r)
	if err != nil || plan.Events != 20 {
		t.Fatalf("the plan is %+v, %v", plan, err)
	}
	for _, change := range []string{"shards = 2, generation = 8", "shards = 4, generation = 9"} {
		db.exec(`UPDATE saga_outbox_set SET ` + change)
		if done, err := plan.Run(t.Context(), db.conn, r); !errors.Is(err, ErrSetChanges) || done.N() != 0 {
			t.Errorf("with %s: got %+v, %v", change, done, err)
		}
	}
	db.exec(`UPDATE saga_outbox_set SET generation = 7, target = 2, state = 'draining'`) // they will be moved
	if done, err := plan.Run(t.Context(), db.conn, r); err != nil || done.N() != 20 {
		t.Errorf("got %+v, %v", done, err)
	}
	for _, shard := range r.Set.All() {
		var other int
		if err := db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox_delivery WHERE (slot = '`+shard.Slot+`') <> (`+shard.SQL("partition_key")+`)`).Scan(&other); err != nil || other > 0 {
			t.Errorf("%s: %d entries are in the wrong slot (%v)", shard.Slot, other, err)
		}
	}
}
