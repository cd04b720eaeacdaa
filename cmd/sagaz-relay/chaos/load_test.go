package chaos

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// load is applications that insert events: several at once, in transactions of one to six rows (now
// and then hundreds) under one to three keys, some of them rolled back. A key belongs to one
// transaction at a time, from its insert to the answer to its COMMIT, so the order in which commits
// are noted is the commit order of each key. Each key's events carry a clock of its own, hours off,
// that only goes forward.
type load struct {
	r     *round
	dsn   string
	check *verify.Checker
	keys  []*key

	quit chan struct{}
	once sync.Once
	done sync.WaitGroup
}

type key struct {
	name  string
	topic string // aggregate_type, the Kafka topic
	skew  time.Duration

	mu  sync.Mutex // held by the transaction that has the key; guards what follows
	now time.Time  // created_at of its newest event
}

// row is an event to insert. What is empty gets what events usually have.
type row struct {
	key       *key
	id        relay.UUID
	topic     string // aggregate_type
	eventType string
	pad       int
	status    string // with one other than pending: claimed by a worker that is gone
}

var eventTypes = []string{"OrderCreated", "OrderPaid", "OrderShipped"}

const (
	workers        = 4
	rowsPerSecond  = 240
	perTransaction = 3 // rows, about
)

func newLoad(r *round, dsn string, topics []string) *load {
	l := &load{r: r, dsn: dsn, check: verify.New(verify.Options{MaxDuplicates: verify.AnyNumber}, r.plan.sinks...), quit: make(chan struct{})}
	for i, skew := range r.plan.skew {
		l.keys = append(l.keys, &key{name: fmt.Sprintf("order-%d", i), topic: topics[i%len(topics)], skew: skew})
	}
	return l
}

func (l *load) start() {
	for i := range workers {
		rnd := mrand.New(mrand.NewPCG(l.r.plan.seed, uint64(1+i)))
		l.done.Go(func() { l.work(rnd) })
	}
}

// stop ends the applications, and is done when their last transactions are.
func (l *load) stop() {
	l.once.Do(func() { close(l.quit) })
	l.done.Wait()
}

func (l *load) work(rnd *mrand.Rand) {
	pace := time.NewTicker(time.Second * perTransaction * workers / rowsPerSecond)
	defer pace.Stop()
	var conn *pgx.Conn
	defer func() { closeQuietly(conn) }()
	for {
		select {
		case <-l.quit:
			return
		case <-pace.C:
		}
		chosen := []*key{l.keys[rnd.IntN(len(l.keys))]}
		for rnd.IntN(3) == 0 && len(chosen) < 3 {
			chosen = append(chosen, l.keys[rnd.IntN(len(l.keys))])
		}
		rows := make([]row, 1+rnd.IntN(6))
		if rnd.IntN(200) == 0 { // now and then one that is in flight for longer
			rows = make([]row, inflight)
		}
		for i := range rows {
			rows[i] = row{key: chosen[rnd.IntN(len(chosen))], eventType: eventTypes[rnd.IntN(len(eventTypes))], pad: rnd.IntN(400)}
		}
		var err error
		if conn, _, err = l.commit(conn, rnd.IntN(10) == 0, rows); err != nil {
			l.r.errorf("load: %v", err)
			return
		}
	}
}

// commit makes one transaction, through a database that may go away meanwhile, and notes its events
// when it is committed. conn may be nil; the connection to go on with is returned. An error is one
// that no accident explains.
func (l *load) commit(conn *pgx.Conn, rollback bool, rows []row) (_ *pgx.Conn, ids []relay.UUID, err error) {
	var held []*key
	for i := range rows {
		if !slices.Contains(held, rows[i].key) {
			held = append(held, rows[i].key)
		}
	}
	// no two transactions wait for each other
	slices.SortFunc(held, func(a, b *key) int { return strings.Compare(a.name, b.name) })
	for _, k := range held {
		k.mu.Lock()
		defer k.mu.Unlock()
	}
	if conn == nil {
		if conn, err = l.connect(); err != nil {
			return nil, nil, err
		}
	}
	var batch pgx.Batch
	batch.Queue("BEGIN")
	events := make([]verify.Event, len(rows))
	for i := range rows {
		row := &rows[i]
		l.complete(row)
		events[i] = verify.Event{ID: row.id, Key: row.key.name}
		ids = append(ids, row.id)
		worker, claimed := any(nil), any(nil)
		if row.status == "claimed" {
			worker, claimed = "dead-worker", time.Now().Add(-time.Hour)
		}
		batch.Queue(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at, worker_id, claimed_at)
			VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, '{"traceparent": "00-1-2-01"}', $7, $8, $9, $10)`,
			[16]byte(row.id), "saga-"+row.key.name, row.topic, row.key.name, row.eventType, l.payload(row.pad), row.status, row.key.now, worker, claimed)
	}
	if rollback {
		batch.Queue("ROLLBACK")
	} else {
		batch.Queue("COMMIT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err = conn.SendBatch(ctx, &batch).Close()
	committed := !rollback
	if err != nil {
		closeQuietly(conn)
		conn = nil
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code[:2] != "57" {
			return nil, nil, err // not an accident: the statement is wrong
		}
		if committed, err = l.outcome(rows[0].id); err != nil {
			return nil, nil, err
		}
	}
	if committed {
		l.check.Commit(events...)
		return conn, ids, nil
	}
	return conn, nil, nil
}

// complete fills in what a row leaves out, and its key's next time. The caller holds the key.
func (l *load) complete(row *row) {
	if row.topic == "" {
		row.topic = row.key.topic
	}
	if row.eventType == "" {
		row.eventType = eventTypes[0]
	}
	if row.status == "" {
		row.status = "pending"
	}
	row.id = newID()
	k := row.key
	now := time.Now().Add(k.skew).Truncate(time.Microsecond)
	if !now.After(k.now) {
		now = k.now.Add(time.Microsecond)
	}
	k.now = now
}

func (l *load) payload(pad int) string {
	if pad > 1000 { // such that nothing compresses it
		var b strings.Builder
		for b.Len() < pad {
			b.WriteString(rand.Text())
		}
		return fmt.Sprintf(`{"note": %q, "pad": %q}`, l.r.marker, b.String())
	}
	return fmt.Sprintf(`{"note": %q, "pad": %q}`, l.r.marker, strings.Repeat("x", pad))
}

// connect opens a connection, through a database that is down.
func (l *load) connect() (*pgx.Conn, error) {
	deadline := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		conn, err := pgx.Connect(ctx, l.dsn)
		cancel()
		if err == nil || time.Now().After(deadline) {
			return conn, err
		}
		time.Sleep(20 * time.Millisecond) // a server that is down gives no sign of its return
	}
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
	}
}

func closeQuietly(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // it may be broken already
}

func newID() relay.UUID {
	var id relay.UUID
	_, _ = rand.Read(id[:]) // it does not fail
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}
