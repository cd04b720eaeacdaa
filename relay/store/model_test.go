package store

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/ledgertest"
	"github.com/sagaz-relay/relay/relay/repair"
)

var (
	histories = flag.Int("histories", 1500, "random histories of the ledger that TestLedgerModel goes through")
	modelSeed = flag.Uint64("model-seed", 0, "of TestLedgerModel; 0: another one each time")
)

// The ledger's SQL and its plain twin (relay/ledgertest) go through the same random histories, each
// of one key at several sinks. Events are parked in any order of their positions, refused,
// delivered, given up, retried and discarded by a person, and replayed. Owners change, marks are
// repeated, slots renamed, sinks come and go. After every step both must offer the same, and at the
// end nothing may be left but what is held behind a dead letter.
//
// Many histories share a database and each statement, because they share no key.
func TestLedgerModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("go test ./relay/store -run TestLedgerModel -args -histories=%d -model-seed=%d", *histories, seed)
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		m := &model{t: t, db: db, rng: rand.New(rand.NewPCG(seed, 1)), slot: "outbox"}
		m.conn = db.Conn(t)
		defer m.conn.Close(context.Background())
		for left := *histories; left > 0; left -= len(m.keys) {
			m.begin(min(left, 1000))
			for round := range 6 {
				m.step(round)
			}
			m.end()
			if t.Failed() {
				return
			}
		}
		t.Logf("%d entries were offered", m.offered)
	})
}

type model struct {
	t      *testing.T
	db     *pgtest.DB
	conn   *pgx.Conn
	rng    *rand.Rand
	slot   string
	lease  *lease
	keys   []*history
	byKey  map[string]*history
	events int   // in the table
	place  int64 // the newest position
	now    time.Time
	gone   map[relay.UUID]bool
	last   []relay.Mark // to be written at the end

	offered, failures int
}

// history is what happens to one key.
type history struct {
	key    string
	ledger ledgertest.Ledger
	lane   []relay.Mark // on offer: they have a position, and are not parked yet
	sent   []relay.UUID // delivered to all
	story  []string     // for a failure
}

var modelSinks = []string{"kafka", "rabbitmq", "file"}

func (m *model) begin(n int) {
	m.keys, m.byKey, m.gone = nil, make(map[string]*history), make(map[relay.UUID]bool)
	exec(m.t, m.db, `TRUNCATE saga_outbox, saga_outbox_delivery`)
	m.events = 0
	for i := range n {
		h := &history{key: fmt.Sprint("key", i)}
		m.keys, m.byKey[h.key] = append(m.keys, h), h
	}
	m.own()
}

// own takes the lease, from the last owner if there is one, and does what an engine does first.
func (m *model) own() {
	if m.lease != nil {
		release(m.t, m.lease)
	}
	s := newStore(m.t, testConfig(m.db), nil)
	s.bounds = bounds{held: 1, freed: 1, ofKey: 1 + m.rng.IntN(3)}
	if m.percent(40) { // RELAY_SLOT was changed
		m.slot = []string{"outbox", "renamed", "again"}[m.rng.IntN(3)]
	}
	m.lease = acquire(m.t, s, m.slot)
	m.place = m.lease.LastPosition()
	for _, h := range m.keys {
		for _, e := range h.ledger.Entries {
			if e.Position > m.place {
				m.fail(h, "the new owner counts on from %d, and %d is in the ledger", m.place, e.Position)
			}
		}
		// What was on offer is streamed again, behind what is in the ledger.
		slices.SortFunc(h.lane, func(a, b relay.Mark) int { return cmp.Compare(a.Position, b.Position) })
		for i := range h.lane {
			m.place++
			h.lane[i].Position = m.place
		}
	}
}

func (m *model) heal() (freed int) {
	for _, sink := range modelSinks {
		for from := int32(math.MinInt32); ; {
			n, next, err := m.lease.Heal(m.t.Context(), sink, from)
			if err != nil {
				m.t.Fatal(err)
			}
			if freed += n; next == math.MinInt32 {
				break
			}
			from = next
		}
	}
	return freed
}

// percent is true in so many cases of a hundred.
func (m *model) percent(n int) bool { return m.rng.IntN(100) < n }

func (m *model) step(round int) {
	m.now = time.Now()
	if round > 0 && m.percent(40) {
		m.own()
	}
	m.park(round)
	m.person()
	m.timePasses(30)
	for i, sink := range modelSinks {
		if i < 2 || round%3 != 0 { // the third is out of the configuration now and then
			m.offer(sink, 0)
		}
	}
	m.replay()
}

// insertRows makes rows of the table, one for each of the histories, and returns the number of the
// first.
func (m *model) insertRows(of []*history) (first int) {
	keys := make([]string, len(of))
	for i, h := range of {
		keys[i] = h.key
	}
	first = m.events + 1
	_, err := m.conn.Exec(m.t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
		SELECT ('00000000-0000-0000-0000-' || lpad(to_hex($2 + i), 12, '0'))::uuid, 's', k, 'Tested', '{}' FROM unnest($1::text[]) WITH ORDINALITY AS u (k, i)`, keys, int64(m.events))
	if err != nil {
		m.t.Fatal(err)
	}
	m.events += len(of)
	return first
}

func (m *model) park(round int) {
	var fresh []*history
	for _, h := range m.keys {
		if m.percent(60) || round == 0 {
			for range 1 + m.rng.IntN(3) {
				fresh = append(fresh, h)
			}
		}
	}
	next := m.insertRows(fresh)
	for _, h := range fresh {
		m.place++
		h.lane = append(h.lane, relay.Mark{ID: id(next), EventType: "Tested", Key: h.key, KeyHash: relay.KeyHash(h.key), Position: m.place})
		next++
	}
	var marks []relay.Mark
	for _, h := range m.keys {
		// Whatever the lane does: each of its events may come to the ledger before the others of
		// its key.
		m.rng.Shuffle(len(h.lane), func(i, j int) { h.lane[i], h.lane[j] = h.lane[j], h.lane[i] })
		for len(h.lane) > 0 && m.percent(75) {
			mark := h.lane[0]
			h.lane = h.lane[1:]
			for _, sink := range modelSinks {
				if m.percent(60) || len(mark.Parked) == 0 {
					mark.Parked = append(mark.Parked, m.parked(sink))
				}
			}
			h.note("park %d %s", mark.Position, states(mark.Parked))
			h.ledger.Park(&mark, m.now)
			marks = append(marks, mark)
		}
	}
	for len(marks) > 0 {
		n := min(len(marks), 1+m.rng.IntN(1000))
		for range 1 + m.rng.IntN(2) { // the answer is lost
			mark(m.t, m.lease, marks[:n])
		}
		marks = marks[n:]
	}
}

func (m *model) parked(sink string) relay.Parked {
	p := relay.Parked{Sink: sink, State: relay.StateHeld}
	switch n := m.rng.IntN(100); {
	case n < 15:
		p.State, p.Delay, p.Attempts = relay.StateRetry, time.Hour, 1
	case n < 25:
		p.State, p.Delay, p.Attempts = relay.StateRetry, time.Microsecond, 1
	case n < 30:
		p.State, p.Detached, p.Attempts = relay.StateDead, true, 1
	case n < 34:
		p.State, p.Attempts = relay.StateDead, 1
	}
	if p.State != relay.StateHeld {
		p.Reason, p.Error = relay.ReasonRejected, "no"
	}
	return p
}

// person has some letters retried and discarded, and deletes rows.
func (m *model) person() {
	var retry, discard []relay.UUID
	var deleted uuids
	for _, h := range m.keys {
		if len(h.ledger.Entries) == 0 || !m.percent(25) {
			continue
		}
		chosen := h.ledger.Entries[m.rng.IntN(len(h.ledger.Entries))]
		switch n := m.rng.IntN(10); {
		case n < 5:
			retry = append(retry, chosen.ID)
			h.note("retry %d", chosen.Position)
			for _, e := range h.ledger.Of(chosen.ID) {
				h.ledger.Retry(e, m.now)
			}
		case n < 9:
			discard = append(discard, chosen.ID)
			h.note("discard %d", chosen.Position)
			for _, e := range h.ledger.Of(chosen.ID) {
				h.ledger.Discard(e)
			}
		default:
			deleted = append(deleted, chosen.ID)
			h.note("delete %d", chosen.Position)
			m.gone[chosen.ID] = true
		}
	}
	if len(retry) > 0 {
		if _, err := repair.Retry(m.t.Context(), m.conn, repair.Filter{State: repair.StateAll, EventIDs: retry}, false); err != nil {
			m.t.Fatal(err)
		}
	}
	if len(discard) > 0 {
		if _, err := repair.Discard(m.t.Context(), m.conn, repair.Filter{State: repair.StateAll, EventIDs: discard}, false); err != nil {
			m.t.Fatal(err)
		}
	}
	if len(deleted) > 0 {
		if _, err := m.conn.Exec(m.t.Context(), `DELETE FROM saga_outbox WHERE event_id = ANY($1)`, deleted); err != nil {
			m.t.Fatal(err)
		}
	}
}

// timePasses makes the next attempts of some keys due.
func (m *model) timePasses(percent int) {
	var keys []string
	for _, h := range m.keys {
		if !m.percent(percent) {
			continue
		}
		keys = append(keys, h.key)
		h.note("time passes")
		for _, e := range h.ledger.Entries {
			if !e.Next.IsZero() {
				e.Next = m.now.Add(-time.Second)
			}
		}
	}
	exec(m.t, m.db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() - interval '1 s' WHERE next_attempt_at IS NOT NULL AND partition_key = ANY($1)`, keys)
}

// offer makes one round for a sink, after it has compared what is due. With all it takes whatever
// is offered.
func (m *model) offer(sink string, all int) (resolved int) {
	m.now = time.Now().Add(time.Millisecond)
	due, _, err := m.lease.Due(m.t.Context(), sink, 1<<20, 1<<30)
	if err != nil {
		m.t.Fatal(err)
	}
	m.offered += len(due)
	of := make(map[string][]*relay.Entry)
	for i := range due {
		of[due[i].Event.AggregateID] = append(of[due[i].Event.AggregateID], &due[i])
	}
	var outcomes []relay.Outcome
	for _, h := range m.keys {
		m.compare(h, sink, of[h.key])
		halted := false
		for _, e := range of[h.key] {
			o := relay.Outcome{Entry: e}
			switch n := m.rng.IntN(100); {
			case e.Gone || e.Discarded:
				o.Fate = relay.FateDropped
			case !e.Detached && halted:
				continue
			case all > 0 || n < 65:
				o.Fate = relay.FateDelivered
			case n < 75:
				o.Fate, o.Delay = relay.FateRefused, time.Hour
			case n < 82:
				o.Fate, o.Delay = relay.FateRefused, time.Microsecond
			case n < 87:
				o.Fate, o.Detach = relay.FateDead, true
			case n < 90:
				o.Fate = relay.FateDead
			default: // not taken
				halted = true
				continue
			}
			if o.Fate == relay.FateRefused || o.Fate == relay.FateDead {
				o.Reason, o.Error, o.Attempts = relay.ReasonRejected, "no", e.Attempts+1
				halted = halted || !e.Detached && !o.Detach
			}
			h.note("%s: %d becomes %d", sink, e.Position, o.Fate)
			if !h.ledger.Resolve(sink, &o, m.now) {
				m.fail(h, "%s was offered %d, which the twin has not", sink, e.Position)
			}
			if o.Fate == relay.FateDelivered && len(h.ledger.Of(e.Event.ID)) == 0 {
				h.sent = append(h.sent, e.Event.ID)
			}
			outcomes = append(outcomes, o)
		}
	}
	for rest := outcomes; len(rest) > 0; {
		n := min(len(rest), 1+m.rng.IntN(4000))
		if err := m.lease.Resolve(m.t.Context(), sink, rest[:n]); err != nil {
			m.t.Fatal(err)
		}
		rest = rest[n:]
	}
	return len(outcomes)
}

// compare checks that SQL offers of a key what the twin does. Of a line it may be fewer, from the
// front on: long lines are freed in pieces.
func (m *model) compare(h *history, sink string, got []*relay.Entry) {
	want, _ := h.ledger.Due(sink, math.MaxInt, m.now)
	var line, wantLine, others, wantOthers []int64
	ending := false // what was discarded frees those behind it when it is taken out
	for _, e := range got {
		if e.Detached || e.Discarded {
			others = append(others, e.Position)
			ending = ending || !e.Detached
		} else {
			line = append(line, e.Position)
		}
		if e.Gone != m.gone[e.Event.ID] {
			m.fail(h, "%s: %d is gone: %t", sink, e.Position, e.Gone)
		}
	}
	for _, e := range want {
		if e.Detached || e.Discarded {
			wantOthers = append(wantOthers, e.Position)
		} else {
			wantLine = append(wantLine, e.Position)
		}
	}
	if len(line) > len(wantLine) || len(wantLine) > 0 && len(line) == 0 && !ending || !slices.Equal(line, wantLine[:len(line)]) {
		m.fail(h, "%s is offered %v, want %v or its beginning", sink, line, wantLine)
	}
	slices.Sort(others)
	slices.Sort(wantOthers)
	if !slices.Equal(others, wantOthers) {
		m.fail(h, "%s is offered %v out of line, want %v", sink, others, wantOthers)
	}
}

// replay has events that were sent delivered once more.
func (m *model) replay() {
	var again []relay.UUID
	for _, h := range m.keys {
		if len(h.sent) > 0 && m.percent(10) {
			n := m.rng.IntN(len(h.sent))
			if ev := h.sent[n]; !m.gone[ev] {
				again = append(again, ev)
			}
		}
	}
	if len(again) == 0 {
		return
	}
	r := repair.Replay{EventIDs: again, Sinks: modelSinks[:2], Set: relay.Alone(m.slot, "").Set}
	plan, err := repair.PlanReplay(m.t.Context(), m.conn, r)
	if err == nil {
		_, err = plan.Run(m.t.Context(), m.conn, r)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	rows, err := m.conn.Query(m.t.Context(), `SELECT event_id, sink, partition_key, position, replayed_at FROM saga_outbox_delivery WHERE replayed_at IS NOT NULL`)
	if err != nil {
		m.t.Fatal(err)
	}
	var (
		ev        [16]byte
		sink, key string
		e         ledgertest.Entry
	)
	_, err = pgx.ForEachRow(rows, []any{&ev, &sink, &key, &e.Position, &e.Replayed}, func() error {
		made := e
		made.ID, made.Sink, made.Key, made.Detached = ev, sink, key, true
		m.byKey[key].ledger.Add(&made)
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// end parks what is on offer, lets time pass and everything be taken. It does so once more after a
// person has retried what blocks its key.
func (m *model) end() {
	for _, h := range m.keys {
		for len(h.lane) > 0 {
			mark := h.lane[0]
			h.lane = h.lane[1:]
			mark.Parked = []relay.Parked{{Sink: "kafka", State: relay.StateHeld}}
			h.ledger.Park(&mark, m.now)
			m.markOne(mark)
		}
	}
	m.markAll()
	for _, retried := range []bool{false, true} {
		if retried {
			if _, err := repair.Retry(m.t.Context(), m.conn, repair.Filter{State: repair.StateDead}, false); err != nil {
				m.t.Fatal(err)
			}
			for _, h := range m.keys {
				for _, e := range h.ledger.Entries {
					if e.Dead {
						h.ledger.Retry(e, m.now)
					}
				}
			}
		}
		for resolved := 1; resolved > 0; {
			m.timePasses(100)
			resolved = 0
			for _, sink := range modelSinks {
				resolved += m.offer(sink, 1)
			}
			if resolved == 0 {
				resolved = m.heal()
			}
		}
		m.wantTheSame()
	}
	for _, h := range m.keys {
		if len(h.ledger.Entries) > 0 {
			m.fail(h, "%d entries are left at the end", len(h.ledger.Entries))
		}
	}
}

func (m *model) markOne(mark relay.Mark) { m.last = append(m.last, mark) }

func (m *model) markAll() {
	mark(m.t, m.lease, m.last)
	m.last = nil
}

// wantTheSame compares all entries, once nothing is on its way.
func (m *model) wantTheSame() {
	m.t.Helper()
	rows, err := m.conn.Query(m.t.Context(), `SELECT partition_key, string_agg(format('%s at %s %s', sink, position, state), ', ' ORDER BY sink, position, state COLLATE "C") FROM saga_outbox_delivery GROUP BY 1`)
	if err != nil {
		m.t.Fatal(err)
	}
	got := make(map[string]string)
	var key, text string
	if _, err := pgx.ForEachRow(rows, []any{&key, &text}, func() error { got[key] = text; return nil }); err != nil {
		m.t.Fatal(err)
	}
	for _, h := range m.keys {
		all := slices.Clone(h.ledger.Entries)
		// A replay of an event may have its position.
		slices.SortFunc(all, func(a, b *ledgertest.Entry) int {
			return cmp.Or(cmp.Compare(a.Sink, b.Sink), cmp.Compare(a.Position, b.Position), cmp.Compare(h.ledger.State(a), h.ledger.State(b)))
		})
		var want []string
		for _, e := range all {
			want = append(want, fmt.Sprintf("%s at %d %s", e.Sink, e.Position, h.ledger.State(e)))
		}
		if got[h.key] != strings.Join(want, ", ") {
			m.fail(h, "the ledger has %s; want %s", got[h.key], strings.Join(want, ", "))
		}
	}
}

func (h *history) note(format string, args ...any) {
	h.story = append(h.story, fmt.Sprintf(format, args...))
}

// fail reports a history, and no more than a few of them.
func (m *model) fail(h *history, format string, args ...any) {
	m.t.Helper()
	m.t.Errorf("%s: %s; after: %s", h.key, fmt.Sprintf(format, args...), strings.Join(h.story, "; "))
	if m.failures++; m.failures == 5 {
		m.t.FailNow()
	}
}

func states(parked []relay.Parked) string {
	var all []string
	for _, p := range parked {
		text := fmt.Sprint(p.Sink, " ", p.State)
		if p.Delay > time.Second {
			text += " for long"
		}
		if p.Detached {
			text += " detached"
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}
