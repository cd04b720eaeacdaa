package cdc

import (
	"errors"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// The primary dies and the standby takes its place. With a slot that the standby has copied the
// stream goes on where it was; without, the slot is missing.
func TestFailover(t *testing.T) {
	t.Parallel()
	for _, synced := range []bool{true, false} {
		t.Run(map[bool]string{true: "slot synced", false: "slot not synced"}[synced], func(t *testing.T) {
			t.Parallel()
			pair := pgtest.NewPair(t, nil)
			db := pair.New(t, pgtest.Migrated())
			cfg := quick(db.DSN)
			cfg.Failover = synced
			a := &accident{t: t, db: db, src: newSource(t, cfg), in: newIntake(t)}
			a.run = start(t, a.src, db.Name, a.in)
			insert(t, db, "before")
			a.in.wait(1)
			if synced {
				pair.WaitSynced(t, db.Name)
			}
			standby := newSource(t, config(pair.Standby.DSN(db.Name)))
			var setup *relay.SetupError
			err := standby.Check(t.Context(), whole("unused").Set)
			// it has not replayed the database yet
			for tries := 0; !errors.Is(err, sessions.ErrStandby) && tries < 100; tries++ {
				time.Sleep(100 * time.Millisecond)
				err = standby.Check(t.Context(), whole("unused").Set)
			}
			if !errors.Is(err, sessions.ErrStandby) || errors.As(err, &setup) {
				t.Errorf("Check of the standby: got %v, want %v, which passes", err, sessions.ErrStandby)
			}
			a.in.pin()
			known := a.in.Watermark()
			insert(t, db, "open")
			a.in.wait(2)
			pair.WaitReplayed(t)
			pair.Failover(t)
			if err := a.run.ended(); err == nil || errors.As(err, &setup) {
				t.Errorf("Run: got %v, want an error that passes", err)
			}
			insert(t, db, "meanwhile")
			if !synced {
				wantGone(t, a.open(a.src, known), db.Name, relay.GoneMissing)
				a.recovers(a.src)
				return
			}
			st, err := a.src.Open(t.Context(), whole(db.Name), known)
			if err != nil {
				t.Fatal(err)
			}
			in := newIntake(t)
			r := run(t, st, in)
			events := in.until("the event committed after the failover", func() bool {
				return len(in.events) > 0 && in.events[len(in.events)-1].AggregateID == "meanwhile"
			})
			// before, if the copy was behind
			if got := keys(events); got != "open meanwhile" && got != "before open meanwhile" {
				t.Errorf("got %s, want open meanwhile", got)
			}
			// Its position moves on the new primary as on the old one.
			db.Until(t, `SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`, in.Watermark().String(), db.Name)
			r.alive()
		})
	}
}
