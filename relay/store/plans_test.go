package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/repair"
)

// The planner's statistics are most often those of another time: the ledger is empty until a sink
// fails. Whatever they say, and whatever is in the ledger, a statement reads about what it changes
// or returns, and nothing is read once for each of it that is larger.
//
// The server returns the plan of each statement with what its nodes have read (auto_explain).
func TestWorkWhateverTheStatistics(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		explainAll(t, db)
		for _, stats := range []struct {
			name string
			make func(w *work)
		}{
			{"never taken", func(*work) {}},
			{"of an empty table", func(w *work) { w.vacuum() }},
			{"of an emptied table", func(w *work) {
				w.fill()
				w.exec(`DELETE FROM saga_outbox; DELETE FROM saga_outbox_delivery`)
				w.vacuum()
			}},
			{"of many keys", func(w *work) { w.fillSink(0, `'k' || i`, 0, 0); w.analyze() }},
			{"of one key", func(w *work) { w.fillSink(0, `'k'`, 1, 0); w.analyze() }},
			{"of few rows left", func(w *work) {
				w.fill()
				w.exec(`DELETE FROM saga_outbox_delivery WHERE position > 2; DELETE FROM saga_outbox WHERE (payload->>'n')::bigint > 2`)
				w.vacuum()
				w.exec(`DELETE FROM saga_outbox; DELETE FROM saga_outbox_delivery`)
			}},
			{"right", func(w *work) { w.fill(); w.analyze() }},
		} {
			w := &work{T: t, db: db, name: stats.name}
			w.exec(`TRUNCATE saga_outbox, saga_outbox_delivery; DELETE FROM pg_statistic WHERE starelid IN ('saga_outbox'::regclass, 'saga_outbox_delivery'::regclass)`)
			stats.make(w)
			w.fill()
			cfg := testConfig(db)
			cfg.Hybrid = true // it does all there is
			w.goThrough(newStore(t, cfg, nil), "outbox")
			w.repair()
			if stats.name == "of an emptied table" { // what happens most
				w.goThrough(newStore(t, cfg, nil), "renamed")
				w.name += ", through a pooler" // sessions keep no settings
				w.goThrough(behindPooler(t, db, func(cfg *Config) { cfg.Hybrid = true }), "renamed")
			}
			w.exec(`DELETE FROM saga_outbox_relay`)
		}
	})
}

// workPerEntry is what a statement may read for each entry that it touches: rows that nodes of its
// plan have passed on or thrown away, and pages. workBase is for none. Both have room for what dead
// entries of an index cost, which stay for as long as a transaction of anybody's may see them: up to
// 160 an entry was seen, and thousands with a plan for another table.
const (
	workPerEntry = 400
	workBase     = 1000
)

// work goes through all that is done with a ledger.
type work struct {
	*testing.T

	db   *pgtest.DB
	name string

	mu    sync.Mutex // guards plans
	plans []plan
}

// Of each sink the ledger has so many entries, and the table as many rows, and some more.
const (
	entriesOf = 1000
	linesOf   = entriesOf / 20
	moreRows  = 100
)

var workSinks = []struct {
	name string
	key  string // of entry i
	held int    // 1: held behind the first of their key, which is due
	wait int    // 1: each waits for its next attempt
}{
	{"many keys", `'k' || i % ` + fmt.Sprint(linesOf), 0, 0},
	{"one key", `'k'`, 0, 0},
	{"many keys, held", `'k' || i % ` + fmt.Sprint(linesOf), 1, 0},
	{"one key, held", `'k'`, 1, 0},
	{"waiting", `'k' || i`, 0, 1},
}

func (w *work) exec(sql string) {
	w.Helper()
	if _, err := w.db.Pool.Exec(w.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
}

func (w *work) vacuum() {
	exec(w, w.db, `VACUUM (TRUNCATE false, ANALYZE) saga_outbox`)
	exec(w, w.db, `VACUUM (TRUNCATE false, ANALYZE) saga_outbox_delivery`)
}

func (w *work) analyze() {
	w.exec(`ANALYZE saga_outbox, saga_outbox_delivery; TRUNCATE saga_outbox, saga_outbox_delivery`)
}

func (w *work) fill() {
	exec(w, w.db, insertSQL, 1, entriesOf*len(workSinks)+moreRows)
	for n, s := range workSinks {
		w.fillSink(n, s.key, s.held, s.wait)
	}
}

func (w *work) fillSink(n int, key string, held, wait int) {
	exec(w, w.db, `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, next_attempt_at)
		SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(i + $5 * $1), 12, '0'))::uuid, $4, 'outbox', i, k, hashtext(k), 'Tested', CASE WHEN $2 = 1 AND nth > 1 THEN 'held' ELSE 'retry' END,
			CASE WHEN $2 = 1 AND nth = 1 THEN now() - interval '1 s' WHEN $3 = 1 THEN now() + interval '1 h' END
		FROM (SELECT i, k, row_number() OVER (PARTITION BY k ORDER BY i) AS nth FROM (SELECT i, `+key+` AS k FROM generate_series(1, $1::int) i) e) e`,
		entriesOf, held, wait, workSinks[n].name, n)
}

// goThrough takes the lease and does everything once.
func (w *work) goThrough(s *Store, slot string) {
	w.Helper()
	const some = 5
	s.bounds = bounds{held: some, freed: some, ofKey: some}
	s.conn.ConnConfig.OnNotice = w.notice
	const outcome = 12 * some // it frees ten of each line
	all := entriesOf * len(workSinks)
	l := acquire(w, s, slot)
	w.done(all, "acquire")
	defer release(w, l)
	if err := l.Blocking(w.Context(), 1<<22-1, func(string, uint32, int, int) {}); err != nil {
		w.Fatal(err)
	}
	if _, err := l.Counts(w.Context()); err != nil {
		w.Fatal(err)
	}
	w.done(all, "read and count all")
	for _, sink := range workSinks {
		if _, _, err := l.Heal(w.Context(), sink.name, -1<<31); err != nil {
			w.Fatal(err)
		}
		w.done(entriesOf, "heal "+sink.name) // it looks at up to a hundred of each line
		entries := func() []relay.Entry {
			w.Helper()
			if sink.wait == 1 {
				exec(w, w.db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() WHERE ctid = ANY(ARRAY(SELECT ctid FROM saga_outbox_delivery WHERE sink = $1 AND state = 'retry' AND attempts = 0 LIMIT $2))`, sink.name, some)
			}
			entries := due(w, l, sink.name, some)
			w.done(2*some, "due "+sink.name)
			if len(entries) == 0 {
				w.Errorf("%s: nothing is due for %s", w.name, sink.name)
			}
			return entries[:min(len(entries), some)]
		}
		resolve(w, l, sink.name, relay.FateDelivered, entries()...)
		w.done(outcome, "delivered "+sink.name)
		first := entries()[:1]
		resolve(w, l, sink.name, relay.FateRefused, first...)
		w.done(outcome, "one refused "+sink.name)
		due(w, l, sink.name, some)
		w.done(11*some, "due, and held behind the refused one "+sink.name)
		exec(w, w.db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() WHERE event_id = $1`, first[0].Event.ID.String())
		resolve(w, l, sink.name, relay.FateRefused, entries()...)
		w.done(outcome, "refused "+sink.name)
		exec(w, w.db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() WHERE sink = $1 AND attempts > 0`, sink.name)
		resolve(w, l, sink.name, relay.FateDropped, entries()...)
		w.done(outcome, "dropped "+sink.name)
		dead := outcomes(relay.FateDead, entries()...)
		for i := range dead {
			dead[i].Detach = true
		}
		if err := l.Resolve(w.Context(), sink.name, dead); err != nil {
			w.Fatal(err)
		}
		w.done(outcome, "dead "+sink.name)
	}
	fresh := make([]relay.Event, 3*some)
	for i := range fresh {
		fresh[i].ID = id(all + 1 + i)
	}
	settled(w, l, fresh)
	w.done(len(fresh), "look up and claim")
	marks := marksOf(fresh)
	for i := range marks {
		marks[i].Position = l.LastPosition() + int64(i)
	}
	parking(ofKey(marks[:some], "k"), held("one key"))
	parking(marks[some:2*some], refusal("many keys", "no"))
	mark(w, l, marks)
	w.done(len(marks), "mark, and park")
	s.nearLeast = 1
	mark(w, l, marks[2*some:])
	w.done(some, "mark what lies side by side")
	l.marks.skip = true
	mark(w, l, marks[2*some:])
	w.done(some, "mark, and skip what is locked")
	if err := l.parkRefused(w.Context(), marks[:some], fmt.Errorf("no")); err != nil {
		w.Fatal(err)
	}
	w.done(some, "park rows")
	exec(w, w.db, `UPDATE saga_outbox_delivery SET next_attempt_at = now() WHERE sink = $1`, relay.MarkSink)
	if _, err := l.Remark(w.Context()); err != nil {
		w.Fatal(err)
	}
	w.done(2*some, "mark again")
	for _, kind := range []relay.SweepKind{relay.SweepPending, relay.SweepClaimed, relay.SweepFailed} {
		swept(w, l, relay.SweepQuery{Kind: kind})
	}
	if _, err := l.Backlog(w.Context(), some); err != nil {
		w.Fatal(err)
	}
	w.done(4*all, "sweep")
	l.shard = relay.Set{Shards: 2}.Shard(1)
	for _, kind := range []relay.SweepKind{relay.SweepPending, relay.SweepClaimed, relay.SweepFailed} {
		swept(w, l, relay.SweepQuery{Kind: kind})
		swept(w, l, relay.SweepQuery{Kind: kind, Since: 1})
	}
	if _, err := l.Backlog(w.Context(), some); err != nil {
		w.Fatal(err)
	}
	w.done(7*all, "sweep of a shard")
	if _, err := l.Prune(w.Context(), time.Nanosecond, false, some); err != nil {
		w.Fatal(err)
	}
	w.done(all, "prune")
}

// repair retries and discards some entries by hand.
func (w *work) repair() {
	w.Helper()
	cfg, err := pgx.ParseConfig(w.db.DSN)
	if err != nil {
		w.Fatal(err)
	}
	cfg.OnNotice = w.notice
	conn, err := pgx.ConnectConfig(w.Context(), cfg)
	if err != nil {
		w.Fatal(err)
	}
	defer conn.Close(w.Context()) //nolint:errcheck // nothing depends on it
	var f repair.Filter
	for i := range 10 {
		f.EventIDs = append(f.EventIDs, id(4*entriesOf+100+i))
	}
	for _, change := range []func() (*repair.Done, error){
		func() (*repair.Done, error) { return repair.Retry(w.Context(), conn, f, true) },
		func() (*repair.Done, error) { return repair.Discard(w.Context(), conn, f, true) },
	} {
		done, err := change()
		if err != nil || done.N() != len(f.EventIDs) {
			w.Fatalf("%s: changed %+v, %v", w.name, done, err)
		}
		w.mu.Lock()
		for i := range w.plans { // what is chosen is looked for everywhere
			if !strings.HasPrefix(w.plans[i].Text, "UPDATE") {
				w.plans[i].Plan = node{}
			}
		}
		w.mu.Unlock()
		w.done(len(f.EventIDs), "repair")
	}
}

// done fails when the statements since the last call have read too much for so many entries.
func (w *work) done(entries int, what string) {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	sum, most := 0.0, 0
	for i := range w.plans {
		if strings.Contains(w.plans[i].Text, "sagaz_relay.path") { // of a connection that was made
			continue
		}
		sum += w.plans[i].Plan.work()
		if w.plans[i].Plan.work() > w.plans[most].Plan.work() {
			most = i
		}
	}
	if len(w.plans) == 0 {
		w.Fatalf("statistics %s: %s: no plan", w.name, what)
	}
	if limit := float64(workBase + workPerEntry*entries); sum > limit {
		w.Errorf("statistics %s: %s: work of %.0f for %d entries, want at most %.0f; most of it:\n%s\n%s", w.name, what, sum, entries, limit, w.plans[most].Text, &w.plans[most].Plan)
	} else {
		w.Logf("statistics %s: %s: %.0f of %.0f", w.name, what, sum, limit)
	}
	w.plans = nil
}

// explainAll makes every new session of the database return the plans of its statements.
func explainAll(t *testing.T, db *pgtest.DB) {
	name := pgx.Identifier{value[string](t, db.Pool, `SELECT current_database()`)}.Sanitize()
	for _, s := range []string{
		`session_preload_libraries = auto_explain`, `auto_explain.log_min_duration = 0`, `auto_explain.log_analyze = on`, `auto_explain.log_buffers = on`,
		`auto_explain.log_timing = off`, `auto_explain.log_format = json`, `auto_explain.log_level = notice`, `log_min_messages = error`,
	} {
		exec(t, db, `ALTER DATABASE `+name+` SET `+s)
	}
	exec(t, db, `ALTER TABLE saga_outbox_delivery SET (autovacuum_enabled = false)`)
	exec(t, db, `ALTER TABLE saga_outbox SET (autovacuum_enabled = false)`)
}

func (w *work) notice(_ *pgconn.PgConn, n *pgconn.Notice) {
	_, text, is := strings.Cut(n.Message, "plan:\n")
	if !is {
		return
	}
	var p plan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		w.Errorf("%v in %s", err, text)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plans = append(w.plans, p)
}

type plan struct {
	Text string `json:"Query Text"`
	Plan node
}

// node is one of a plan. What it read is an average over its loops, but for the pages.
type node struct {
	Type       string  `json:"Node Type"`
	Relation   string  `json:"Relation Name"`
	Index      string  `json:"Index Name"`
	Cond       string  `json:"Index Cond"`
	Loops      float64 `json:"Actual Loops"`
	Rows       float64 `json:"Actual Rows"`
	Filtered   float64 `json:"Rows Removed by Filter"`
	JoinFilter float64 `json:"Rows Removed by Join Filter"`
	Rechecked  float64 `json:"Rows Removed by Index Recheck"`
	Hit        float64 `json:"Shared Hit Blocks"` // with those of the nodes below
	Read       float64 `json:"Shared Read Blocks"`
	Plans      []node
}

func (n *node) work() float64 { return n.Hit + n.Read + n.rows() }

func (n *node) rows() float64 {
	sum := n.Loops * (n.Rows + n.Filtered + n.JoinFilter + n.Rechecked)
	for i := range n.Plans {
		sum += n.Plans[i].rows()
	}
	return sum
}

func (n *node) String() string {
	s := fmt.Sprintf("%s %s %s %.200s: %.0f × %.0f rows, without %.0f by filter, %.0f by join, %.0f pages", n.Type, n.Relation, n.Index, n.Cond, n.Loops, n.Rows, n.Filtered, n.JoinFilter, n.Hit+n.Read)
	for i := range n.Plans {
		s += "\n  " + strings.ReplaceAll(n.Plans[i].String(), "\n", "\n  ")
	}
	return s
}
