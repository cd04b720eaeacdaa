package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// parkAll makes ledger entries of Kafka for n rows, of which each ten are a key.
func parkAll(t *testing.T, db *pgtest.DB, l *lease, n int) []relay.Mark {
	t.Helper()
	marks := marksOf(insert(t, db, 1, n))
	for i := range marks {
		ofKey(marks[i:i+1], fmt.Sprintf("key-%d", i/10))
		marks[i].Parked = []relay.Parked{{Sink: "kafka", State: relay.StateHeld, Reason: relay.ReasonSinkDown}}
	}
	mark(t, l, marks)
	return marks
}

// drain offers what is due until nothing is, delivers it, and returns how often each row was
// offered and in which order its key came.
func drain(t *testing.T, l *lease, fate func(n int) relay.Outcome, rounds int) (offered map[relay.UUID]int, order map[string][]int64) {
	t.Helper()
	offered, order = make(map[relay.UUID]int), make(map[string][]int64)
	for range rounds {
		due, _, err := l.Due(t.Context(), "kafka", 500, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(due) == 0 {
			return offered, order
		}
		var outcomes []relay.Outcome
		for i := range due {
			o := fate(int(due[i].Position))
			o.Entry = &due[i]
			outcomes = append(outcomes, o)
			if offered[due[i].Event.ID]++; offered[due[i].Event.ID] == 1 {
				order[due[i].Event.AggregateID] = append(order[due[i].Event.AggregateID], due[i].Position)
			}
		}
		for err = l.Resolve(t.Context(), "kafka", outcomes); err != nil; err = l.Resolve(t.Context(), "kafka", outcomes) {
			time.Sleep(100 * time.Millisecond)
		}
	}
	return offered, order
}

// The ledger's writes meet rows and entries that the database refuses, each with another SQLSTATE.
// All others go on, in order, and nothing is offered again that was delivered.
func TestResolveParksWhatIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, table, when string
		memory            bool
	}{
		{"the row's update", "saga_outbox", "UPDATE", false},
		{"the entry's delete", "saga_outbox_delivery", "DELETE", false},
		{"the entry's delete and update", "saga_outbox_delivery", "UPDATE OR DELETE", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, db *pgtest.DB) {
				l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
				const n = 500
				parkAll(t, db, l, n)
				codes := map[int]string{1: "23514", 5: "P0001", 250: "XX001", 251: "22001", 499: "42703", 500: "40001"}
				refusing(t, db, c.table, strings.ReplaceAll(c.when, "UPDATE OR DELETE", "DELETE"), codes)
				if c.memory {
					exec(t, db, `CREATE TRIGGER refuse_too BEFORE UPDATE ON saga_outbox_delivery FOR EACH ROW EXECUTE FUNCTION refuse_it()`)
				}
				offered, order := drain(t, l, func(int) relay.Outcome { return relay.Outcome{Fate: relay.FateDelivered} }, 20)
				if len(offered) != n {
					t.Errorf("%d events were offered, want %d", len(offered), n)
				}
				for id, times := range offered {
					if times != 1 {
						t.Errorf("%s was offered %d times", id, times)
					}
				}
				for key, positions := range order {
					if !slices.IsSorted(positions) {
						t.Errorf("key %s came in the order %v", key, positions)
					}
				}
				if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox WHERE status = 'sent'`); got != n-len(codes) {
					t.Errorf("%d rows say sent, want %d", got, n-len(codes))
				}
				u, err := l.Remark(t.Context())
				if err != nil || u.Events != len(codes) || (u.Memory > 0) != c.memory {
					t.Errorf("%+v, %v", u, err)
				}
				if found := sweepAll(t, l); len(found) != 0 {
					t.Errorf("the sweep finds %d rows", len(found))
				}
				exec(t, db, `DELETE FROM refused`)
				l.left.next = time.Now()
				if u := remarkNow(t, db, l); u.Events != 0 || counts(t, db) != "500 sent" {
					t.Errorf("healed: %+v, rows %s", u, counts(t, db))
				}
				if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox_delivery`); got != 0 {
					t.Errorf("%d entries are left", got)
				}
			})
		})
	}
}

// An entry that cannot be updated is refused again: it is replaced, and its key is held behind it
// as it should.
func TestResolveRefusedAgain(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		parkAll(t, db, l, 20)
		refusing(t, db, "saga_outbox_delivery", "UPDATE", map[int]string{3: "23514"})
		offered, _ := drain(t, l, func(n int) relay.Outcome {
			if n == 3 {
				return relay.Outcome{Fate: relay.FateRefused, Reason: relay.ReasonRejected, Error: "no", Attempts: 1, Delay: time.Hour}
			}
			if n > 3 && n <= 10 { // as the lanes do: not offered behind a refused one
				return relay.Outcome{Fate: relay.FateRefused, Reason: relay.ReasonSinkDown, Attempts: 0, Delay: time.Hour}
			}
			return relay.Outcome{Fate: relay.FateDelivered}
		}, 20)
		if len(offered) != 20 {
			t.Errorf("%d were offered", len(offered))
		}
		if got := value[string](t, db.Pool, `SELECT format('%s %s %s %s', state, attempts, reason, next_attempt_at > now()) FROM saga_outbox_delivery WHERE event_id = $1 AND sink = 'kafka'`, id(3).String()); got != "retry 1 rejected t" {
			t.Errorf("entry 3: %s", got)
		}
		if got := counts(t, db); got != "1 failed, 7 pending, 12 sent" {
			t.Errorf("rows: %s", got)
		}
	})
}

// In hybrid mode rows are claimed before they are delivered. One that refuses that is delivered all
// the same, and parked at its mark; so is one that has been locked for long.
func TestClaimOfRefusedAndLockedRows(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		cfg := testConfig(db)
		cfg.Hybrid = true
		l := acquire(t, newStore(t, cfg, nil), "outbox")
		events := insert(t, db, 1, 500)
		refusing(t, db, "saga_outbox", "UPDATE", map[int]string{1: "23514", 100: "P0001", 500: "22P02"})
		conn := db.Conn(t)
		defer conn.Close(t.Context())
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `SELECT FROM saga_outbox WHERE event_id = $1 FOR UPDATE`, id(7).String()); err != nil {
			t.Fatal(err)
		}
		var is []bool
		for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
			if is, err = l.Settled(t.Context(), events); err == nil || time.Since(began) > time.Minute {
				break
			}
		}
		if err != nil || slices.Contains(is, true) {
			t.Fatalf("settled %v, %v; want none", slices.Index(is, true), err)
		}
		if got := counts(t, db); got != "496 claimed, 4 pending" {
			t.Errorf("rows: %s", got)
		}
		markAll(t, l, marksOf(events))
		if got := counts(t, db); got != "4 pending, 496 sent" {
			t.Errorf("rows: %s", got)
		}
		if is := settled(t, l, events); slices.Contains(is, false) {
			t.Errorf("event %d is not settled", slices.Index(is, false)+1)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// Retention removes what it can, though other tables keep some of the rows.
func TestPruneLeavesOutWhatIsRefused(t *testing.T) {
	for _, archive := range []bool{false, true} {
		t.Run(fmt.Sprint("archive=", archive), func(t *testing.T) {
			onEach(t, func(t *testing.T, db *pgtest.DB) {
				l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
				insert(t, db, 1, 1000)
				exec(t, db, `UPDATE saga_outbox SET status = 'sent', sent_at = now() - interval '1 day', created_at = now() - interval '1 day'`)
				exec(t, db, `CREATE TABLE audit (event_id uuid REFERENCES saga_outbox)`)
				for _, n := range []int{1, 2, 500, 1000} {
					exec(t, db, `INSERT INTO audit VALUES ($1)`, id(n).String())
				}
				all := 0
				for range 20 {
					n, err := l.Prune(t.Context(), time.Hour, archive, 100)
					if err != nil {
						t.Fatal(err)
					}
					all += n
				}
				if got := counts(t, db); all != 996 || got != "4 sent" {
					t.Errorf("%d removed, rows: %s", all, got)
				}
				exec(t, db, `DROP INDEX idx_outbox_pending`) // by place, too
				for range 3 {
					if n, err := l.Prune(t.Context(), time.Hour, archive, 100); err != nil || n != 0 {
						t.Errorf("%d removed, %v", n, err)
					}
				}
			})
		})
	}
}

// Dead letters that a person wants delivered again are set back to retry, but for the one whose
// entry refuses it.
func TestReviveOfRefusedEntries(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		marks := marksOf(insert(t, db, 1, 100))
		for i := range marks {
			marks[i].Parked = []relay.Parked{{Sink: "kafka", State: relay.StateDead, Detached: true, Reason: relay.ReasonRejected, Error: "no", Attempts: 5}}
		}
		mark(t, l, marks)
		refusing(t, db, "saga_outbox_delivery", "UPDATE", map[int]string{50: "23514"})
		exec(t, db, `UPDATE saga_outbox SET status = 'pending'`)
		if found := sweepAll(t, l); len(found) != 0 {
			t.Errorf("the sweep finds %d rows", len(found))
		}
		if got := value[string](t, db.Pool, `SELECT string_agg(format('%s %s', n, state), ', ' ORDER BY state) FROM (SELECT state, count(*) n FROM saga_outbox_delivery GROUP BY 1) c`); got != "1 dead, 99 retry" {
			t.Errorf("entries: %s", got)
		}
	})
}
