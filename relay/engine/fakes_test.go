package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/relay/watch"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// world is a database in memory: the table and its WAL, and its slots, of which there is one unless
// the test divides the table (fakes_shards_test.go). It plays relay.Source and relay.Store as
// PostgreSQL, cdc and relay/store do together. All waiting is on channels and timers, so it works
// inside a testing/synctest bubble.
//
// Rows are known by a label: the third event of the key "a" is "a3", and its event_id holds that
// label.
type world struct {
	t      testing.TB
	*place // the first slot

	mu sync.Mutex
	// Guarded by mu.
	changed    chan struct{} // closed and replaced at every change
	set        relay.Set
	setChanged chan struct{} // closed and replaced when set changes
	setChange  *relay.SetChange
	places     map[string]*place // the slots by name, also those of sets before
	content    map[relay.UUID]relay.Event
	byHand     map[relay.UUID]bool // set back to pending by a person
	rows       map[relay.UUID]*row
	perKey     map[string]int
	wal        []relay.Event
	next       relay.LSN
	keepalive  relay.LSN // the position of the newest keepalive
	opened     []*stream
	marks      []markCall
	lookUps    [][]string
	before     before // see maydeliver_test.go
	unmarked   relay.Unmarked
	trace      []string
	left       []string       // WORKER_IDs of relays that have left
	unowned    map[string]int // events by slot, of slots that this relay speaks for
	pruned     []string       // slots whose owners remove old rows

	// Scripts, set before they are needed.
	openErrs  []error // what the next calls of Open return
	checkErrs []error // and of Source.Check
	// onMark, if set, decides about the n-th call of Mark, from 1: an error writes nothing, later
	// is left out.
	onMark      func(ctx context.Context, n int, marks []relay.Mark) (later []int, err error)
	onSettled   func(n int) error
	onResolve   func() error // under the lock
	sweepErrs   []error      // what the next sweeps return
	horizonErrs []error      // what the next horizons return
	// sweepCost, if set, is how long a look at the table takes.
	sweepCost func(relay.SweepQuery) time.Duration
	// creating, if set, is what Create waits for; holders are the transactions it reports.
	creating chan struct{}
	holders  []relay.Holder
	away     error // why a standby could not take the lease
	poison   error // what each connection breaks with at once
	// Tell of a transaction's end by Pass, as cdc does when its batch is handed on before the end.
	passEnds bool
	enc      relay.Encoder // nil: the usual
	closes   time.Duration // how long the server takes to end a stream
	batch    int           // the most events in one Admit; 0: all there are
}

type row struct {
	status, lastError string
	marks             int
}

type markCall struct {
	at     time.Time
	labels []string
}

func newWorld(t testing.TB) *world {
	w := &world{
		t: t, changed: make(chan struct{}), setChanged: make(chan struct{}), places: make(map[string]*place),
		rows: make(map[relay.UUID]*row), content: make(map[relay.UUID]relay.Event), perKey: make(map[string]int), next: 0x1000,
	}
	w.divide(1)
	return w
}

// change does f under the lock and wakes everybody who waits for a change.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.changed)
	w.changed = make(chan struct{})
}

// until waits for a condition, which is looked at under the lock.
func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	timeout := time.NewTimer(10 * time.Minute) // of the bubble's clock
	defer timeout.Stop()
	for {
		w.mu.Lock()
		ok, changed := is(), w.changed
		w.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			w.t.Fatalf("waited in vain until %s; trace %q", what, w.trace)
		}
	}
}

// id is the event_id of a label.
func id(label string) (u relay.UUID) {
	if copy(u[:], label) < len(label) {
		panic("label too long: " + label)
	}
	return u
}

func label(u relay.UUID) string { return strings.TrimRight(string(u[:]), "\x00") }

// insert is a row that commit is to insert, with what differs from the usual.
func insert(key string, change ...func(*relay.Event)) relay.Event {
	ev := relay.Event{
		SagaID: "saga", AggregateType: "thing", AggregateID: key, EventType: "Happened", Payload: `{}`, Status: "pending",
	}
	for _, c := range change {
		c(&ev)
	}
	return ev
}

func payloadOf(bytes int) func(*relay.Event) {
	return func(ev *relay.Event) { ev.Payload = `"` + strings.Repeat("x", bytes-2) + `"` }
}

func status(s string) func(*relay.Event) { return func(ev *relay.Event) { ev.Status = s } }

// commit commits one transaction with a row for each key and returns the positions of its commit
// record and of its end.
func (w *world) commit(keys ...string) (at, end relay.LSN) {
	var events []relay.Event
	for _, key := range keys {
		events = append(events, insert(key))
	}
	return w.commitRows(events...)
}

func (w *world) commitRows(events ...relay.Event) (at, end relay.LSN) {
	w.change(func() {
		at, end = w.next, w.next+0x30
		w.next += 0x100
		for i, ev := range events {
			w.perKey[ev.AggregateID]++
			ev.ID = id(fmt.Sprint(ev.AggregateID, w.perKey[ev.AggregateID]))
			ev.CommitLSN, ev.Ordinal, ev.XID = at, uint32(i), uint32(at>>8)
			// A bubble's clock starts at PostgreSQL's epoch, and 0 means that the time is not
			// known.
			ev.CommittedAt = max(1, relay.TimestampOf(time.Now()))
			if i == len(events)-1 {
				ev.CommitEnd = end
			}
			w.wal = append(w.wal, ev)
			w.rows[ev.ID] = &row{status: ev.Status}
			w.content[ev.ID] = ev
		}
	})
	return at, end
}

// quiet moves the server's WAL on without anything for us in it, and sends a keepalive.
func (w *world) quiet() (at relay.LSN) {
	w.change(func() {
		at = w.next
		w.keepalive = at
		w.next += 0x100
	})
	return at
}

// status of a row, with its last_error if it has one.
func (w *world) status(label string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.rows[id(label)]
	if r == nil {
		return "(gone)"
	}
	if r.lastError != "" {
		return r.status + ": " + r.lastError
	}
	return r.status
}

// untilStatus waits for all the rows to have a status.
func (w *world) untilStatus(want string, labels ...string) {
	w.t.Helper()
	w.until(fmt.Sprint(labels, " are ", want), func() bool {
		for _, l := range labels {
			if r := w.rows[id(l)]; r == nil || r.status != want {
				return false
			}
		}
		return true
	})
}

func (w *world) note(what string) { w.trace = append(w.trace, what) }

// stream returns the open stream, once there is one that runs.
func (w *world) stream() (s *stream) {
	w.t.Helper()
	w.until("a stream runs", func() bool { s = w.reading; return s != nil && s.in != nil })
	return s
}

// lease returns the held lease, once there is one.
func (w *world) lease() (l *lease) {
	w.t.Helper()
	w.until("the lease is held", func() bool { l = w.owner; return l != nil })
	return l
}

// pop takes the next of scripted errors.
func pop(errs *[]error) error {
	if len(*errs) == 0 {
		return nil
	}
	err := (*errs)[0]
	*errs = (*errs)[1:]
	return err
}

// source is the world as relay.Source.
type source struct{ *world }

var _ relay.Source = source{}

func (w source) Check(context.Context, relay.Set) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return pop(&w.checkErrs)
}

func (w source) Open(_ context.Context, shard relay.Shard, known relay.LSN) (s relay.Stream, err error) {
	w.change(func() {
		p := w.places[shard.Slot]
		if err = pop(&w.openErrs); err != nil {
			w.note("open failed")
			return
		}
		if p.gone != "" {
			w.note("gone")
			err = &relay.SlotGoneError{Slot: shard.Slot, Cause: p.gone}
			return
		}
		if p.reading != nil {
			err = relay.ErrSlotBusy
			return
		}
		if known != 0 && p.confirmed > known {
			w.note("moved")
			err = &relay.SlotGoneError{Slot: shard.Slot, Cause: relay.GoneMoved}
			return
		}
		w.note("open")
		opened := &stream{world: w.world, place: p}
		// A transaction whose commit record is before the confirmed position is not sent again.
		for opened.pos < len(w.wal) && w.wal[opened.pos].CommitLSN < p.confirmed {
			opened.pos++
		}
		p.reading = opened
		w.opened = append(w.opened, opened)
		s = opened
	})
	return s, err
}

func (w source) Holders(context.Context, string) ([]relay.Holder, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holders, nil
}

// Create makes the slot again, if it is gone: it delivers what is committed from now on.
func (w source) Create(ctx context.Context, shard relay.Shard) (at relay.LSN, err error) {
	w.mu.Lock()
	creating := w.creating
	w.mu.Unlock()
	if creating != nil {
		select {
		case <-creating:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	w.change(func() {
		w.note("create")
		p := w.places[shard.Slot]
		if p.gone != "" && p.gone != relay.GoneMoved {
			p.confirmed = w.next
		}
		p.gone = ""
		at = p.confirmed
	})
	return at, nil
}

// stream is a replication connection.
type stream struct {
	*world
	*place
	pos    int       // into the WAL
	passed relay.LSN // of keepalives
	in     relay.Intake
	cancel context.CancelCauseFunc
}

func (s *stream) Run(ctx context.Context, in relay.Intake) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var feedback sync.WaitGroup
	defer func() {
		cancel(nil)
		feedback.Wait()
	}()
	s.change(func() { s.in, s.cancel = in, cancel })
	feedback.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.report()
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		events, pass, changed, err := s.receive()
		if err != nil {
			return err
		}
		if len(events) > 0 {
			if err := in.Admit(ctx, events); err != nil {
				return err
			}
			clear(events) // it is ours again
		}
		if pass != 0 {
			in.Pass(pass)
		}
		if len(events) > 0 || pass != 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// receive returns what the server has to send: events, and a position that may be passed after
// them.
func (s *stream) receive() (events []relay.Event, pass relay.LSN, changed chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.poison != nil {
		return nil, 0, nil, s.poison
	}
	for s.pos < len(s.wal) && (s.batch == 0 || len(events) < s.batch) {
		ev := s.wal[s.pos]
		s.pos++
		if !s.has(ev.AggregateID) {
			continue // the publication's filter
		}
		end := s.endOf(s.pos - 1)
		ev.CommitEnd = end
		if s.passEnds {
			ev.CommitEnd = 0
		}
		events = append(events, ev)
		if s.passEnds && end != 0 {
			return events, end, s.changed, nil
		}
	}
	if s.pos == len(s.wal) && len(events) == 0 && s.keepalive > s.passed {
		s.passed = s.keepalive
		pass = s.keepalive
	}
	return events, pass, s.changed, nil
}

func (s *stream) report() {
	at := s.in.Watermark()
	s.change(func() {
		s.confirmed = max(s.confirmed, at)
		if s.confirmed > s.noted {
			s.t.Errorf("confirmed %s, and the database has a note of %s", s.confirmed, s.noted)
		}
		// The promise that matters most: the slot never passes a row that is not settled.
		for _, ev := range s.wal {
			if s.has(ev.AggregateID) && ev.CommitLSN < s.confirmed && s.rows[ev.ID] != nil && s.rows[ev.ID].status == "pending" && !s.byHand[ev.ID] && len(s.ledger.Of(ev.ID)) == 0 {
				s.t.Errorf("confirmed %s, and row %s, committed at %s, is still pending", s.confirmed, label(ev.ID), ev.CommitLSN)
			}
		}
	})
}

// fail breaks the connection.
func (s *stream) fail(err error) { s.cancel(err) }

func (s *stream) Close(context.Context) error {
	time.Sleep(s.closes)
	if s.in != nil {
		s.report()
	}
	s.change(func() {
		s.note("close")
		if s.reading == s {
			s.reading = nil
		}
	})
	return nil
}

// store is the world as relay.Store.
type store struct {
	*world
	worker string // WORKER_ID
}

var _ relay.Store = store{}

func (w store) Check(context.Context) error { return nil }

func (w store) Leave() { w.change(func() { w.left = append(w.left, w.worker) }) }

func (w store) Unowned() (shards []relay.Shard) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, shard := range w.set.All() {
		if _, ok := w.unowned[shard.Slot]; ok {
			shards = append(shards, shard)
		}
	}
	return shards
}

func (w store) UnownedEvents(_ context.Context, shard relay.Shard, _ int) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unowned[shard.Slot], nil
}

func (w store) Waiting(string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.away
}

func (w store) Changing() *relay.SetChange {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.setChange
}

func (w store) Set(context.Context) (relay.Set, <-chan struct{}, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set, w.setChanged, nil
}

func (w store) Acquire(ctx context.Context, shard relay.Shard) (relay.Lease, error) {
	for {
		l, changed, err := w.take(shard)
		if err != nil {
			return nil, err
		}
		if l != nil {
			w.change(func() {})
			return l, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// take takes the slot if it is free and this relay may have it.
func (w store) take(shard relay.Shard) (l *lease, changed chan struct{}, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.places[shard.Slot]
	if shard.Set != w.set {
		return nil, nil, relay.ErrSetChanged
	}
	if p.owner != nil || p.taken || p.stopped || p.onlyFor != "" && p.onlyFor != w.worker {
		return nil, w.changed, nil
	}
	p.epoch++
	l = &lease{
		world: w.world, place: p, epoch: p.epoch, markedLSN: p.marked, found: p.recovery, valid: true,
		worker: w.worker, lost: make(chan struct{}), yield: make(chan struct{}),
	}
	l.found.Confirmed, l.left = p.noted, relay.InDoubt{Since: p.since, To: w.next}
	p.owner = l
	w.note("acquire")
	return l, nil, nil
}

// lease is one ownership.
type lease struct {
	*world
	*place
	epoch     int64
	markedLSN relay.LSN
	found     relay.Recovery
	lost      chan struct{}
	yield     chan struct{}
	worker    string

	// Guarded by world.mu.
	valid bool
	err   error
	left  relay.InDoubt // by the owner before
}

var _ relay.Lease = (*lease)(nil)

func (l *lease) Epoch() int64          { return l.epoch }
func (l *lease) MarkedLSN() relay.LSN  { return l.markedLSN }
func (l *lease) Lost() <-chan struct{} { return l.lost }

func (l *lease) Yield() <-chan struct{} { return l.yield }

func (l *lease) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *lease) Valid() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.valid
}

// takenOver gives the slot to somebody else. The old owner finds out at its next mark, or by lose.
func (w *world) takenOver() {
	w.change(func() {
		w.place.epoch++
		w.owner, w.taken = nil, true
	})
}

// givenBack frees the slot from somebody else.
func (w *world) givenBack() { w.change(func() { w.taken = false }) }

// lose ends the owner's trust in its lease.
func (l *lease) lose(err error) {
	l.change(func() { l.err, l.valid = err, false })
	close(l.lost)
}

// expire is the moment at which the lease is past its time though no timer has fired yet.
func (l *lease) expire() { l.change(func() { l.valid = false }) }

func (l *lease) Mark(ctx context.Context, batch relay.MarkBatch) (later []int, err error) {
	marks := batch.Marks
	call := markCall{at: time.Now()}
	for _, m := range marks {
		call.labels = append(call.labels, label(m.ID))
	}
	l.mu.Lock()
	l.marks = append(l.marks, call)
	n, on := len(l.marks), l.onMark
	l.mu.Unlock()
	if on != nil {
		if later, err = on(ctx, n, marks); err != nil {
			return nil, err
		}
	}
	l.change(func() {
		if l.epoch != l.place.epoch {
			later, err = nil, relay.ErrFenced
			return
		}
		l.noted, l.since = max(l.noted, batch.Confirm), batch.Since
		for i := range marks {
			m := &marks[i]
			l.marked = max(l.marked, m.CommitLSN)
			if m.CommitLSN == 0 {
				l.marked = l.next
			}
			l.ledger.Park(m, time.Now())
			if slices.Contains(later, i) {
				continue
			}
			if !l.has(m.Key) {
				l.t.Errorf("%s marks %s, whose key is another slot's", l.shard.Slot, label(m.ID))
			}
			l.rows[m.ID].marks++
			l.setFate(m.ID)
		}
	})
	return later, err
}

func (l *lease) InDoubt() relay.InDoubt { return l.left }

func (l *lease) SentOnce(_ context.Context, streamed, swept []relay.UUID) (sent []relay.UUID, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range slices.Concat(streamed, swept) {
		if r := l.rows[id]; r != nil && r.marks > 0 {
			sent = append(sent, id)
		}
	}
	return sent, nil
}

func (l *lease) Remark(context.Context) (u relay.Unmarked, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unmarked, nil
}

func (l *lease) Settled(_ context.Context, events []relay.Event) ([]bool, error) {
	settled := make([]bool, len(events))
	var n int
	l.change(func() {
		var asked []string
		for i := range events {
			asked = append(asked, label(events[i].ID))
			settled[i] = l.rows[events[i].ID].status != "pending" || len(l.ledger.Of(events[i].ID)) > 0
		}
		l.lookUps = append(l.lookUps, asked)
		n = len(l.lookUps)
	})
	if l.onSettled != nil {
		if err := l.onSettled(n); err != nil {
			return nil, err
		}
	}
	return settled, nil
}

// NoteSinks returns the sinks of the owner before.
func (l *lease) NoteSinks(_ context.Context, sinks []string) (before []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, l.sinks = l.sinks, sinks
	return before, nil
}

// Slot returns how far the WAL goes, and from where it is kept.
func (l *lease) Slot(context.Context) (relay.SlotInfo, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return relay.SlotInfo{Exists: l.gone == "", WALEnd: l.next, ConfirmedFlush: l.confirmed, Restart: l.confirmed}, nil
}

// Updates returns one update a mark, all of them HOT.
func (l *lease) Updates(context.Context) (relay.TableUpdates, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := int64(len(l.marks))
	return relay.TableUpdates{All: n, HOT: n}, nil
}

// Table counts the rows.
func (l *lease) Table(context.Context) (relay.TableInfo, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := relay.TableInfo{Rows: make(map[string]int64)}
	for _, r := range l.rows {
		t.Rows[r.status]++
	}
	return t, nil
}

func (l *lease) Release(_ context.Context, clean bool) error {
	l.change(func() {
		if clean {
			l.since = time.Time{}
		}
		l.note("release")
		if l.owner == l {
			l.owner = nil
		}
	})
	return nil
}

// rig is a relay at work on a world.
type rig struct {
	*world
	engine  *engine.Engine
	watch   *watch.Watch
	log     *logBook
	reg     *prometheus.Registry
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // of Run, once done is closed
	started time.Time
}

// start runs a relay until the test ends or stop is called.
func start(t testing.TB, w *world, tune func(*engine.Config), sinks ...relay.Sink) *rig {
	t.Helper()
	cfg := engine.DefaultConfig()
	cfg.WorkerID, cfg.UnroutablePatience = "worker-1", 0
	if tune != nil {
		tune(&cfg)
	}
	r := &rig{world: w, log: &logBook{}, reg: prometheus.NewRegistry(), done: make(chan struct{}), started: time.Now()}
	log := hclog.New(&hclog.LoggerOptions{Output: r.log, Level: hclog.Debug, DisableTime: true})
	r.watch = watch.New(watch.NewMetrics(r.reg, cfg.WorkerID, watch.DefaultConfig()), nil, log)
	var err error
	enc := engine.Sagaz
	if w.enc != nil {
		enc = w.enc
	}
	r.engine, err = engine.New(cfg, log, r.watch, source{w}, store{w, cfg.WorkerID}, enc, sinks...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.done)
		r.err = r.engine.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
		if t.Failed() {
			text := r.log.String()
			t.Logf("the relay's log ends with:\n%s", text[max(0, len(text)-4000):])
		}
	})
	return r
}

// stop ends the relay and returns what Run returned.
func (r *rig) stop() error {
	r.cancel()
	<-r.done
	return r.err
}

// slot is the status of the one slot.
func (r *rig) slot() watch.SlotStatus {
	if all := r.watch.Status().Slots; len(all) > 0 {
		return all[0]
	}
	return watch.SlotStatus{}
}

// metric returns the sum of a series' values over all its labels, and whether it is exported.
func (r *rig) metric(name string, labels ...string) (sum float64, exported bool) {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			has := make(map[string]bool)
			for _, l := range m.GetLabel() {
				has[l.GetName()+"="+l.GetValue()] = true
			}
			if slices.ContainsFunc(labels, func(want string) bool { return !has[want] }) {
				continue
			}
			exported = true
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum, exported
}

func (r *rig) wantMetric(want float64, name string, labels ...string) {
	r.t.Helper()
	if got, _ := r.metric(name, labels...); got != want {
		r.t.Errorf("%s%v: got %v, want %v", name, labels, got, want)
	}
}

// logBook keeps what was logged.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// count returns how many lines contain a text.
func (b *logBook) count(text string) (n int) {
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// labels of records, with spaces between: "a1 b1 a2".
func labels(records []*relay.Record) string {
	var all []string
	for _, rec := range records {
		all = append(all, label(rec.EventID))
	}
	return strings.Join(all, " ")
}

// offers is what each call of Publish offered and what became of it: "a1 b1!" has b1 not taken.
// Calls are in the order of their numbers.
func offers(s *sinktest.Script) []string {
	var calls []string
	for _, o := range s.Offered() {
		for len(calls) < o.Call {
			calls = append(calls, "")
		}
		text := label(o.Record.EventID)
		if o.Err != nil {
			text += "!"
		}
		calls[o.Call-1] = strings.TrimSpace(calls[o.Call-1] + " " + text)
	}
	return calls
}

// numbered is "a1 a2 … an".
func numbered(key string, from, to int) []string {
	var all []string
	for i := from; i <= to; i++ {
		all = append(all, fmt.Sprint(key, i))
	}
	return all
}

// keysOfLanes returns a key for each of n lanes.
func keysOfLanes(n int) []string {
	keys := make([]string, n)
	for found, c := 0, 'a'; found < n; c++ {
		lane := int(relay.KeyHash(string(c))&0x7fffffff) % n
		if keys[lane] == "" {
			keys[lane] = string(c)
			found++
		}
	}
	return keys
}

var errBroker = errors.New("leader moved")
