package store

import (
	"sync"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// dividesTable reports whether the server of a test can divide a table.
func dividesTable(db *pgtest.DB) bool { return db.Version >= "15" }

// Whoever comes first decides how the table is divided; all others find that.
func TestMakeSet(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		read := func() *TableSet {
			t.Helper()
			set, err := ReadSet(t.Context(), db.Conn(t))
			if err != nil {
				t.Fatal(err)
			}
			return set
		}
		upgraded := func() *TableSet {
			t.Helper()
			exec(t, db, `DELETE FROM saga_outbox_set`)
			exec(t, db, `INSERT INTO saga_outbox_relay (slot, epoch, owner) VALUES ('x', 3, 'of the version before')`)
			old, err := MakeSet(t.Context(), db.Conn(t), relay.Set{Slot: "x", Publication: "p", Shards: 4})
			if err != nil || old.Shards != 1 {
				t.Fatalf("where relays of the version before have worked: %+v, %v; want one slot", old, err)
			}
			return old
		}
		if got := read(); got != nil {
			t.Fatalf("a set before anybody made it: %+v", got)
		}
		if _, err := MakeSet(t.Context(), db.Conn(t), relay.Set{Slot: "x", Publication: "p", Shards: 4}); !dividesTable(db) {
			wantSetup(t, err, "4 slots", "PostgreSQL 14", "RELAY_SHARDS=1")
			one := upgraded()
			if again, err := MakeSet(t.Context(), db.Conn(t), relay.Set{Slot: "x", Publication: "p", Shards: 4}); err != nil || *again != *one {
				t.Errorf("once there is a set, another number is no error: %+v, %v; want %+v", again, err, one)
			}
			return
		}
		exec(t, db, `DELETE FROM saga_outbox_set`)
		var all sync.WaitGroup
		for _, shards := range []int{2, 3, 4, 5} {
			conn := db.Conn(t)
			all.Go(func() {
				if _, err := MakeSet(t.Context(), conn, relay.Set{Slot: "x", Publication: "p", Shards: shards}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		first := read()
		if first == nil || first.Slot != "x" || first.Publication != "p" || first.Shards < 2 || first.Generation != 1 || first.Target != 0 {
			t.Fatalf("the set: %+v", first)
		}
		again, err := MakeSet(t.Context(), db.Conn(t), relay.Set{Slot: "y", Publication: "q", Shards: 7})
		if err != nil || *again != *first {
			t.Errorf("made again: %+v, %v; want %+v", again, err, first)
		}

		upgraded()
	})
}
