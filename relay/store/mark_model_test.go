package store

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

var markSeed = flag.Uint64("markseed", 0, "the history of marks to run; 0: some fixed ones")

// Random histories of transactions that end in any order, locks, rows that refuse their marks, and
// batches. After each Mark, what a crash would leave without a mark or an entry is a suffix of each
// key, and only what has to wait is not marked.
func TestMarkRandomHistories(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		exec(t, db, `CREATE TABLE refused (event_id uuid);
			CREATE FUNCTION refuse_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF EXISTS (SELECT FROM public.refused r WHERE r.event_id = OLD.event_id) THEN RAISE check_violation; END IF;
				IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
				RETURN NEW;
			END $$;
			CREATE TRIGGER refuse_it BEFORE UPDATE OR DELETE ON saga_outbox FOR EACH ROW EXECUTE FUNCTION refuse_it()`)
		conn := db.Conn(t)
		seeds := []uint64{2, 8} // one by ids, one by pages
		if *markSeed != 0 {
			seeds = []uint64{*markSeed}
		}
		for _, seed := range seeds {
			for i, mode := range []string{MarkUpdate, MarkDelete, MarkArchive, MarkUpdate} {
				cfg := withMark(db, mode)
				cfg.Hybrid = i == 3
				s := newStore(t, cfg, nil)
				if seed%4 == 0 {
					s.nearLeast = 1
				}
				l := acquire(t, s, "outbox")
				h := &markHistory{t: t, db: db, conn: conn, l: l, r: rand.New(rand.NewPCG(seed, uint64(i))), state: make(map[relay.UUID]*markState)}
				h.what = fmt.Sprintf("-markseed=%d, %s, hybrid %t", seed, mode, cfg.Hybrid)
				h.run()
				release(t, l)
				exec(t, db, `TRUNCATE saga_outbox, saga_outbox_archive, saga_outbox_delivery, refused`)
			}
		}
	})
}

// markState is what the model knows of an event.
type markState struct {
	open, locked bool // its transaction has not ended; its row is locked
	done         bool // Mark has returned it as done
}

// markHistory is one history and its model.
type markHistory struct {
	t     *testing.T
	db    *pgtest.DB
	conn  *pgx.Conn
	l     *lease
	r     *rand.Rand
	what  string
	all   []relay.Mark // delivered, in order
	state map[relay.UUID]*markState
	open  []func() // end transactions
}

func (h *markHistory) run() {
	if err := h.l.with(h.t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SET lock_timeout = 20`)
		return err
	}); err != nil {
		h.t.Fatal(err)
	}
	for range 50 {
		switch op := h.r.IntN(10); {
		case op < 3:
			h.insert()
		case op < 4:
			h.lock()
		case op < 6:
			h.end()
		default:
			h.mark(h.r.IntN(4) == 0)
		}
	}
	for len(h.open) > 0 {
		h.end()
	}
	h.mark(true)
	for _, m := range h.all {
		if !h.state[m.ID].done {
			h.t.Fatalf("%s: %d of key %s is not marked though nothing is in its way", h.what, m.Position, m.Key)
		}
	}
}

// begin begins a transaction that ends when its turn has come.
func (h *markHistory) begin(ended func()) pgx.Tx {
	if len(h.open) > 4 {
		h.end()
	}
	conn := h.db.Conn(h.t)
	tx, err := conn.Begin(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	h.open = append(h.open, func() {
		if err := tx.Commit(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
		conn.Close(h.t.Context())
		ended()
	})
	return tx
}

func (h *markHistory) end() {
	if len(h.open) > 0 {
		i := h.r.IntN(len(h.open))
		h.open[i]()
		h.open = slices.Delete(h.open, i, i+1)
	}
}

func (h *markHistory) insert() {
	var theirs []*markState
	tx := h.begin(func() {
		for _, s := range theirs {
			s.open = false
		}
	})
	from := len(h.all) + 1
	for n := from; n <= from+h.r.IntN(4); n++ {
		if _, err := tx.Exec(h.t.Context(), insertSQL, n, n); err != nil {
			h.t.Fatal(err)
		}
		if h.r.IntN(12) == 0 {
			exec(h.t, h.db, `INSERT INTO refused VALUES ($1)`, id(n).String())
		}
		xid := value[uint32](h.t, tx, `SELECT (pg_current_xact_id()::text::bigint & 4294967295)::bigint`)
		m := ofKey(marksOf([]relay.Event{{ID: id(n), XID: xid}}), string(rune('a'+h.r.IntN(3))))
		switch h.r.IntN(8) {
		case 0:
			parking(m, refusal("kafka", "no"))
		case 1:
			parking(m, held("kafka"))
		}
		s := &markState{open: true}
		theirs, h.state[m[0].ID] = append(theirs, s), s
		h.all = append(h.all, m...)
	}
	if h.r.IntN(3) == 0 {
		last := len(h.open) - 1
		h.open[last]()
		h.open = h.open[:last]
	}
}

// lock takes the lock of a row that is not locked yet, of one strength or the other.
func (h *markHistory) lock() {
	var free []relay.UUID
	for i := range h.all {
		if s := h.state[h.all[i].ID]; !s.open && !s.locked && !s.done {
			free = append(free, h.all[i].ID)
		}
	}
	if len(free) == 0 {
		return
	}
	row := free[h.r.IntN(len(free))]
	s := h.state[row]
	s.locked = true
	tx := h.begin(func() { s.locked = false })
	if _, err := tx.Exec(h.t.Context(), `SELECT FROM saga_outbox WHERE event_id = $1 FOR `+[]string{"UPDATE", "NO KEY UPDATE", "KEY SHARE"}[h.r.IntN(3)], row.String()); err != nil {
		h.t.Fatal(err)
	}
}

// mark marks some of what is to be marked, or all.
func (h *markHistory) mark(all bool) {
	most, none := 1+h.r.IntN(12), h.r.IntN(9)
	var batch []relay.Mark
	for _, m := range h.all {
		if !h.state[m.ID].done && (all || len(batch) < most && m.Key != string(rune('a'+none))) {
			batch = append(batch, m)
		}
	}
	h.l.left.mu.Lock()
	for row := range h.l.left.locked { // some have been locked for long
		if h.r.IntN(4) == 0 {
			h.l.left.locked[row] = time.Now().Add(-time.Hour)
		}
	}
	h.l.left.mu.Unlock()
	later, err := h.l.Mark(h.t.Context(), relay.MarkBatch{Marks: batch})
	if err != nil {
		h.t.Fatalf("%s: %v", h.what, err)
	}
	waits := make(map[string]bool) // keys of which something cannot be marked
	for i, m := range batch {
		s := h.state[m.ID]
		waits[m.Key] = waits[m.Key] || s.open || s.locked
		s.done = !slices.Contains(later, i)
		if !s.done && !waits[m.Key] {
			h.t.Errorf("%s: %d of key %s is for later, and nothing is in its way", h.what, m.Position, m.Key)
		}
	}
	h.check()
}

// check looks at the tables as the next owner would.
func (h *markHistory) check() {
	marked := make(map[relay.UUID]bool)
	for i := range h.all {
		marked[h.all[i].ID] = !h.state[h.all[i].ID].open // what is not there is gone
	}
	var row [16]byte
	var is bool
	for _, sql := range []string{`SELECT event_id, status IN ('sent', 'failed', 'dead_letter') FROM saga_outbox`, `SELECT event_id, true FROM saga_outbox_delivery`} {
		if err := each(h.t.Context(), h.conn, []any{&row, &is}, func() error { marked[row] = is; return nil }, sql); err != nil {
			h.t.Fatal(err)
		}
	}
	first := make(map[string]int64) // by key, the first without a mark
	for _, m := range h.all {
		before, is := first[m.Key]
		switch {
		case !marked[m.ID] && h.state[m.ID].done:
			h.t.Errorf("%s: %d of key %s has no mark and is not for later", h.what, m.Position, m.Key)
		case marked[m.ID] && is:
			h.t.Errorf("%s: %d of key %s is marked before %d", h.what, m.Position, m.Key, before)
		case !marked[m.ID] && !is:
			first[m.Key] = m.Position
		}
	}
	if h.t.Failed() {
		h.t.FailNow()
	}
}
