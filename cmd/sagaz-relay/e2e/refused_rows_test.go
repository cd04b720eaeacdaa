package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/file"
)

// lettersBox is a file sink's file, read as the order of keys and events.
type lettersBox struct {
	t    testing.TB
	path string
}

func newBox(t testing.TB) lettersBox {
	return lettersBox{t: t, path: filepath.Join(t.TempDir(), "events.jsonl")}
}

func (b lettersBox) env() settings {
	return settings{
		"BROKER_TYPE": "file", "RELAY_FILE_PATH": b.path, "POLL_INTERVAL": "0.1",
		"INITIAL_RETRY_DELAY_SECONDS": "0.1", "RELAY_BACKOFF_MAX": "300ms",
	}
}

// got is how often each event was delivered.
func (b lettersBox) got() map[relay.UUID]int {
	b.t.Helper()
	times := make(map[relay.UUID]int)
	if _, err := os.Stat(b.path); errors.Is(err, os.ErrNotExist) {
		return times // nothing was delivered yet
	}
	for _, ev := range lineEvents(b.t, func(f func(file.Line) error) error { return file.Read(b.path, f) }) {
		times[ev.ID]++
	}
	return times
}

// wantOnce wants each of the events to be there once, and no other.
func (b lettersBox) wantOnce(when string, ids []relay.UUID) {
	b.t.Helper()
	got := b.got()
	for i, id := range ids {
		if got[id] != 1 {
			b.t.Errorf("%s: event %d was delivered %d times, want 1", when, i, got[id])
		}
	}
	if len(got) != len(ids) {
		b.t.Errorf("%s: %d events were delivered, want %d", when, len(got), len(ids))
	}
}

// waitRows waits until so many rows are sent (or gone, which is the same here), and so many are
// unmarked.
func (w *world) waitRows(p *process, all, unmarked int) {
	w.t.Helper()
	eventually(w.t, patience, fmt.Sprintf("%d rows have their marks, and %d are unmarked", all-unmarked, unmarked), func() string {
		open := value[int](w, `SELECT count(*) FROM saga_outbox WHERE status <> 'sent'`)
		entries := value[int](w, `SELECT count(*) FROM saga_outbox_delivery WHERE sink = 'saga_outbox'`)
		if open == unmarked && entries == unmarked {
			return ""
		}
		return p.mustRun(fmt.Sprintf("%d are not marked, %d have entries", open, entries))
	})
}

// waitSlotPasses waits until the slot has passed all that is committed by now.
func (w *world) waitSlotPasses(p *process) {
	w.t.Helper()
	end := value[string](w, `SELECT pg_current_wal_lsn()::text`)
	eventually(w.t, patience, "the slot goes on", func() string {
		if value[bool](w, `SELECT confirmed_flush_lsn >= $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, w.slot, end) {
			return ""
		}
		return p.mustRun("it does not move")
	})
}

// showsUnmarked wants a reason in the verdict and in the metric.
func (p *process) showsUnmarked(rows int, cause string) {
	p.t.Helper()
	eventually(p.t, patience, "the verdict shows the rows", func() string {
		v := p.status().Verdict()
		if slices.ContainsFunc(v.Reasons, func(r string) bool { return strings.Contains(r, "cannot be marked") && strings.Contains(r, cause) }) {
			return ""
		}
		return p.mustRun(fmt.Sprint(v.Reasons))
	})
	want := fmt.Sprint(rows)
	eventually(p.t, patience, "the metric counts them", func() string {
		if got := p.metric(`outbox_unmarked_events{slot="` + p.status().Slots[0].Slot + `"}`); got != want {
			return p.mustRun("it is " + got)
		}
		return ""
	})
}

// A row from before a constraint that was added NOT VALID: it is delivered, and cannot be marked.
// The others are, and a restart repeats nothing. When the constraint is gone, it gets its mark.
func TestRowNextToAnInvalidConstraint(t *testing.T) {
	t.Parallel()
	w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
	w.migrate() // no slot yet: what is there is found by the sweep
	w.exec(`ALTER TABLE saga_outbox ADD COLUMN tenant text`)
	ids := w.insert(row{key: "old", topic: "t"})
	w.exec(`ALTER TABLE saga_outbox ADD CONSTRAINT t CHECK (tenant IS NOT NULL) NOT VALID`)
	w.exec(`ALTER TABLE saga_outbox ALTER tenant SET DEFAULT 'acme'`)
	b := newBox(t)
	p := w.relay("relay", b.env())
	p.waitReady()
	for i := range 20 {
		ids = append(ids, w.insert(row{key: []string{"old", "new"}[i%2], topic: "t"})...)
	}
	w.waitRows(p, 21, 1)
	p.waitStreaming()
	w.waitSlotPasses(p)
	p.showsUnmarked(1, "SQLSTATE 23514: constraint t")
	if lines := p.logged("a row cannot be marked: parked"); len(lines) != 1 || lines[0].text("event_id") != ids[0].String() || lines[0].text("constraint") != "t" {
		t.Errorf("logged %v", lines)
	}
	p.stop()
	b.wantOnce("after the stop", ids)

	p = w.relay("again", b.env())
	p.waitStreaming()
	ids = append(ids, w.insert(row{key: "new", topic: "t"})...)
	w.waitRows(p, 22, 1)
	b.wantOnce("after a restart", ids)
	w.exec(`ALTER TABLE saga_outbox DROP CONSTRAINT t`)
	w.waitRows(p, 22, 0)
	p.stop()
	b.wantOnce("at the end", ids)
}

// Triggers that refuse one row in 250, each with another SQLSTATE, in each way in which rows are
// found and in which they are marked.
func TestRefusedRowsInEveryMode(t *testing.T) {
	t.Parallel()
	codes := []string{"23514", "P0001", "22P02", "42883"}
	for _, mode := range []string{"stream", "sweep", "poll", "hybrid"} {
		for _, mark := range []string{"update", "delete", "archive"} {
			t.Run(mode+" "+mark, func(t *testing.T) {
				t.Parallel()
				w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
				env := settings{"RELAY_MARK": mark}
				switch mode {
				case "poll":
					env["RELAY_MODE"] = "polling"
					w.migrate()
				case "sweep":
					w.migrate()
				default:
					if mode == "hybrid" {
						env["RELAY_HYBRID"] = "true"
					}
					w.migrate("--slot")
				}
				op := map[string]string{"update": "UPDATE", "delete": "UPDATE OR DELETE", "archive": "UPDATE OR DELETE"}[mark]
				w.exec(`CREATE TABLE refused (event_id uuid, code text);
					CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
					DECLARE c text;
					BEGIN
						SELECT code INTO c FROM refused r WHERE r.event_id = OLD.event_id;
						IF FOUND THEN RAISE EXCEPTION USING ERRCODE = c, MESSAGE = '` + w.marker + `', DETAIL = '` + w.marker + `'; END IF;
						IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
						RETURN NEW;
					END $$;
					ALTER TABLE refused OWNER TO ` + w.role + `;
					CREATE TRIGGER refuse BEFORE ` + op + ` ON saga_outbox FOR EACH ROW EXECUTE FUNCTION refuse()`)
				var rows []row
				for i := range 1000 {
					rows = append(rows, row{key: fmt.Sprint("key-", i%40), topic: "t"})
				}
				ids := w.insert(rows...)
				var bad pgx.Batch
				for i, code := range codes {
					bad.Queue(`INSERT INTO refused VALUES ($1, $2)`, [16]byte(ids[i*250]), code)
				}
				if err := w.db.Pool.SendBatch(t.Context(), &bad).Close(); err != nil {
					t.Fatal(err)
				}
				b := newBox(t)
				p := w.relay("relay", b.env().with(env))
				w.waitRows(p, len(ids), len(codes))
				// of the keys of refused ones
				late := w.insert(row{key: "key-0", topic: "t"}, row{key: "key-10", topic: "t"})
				ids = append(ids, late...)
				w.waitRows(p, len(ids), len(codes))
				if mode != "poll" {
					p.waitStreaming()
					w.waitSlotPasses(p)
				}
				p.showsUnmarked(len(codes), "SQLSTATE")
				if mark == "archive" {
					if n := value[int](w, `SELECT count(*) FROM saga_outbox_archive`); n != len(ids)-len(codes) {
						t.Errorf("%d rows are archived", n)
					}
				}
				p.stop()
				b.wantOnce("after the stop", ids)
				b.wantOrder(ids)

				p = w.relay("again", b.env().with(env))
				ids = append(ids, w.insert(row{key: "key-0", topic: "t"})...)
				w.waitRows(p, len(ids), len(codes))
				w.exec(`DELETE FROM refused`)
				w.waitRows(p, len(ids), 0)
				p.stop()
				b.wantOnce("at the end", ids)
			})
		}
	}
}

// wantOrder wants the events of each key in the order of their insertion.
func (b lettersBox) wantOrder(ids []relay.UUID) {
	b.t.Helper()
	nth := make(map[relay.UUID]int)
	for i, id := range ids {
		nth[id] = i
	}
	last := make(map[string]int)
	for _, ev := range lineEvents(b.t, func(f func(file.Line) error) error { return file.Read(b.path, f) }) {
		if before, is := last[ev.Key]; is && nth[ev.ID] < before {
			b.t.Errorf("key %s: event %d came after event %d", ev.Key, nth[ev.ID], before)
		}
		last[ev.Key] = nth[ev.ID]
	}
}

// The relay is killed between the publish and the entry: the event is delivered again, and unmarked
// then.
func TestKilledBeforeARefusedRowHasItsEntry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := newBox(t)
	// A lock on the relay's own row keeps every transaction of marks and entries waiting.
	p := w.relay("relay", b.env().with(settings{"RELAY_LEASE_TTL": "60s"}))
	p.waitStreaming()
	w.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
		CREATE TRIGGER refuse BEFORE UPDATE ON saga_outbox FOR EACH ROW WHEN (OLD.aggregate_id = 'bad') EXECUTE FUNCTION refuse()`)
	conn := w.db.Conn(t)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM saga_outbox_relay FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	ids := w.insert(row{key: "bad", topic: "t"})
	eventually(t, patience, "the event is delivered", func() string {
		if b.got()[ids[0]] == 1 {
			return ""
		}
		return p.mustRun("not yet")
	})
	p.crash()
	closeQuietly(conn)
	if n := value[int](w, `SELECT count(*) FROM saga_outbox_delivery`); n != 0 {
		t.Fatalf("%d entries", n)
	}
	p = w.relay("again", b.env())
	ids = append(ids, w.insert(row{key: "bad", topic: "t"}, row{key: "good", topic: "t"})...)
	w.waitRows(p, 3, 2)
	p.crash() // after the entry is there, nothing is repeated
	w.waitGone()
	p = w.relay("third", b.env())
	p.waitStreaming()
	w.insert(row{key: "good", topic: "t"})
	w.waitRows(p, 4, 2)
	p.stop()
	if got := b.got(); got[ids[0]] != 2 || got[ids[1]] != 1 || got[ids[2]] != 1 {
		t.Errorf("delivered %d, %d and %d times, want 2, 1 and 1", got[ids[0]], got[ids[1]], got[ids[2]])
	}
}

// Somebody holds rows FOR UPDATE: 20,000 further events are delivered and marked, the slot goes on,
// and the relay reports who it is. In polling, too.
func TestRowsThatSomebodyHolds(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cdc", "polling"} {
		for _, held := range []int{1, 50} {
			t.Run(fmt.Sprintf("%s, %d", mode, held), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				var rows []row
				for i := range held {
					rows = append(rows, row{key: fmt.Sprint("held-", i%7), topic: "t"})
				}
				ids := w.insert(rows...)
				conn := w.db.Conn(t)
				defer closeQuietly(conn)
				tx, err := conn.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(t.Context(), `SELECT FROM saga_outbox FOR UPDATE`); err != nil {
					t.Fatal(err)
				}
				b := newBox(t)
				env := b.env().with(settings{"RELAY_MODE": mode, "RELAY_INFLIGHT_EVENTS": "2000"})
				p := w.relay("relay", env)
				p.waitReady()
				const more = 20_000
				w.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload)
					SELECT gen_random_uuid(), 'saga', 'order', 'more-' || i % 100, 't', '{}' FROM generate_series(1, $1::int) AS i`, more)
				w.waitRows(p, held+more, held)
				if mode == "cdc" {
					w.waitSlotPasses(p)
				}
				p.showsUnmarked(held, fmt.Sprintf("locked by pid %d", conn.PgConn().PID()))
				if err := tx.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
				w.waitRows(p, held+more, 0)
				p.stop()
				got := b.got()
				for _, id := range ids {
					if got[id] != 1 {
						t.Errorf("a row that was held was delivered %d times", got[id])
					}
				}
				if len(got) != held+more {
					t.Errorf("%d events were delivered, want %d", len(got), held+more)
				}
			})
		}
	}
}
