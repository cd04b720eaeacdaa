package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// load is applications that insert events: several at once, in transactions of one to six rows
// under one or two keys, some of them rolled back. A key belongs to one transaction at a time, from
// its insert to the answer to its COMMIT; so the order in which commits are given to the checker is
// the commit order of each key.
type load struct {
	w     *world
	check *verify.Checker
	opts  loadOptions

	keys []*loadKey
	quit chan struct{}
	once sync.Once
	done sync.WaitGroup
}

type loadOptions struct {
	topic   string
	odd     string // the topic of one row in twenty, if not empty
	keys    int    // default 20
	workers int    // default 4
	rate    int    // rows per second, default 300, and a fifth of it after busyFor at that rate
	steady  bool   // … no: that rate until it is stopped
	// survives makes the workers wait for a database that goes away. Whether a transaction with a
	// lost answer was committed they see when it is back.
	survives bool
}

// busyFor is for how long a load has its full rate, by its rows. Without it a slow machine would
// have more to do than a fast one: what takes longer there would meet more rows, and so take longer
// still.
const busyFor = 8 * time.Second

type loadKey struct {
	name string
	mu   sync.Mutex // one transaction at a time; guards seq
	seq  int
}

// load starts applications, until stop.
func (w *world) load(opts loadOptions) *load {
	w.t.Helper()
	def := func(n *int, value int) {
		if *n == 0 {
			*n = value
		}
	}
	def(&opts.keys, 20)
	def(&opts.workers, 4)
	def(&opts.rate, 300)
	l := &load{w: w, check: verify.New(verify.Options{MaxDuplicates: verify.AnyNumber}), opts: opts}
	for i := range opts.keys {
		l.keys = append(l.keys, &loadKey{name: fmt.Sprintf("order-%d", i)})
	}
	l.start()
	w.t.Cleanup(l.stop)
	return l
}

// start begins, or goes on after stop.
func (l *load) start() {
	l.w.t.Helper()
	l.quit, l.once = make(chan struct{}), sync.Once{}
	seeds := newRand(l.w.t)
	for range l.opts.workers {
		rnd := rand.New(rand.NewPCG(seeds.Uint64(), 1))
		l.done.Go(func() {
			if err := l.work(rnd); err != nil {
				l.w.t.Errorf("load: %v", err)
			}
		})
	}
}

// stop ends the applications, and is done when their last transactions are.
func (l *load) stop() {
	l.once.Do(func() { close(l.quit) })
	l.done.Wait()
}

func (l *load) committed() int {
	n, _ := l.check.Counts("")
	return n
}

// waitCommitted waits until that many more events are committed.
func (l *load) waitCommitted(more int) {
	l.w.t.Helper()
	want := l.committed() + more
	eventually(l.w.t, patience, fmt.Sprintf("%d more events committed", more), func() string {
		if n := l.committed(); n < want {
			return fmt.Sprintf("%d are missing", want-n)
		}
		return ""
	})
}

// finish stops the load and waits until its rows are marked.
func (l *load) finish(p *process) {
	l.w.t.Helper()
	l.stop()
	l.w.waitNonePending(p)
	var statuses map[string]int
	eventually(l.w.t, patience, "no row is claimed", func() string { // as rows under way are, in hybrid mode
		if statuses = l.w.statuses(); statuses["claimed"] > 0 {
			return p.mustRun(fmt.Sprintf("%d rows claimed", statuses["claimed"]))
		}
		return ""
	})
	if sent := statuses["sent"]; len(statuses) != 1 || sent != l.committed() {
		l.w.t.Errorf("rows by status: %v, want %d sent", statuses, l.committed())
	}
}

// work makes one transaction after the other until the load is stopped.
func (l *load) work(rnd *rand.Rand) error {
	const perTransaction = 3 // rows, about
	every := time.Second * perTransaction * time.Duration(l.opts.workers) / time.Duration(l.opts.rate)
	pace := time.NewTicker(every)
	defer pace.Stop()
	enough, busy := l.opts.rate*int(busyFor/time.Second), !l.opts.steady
	var conn *pgx.Conn
	defer func() { closeQuietly(conn) }()
	for {
		select {
		case <-l.quit:
			return nil
		case <-pace.C:
		}
		if busy && l.committed() >= enough {
			busy = false
			pace.Reset(5 * every)
		}
		if conn == nil {
			var err error
			if conn, err = l.connect(); err != nil {
				return err
			}
		}
		err := l.transaction(conn, rnd)
		if err == nil {
			continue
		}
		if !l.opts.survives {
			return err
		}
		closeQuietly(conn)
		conn = nil
	}
}

func closeQuietly(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// connect opens a connection, through a database that is down if that is part of the test.
func (l *load) connect() (*pgx.Conn, error) {
	deadline := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		conn, err := pgx.Connect(ctx, l.w.db.DSN)
		cancel()
		if err == nil || !l.opts.survives || time.Now().After(deadline) {
			return conn, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-l.w.t.Context().Done():
			return nil, err
		}
	}
}

// transaction makes one, and gives it to the checker when it is committed.
func (l *load) transaction(conn *pgx.Conn, rnd *rand.Rand) error {
	chosen := []int{rnd.IntN(len(l.keys))}
	if second := rnd.IntN(len(l.keys)); rnd.IntN(3) == 0 && second != chosen[0] {
		chosen = append(chosen, second)
	}
	slices.Sort(chosen) // no two transactions wait for each other
	for _, i := range chosen {
		l.keys[i].mu.Lock()
		defer l.keys[i].mu.Unlock()
	}
	var (
		events []verify.Event
		batch  pgx.Batch
		seq    = make(map[int]int)
		back   = rnd.IntN(10) == 0
	)
	batch.Queue("BEGIN")
	for range 1 + rnd.IntN(6) {
		i := chosen[rnd.IntN(len(chosen))]
		key := l.keys[i]
		e := verify.Event{ID: newID(), Key: key.name}
		events = append(events, e)
		payload := fmt.Sprintf(`{"key": %q, "seq": %d, "note": %q, "pad": %q}`, key.name, key.seq+seq[i], l.w.marker, strings.Repeat("x", rnd.IntN(400)))
		seq[i]++
		topic := l.opts.topic
		if l.opts.odd != "" && rnd.IntN(20) == 0 {
			topic = l.opts.odd
		}
		batch.Queue(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at)
			VALUES ($1, $2, 'order', $3, $4, $5::text::jsonb, '{"traceparent": "00-1-2-01"}', 'pending', clock_timestamp())`, // as from a client's clock, so that a sweep knows the order
			[16]byte(e.ID), "saga-"+key.name, key.name, topic, payload)
	}
	if back {
		batch.Queue("ROLLBACK")
	} else {
		batch.Queue("COMMIT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := conn.SendBatch(ctx, &batch).Close()
	committed := !back
	if err != nil {
		if !l.opts.survives {
			return err
		}
		var asked error
		if committed, asked = l.outcome(events[0].ID); asked != nil {
			return errors.Join(err, asked)
		}
	}
	if !committed {
		return err
	}
	l.check.Commit(events...)
	for i, n := range seq {
		l.keys[i].seq += n
	}
	return err
}

// outcome finds out, after a lost answer, whether the transaction with this row was committed.
// Whoever can connect again finds no transaction of before the crash under way.
func (l *load) outcome(id relay.UUID) (committed bool, err error) {
	deadline := time.Now().Add(patience)
	for {
		conn, err := l.connect()
		if err != nil {
			return false, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM saga_outbox WHERE event_id = $1)`, [16]byte(id)).Scan(&committed)
		cancel()
		closeQuietly(conn)
		if err == nil || time.Now().After(deadline) {
			return committed, err
		}
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code[:2] != "57" {
			return false, err
		}
	}
}

// probe commits one event under a key of its own, through a database that is just coming back if
// that is part of the test.
func (l *load) probe() relay.UUID {
	l.w.t.Helper()
	id := newID()
	conn, err := l.connect()
	for ; err == nil; conn, err = l.connect() {
		// Committed once, whatever the answers.
		_, err = conn.Exec(context.Background(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES ($1, 'saga', $2, $3, '{}')
			ON CONFLICT (event_id) DO NOTHING`, [16]byte(id), probeKey, l.opts.topic)
		closeQuietly(conn)
		if err == nil || !l.opts.survives {
			break
		}
	}
	if err != nil {
		l.w.t.Fatalf("commit an event: %v", err)
	}
	l.check.Commit(verify.Event{ID: id, Key: probeKey})
	return id
}

const probeKey = "probe"

func TestLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.load(loadOptions{topic: "nobody-reads", rate: 2000})
	l.waitCommitted(300)
	l.stop()
	if got, want := value[int](w, `SELECT count(*) FROM saga_outbox`), l.committed(); got != want {
		t.Errorf("%d rows in the table, %d given to the checker", got, want)
	}
	// A key's rows are numbered without holes, and in the order of their transactions.
	if n := value[int](w, `SELECT count(*) FROM (SELECT (payload->>'seq')::int AS seq, row_number() OVER (PARTITION BY aggregate_id
		ORDER BY (payload->>'seq')::int) - 1 AS want FROM saga_outbox) s WHERE seq <> want`); n != 0 {
		t.Errorf("%d rows with a wrong number", n)
	}
}
