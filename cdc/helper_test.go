package cdc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Closing(m)) }

// patience is for what happens at once on a machine that has nothing else to do.
const patience = time.Minute

// soon is for what waits for nothing, as opposed to what ends only by a timeout of minutes, or
// never. It is longer than a slow disk stands still.
const soon = 20 * time.Second

// intake records what a stream hands on and fails the test when that is out of order.
type intake struct {
	t testing.TB

	// called first in every Admit; may block
	admit func(ctx context.Context, events []relay.Event) error

	mu        sync.Mutex // guards what follows
	changed   chan struct{}
	events    []relay.Event
	passed    relay.LSN // highest position of Pass, or CommitEnd of an event
	heard     relay.LSN
	pinned    bool // the watermark stays where it is
	unordered bool // several streams have it
	watermark relay.LSN
}

func newIntake(t testing.TB) *intake { return &intake{t: t, changed: make(chan struct{})} }

func (in *intake) Admit(ctx context.Context, events []relay.Event) error {
	if in.admit != nil {
		if err := in.admit(ctx, events); err != nil {
			return err
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for i := range events {
		e := &events[i]
		if in.unordered {
			in.events = append(in.events, *e)
			continue
		}
		if e.CommitLSN < in.passed {
			in.t.Errorf("got an event of the transaction committed at %s after a position of %s", e.CommitLSN, in.passed)
		}
		if n := len(in.events); n > 0 {
			last := &in.events[n-1]
			switch {
			case e.CommitLSN < last.CommitLSN:
				in.t.Errorf("got an event of the commit at %s after one at %s", e.CommitLSN, last.CommitLSN)
			case e.CommitLSN == last.CommitLSN && (e.Ordinal != last.Ordinal+1 || last.CommitEnd != 0):
				in.t.Errorf("got event %d of commit %s after event %d with CommitEnd %s", e.Ordinal, e.CommitLSN, last.Ordinal, last.CommitEnd)
			case e.CommitLSN > last.CommitLSN && e.Ordinal != 0:
				in.t.Errorf("got event %d of commit %s first", e.Ordinal, e.CommitLSN)
			case e.CommitLSN > last.CommitLSN && in.passed <= last.CommitLSN:
				in.t.Errorf("nothing has reported where commit %s ends", last.CommitLSN)
			}
		}
		in.events = append(in.events, *e)
		in.move(e.CommitEnd)
	}
	in.wake()
	return nil
}

func (in *intake) Pass(lsn relay.LSN) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.move(lsn)
	in.wake()
}

func (in *intake) move(lsn relay.LSN) {
	in.passed = max(in.passed, lsn)
	if !in.pinned {
		in.watermark = max(in.watermark, in.passed)
	}
}

func (in *intake) wake() {
	close(in.changed)
	in.changed = make(chan struct{})
}

func (in *intake) Heard(lsn relay.LSN) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.heard = max(in.heard, lsn)
}

func (in *intake) Watermark() relay.LSN {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.watermark
}

// pin keeps the watermark where it is; release lets it catch up.
func (in *intake) pin() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.pinned = true
}

func (in *intake) release() relay.LSN {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.pinned, in.watermark = false, in.passed
	return in.watermark
}

// until waits until is accepts what has been recorded, and returns the events.
func (in *intake) until(what string, is func() bool) []relay.Event {
	in.t.Helper()
	deadline := time.After(patience)
	for {
		in.mu.Lock()
		ok, changed, events := is(), in.changed, slices.Clone(in.events)
		in.mu.Unlock()
		if ok {
			return events
		}
		select {
		case <-changed:
		case <-deadline:
			in.t.Fatalf("after %s still no %s: %d events, passed %s", patience, what, len(events), in.passed)
		}
	}
}

func (in *intake) wait(n int) []relay.Event {
	in.t.Helper()
	events := in.until(fmt.Sprintf("%d events", n), func() bool { return len(in.events) >= n })
	if len(events) != n {
		in.t.Fatalf("got %d events, want %d", len(events), n)
	}
	return events
}

// waitPassed waits until everything committed before lsn is known to have been handed on.
func (in *intake) waitPassed(lsn relay.LSN) []relay.Event {
	in.t.Helper()
	return in.until("position "+lsn.String(), func() bool { return in.passed >= lsn })
}

func config(dsn string) Config {
	cfg := DefaultConfig()
	cfg.DatabaseURL = dsn
	return cfg
}

func newSource(t testing.TB, cfg Config) *Source {
	t.Helper()
	src, err := New(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// whole is the shard of a table that is not divided.
func whole(slot string) relay.Shard { return relay.Alone(slot, "sagaz_outbox") }

// open makes the slot if need be and opens it. A predecessor's walsender may need a moment to go.
func open(t testing.TB, src *Source, slot string) relay.Stream {
	t.Helper()
	return openShard(t, src, whole(slot))
}

func openShard(t testing.TB, src *Source, shard relay.Shard) relay.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		_, err := src.Create(ctx, shard)
		var st relay.Stream
		if err == nil {
			st, err = src.Open(ctx, shard, 0)
		}
		if err == nil {
			return st
		}
		if !errors.Is(err, relay.ErrSlotBusy) {
			t.Fatalf("open: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// running is a stream on its own goroutine.
type running struct {
	t      testing.TB
	stream relay.Stream
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of Run; after done
	once   sync.Once
}

func start(t testing.TB, src *Source, slot string, in relay.Intake) *running {
	t.Helper()
	return runAgain(t, open(t, src, slot), in, func(ctx context.Context) (relay.Stream, error) { return src.Open(ctx, whole(slot), 0) })
}

func run(t testing.TB, stream relay.Stream, in relay.Intake) *running {
	t.Helper()
	return runAgain(t, stream, in, nil)
}

// runAgain is run that opens the stream again, as the engine does, where PostgreSQL 14 has ended it
// while it began: "lock ShareLock on object … is already held", now and then, when other sessions
// begin transactions meanwhile.
func runAgain(t testing.TB, stream relay.Stream, in relay.Intake, open func(context.Context) (relay.Stream, error)) *running {
	t.Helper()
	r := &running{t: t, stream: stream, done: make(chan struct{})}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(r.done)
		r.err = r.stream.Run(ctx, in)
		for open != nil && r.err != nil && strings.Contains(r.err.Error(), "is already held (SQLSTATE XX000)") {
			_ = r.stream.Close(ctx)
			again, err := open(ctx)
			if err != nil {
				r.err = err
				return
			}
			r.stream = again
			r.err = r.stream.Run(ctx, in)
		}
	}()
	t.Cleanup(func() {
		if err := r.stop(); t.Failed() {
			t.Logf("Run has returned %v", err)
		}
	})
	return r
}

// returned waits until Run returns by itself.
func (r *running) returned() error {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Fatalf("Run has not returned after %s", patience)
	}
	return r.err
}

// ended waits until Run returns by itself, and closes the stream.
func (r *running) ended() error {
	r.t.Helper()
	err := r.returned()
	r.cancel()
	r.close()
	return err
}

// stop cancels Run and closes the stream; it returns Run's error.
func (r *running) stop() error {
	r.t.Helper()
	r.cancel()
	return r.ended()
}

func (r *running) close() (err error) {
	r.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		err = r.stream.Close(ctx)
	})
	return err
}

// alive fails the test if Run has returned.
func (r *running) alive() {
	r.t.Helper()
	select {
	case <-r.done:
		r.t.Fatalf("Run has returned: %v", r.err)
	default:
	}
}

const insertSQL = `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'saga', $1, 'Made', '{}')`

func insert(t testing.TB, db *pgtest.DB, keys ...string) {
	t.Helper()
	for _, key := range keys {
		exec(t, db, insertSQL, key)
	}
}

func exec(t testing.TB, db *pgtest.DB, sql string, args ...any) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// ask returns the one value of a query as text.
func ask(t testing.TB, db *pgtest.DB, sql string, args ...any) string {
	t.Helper()
	var s *string
	if err := db.Pool.QueryRow(t.Context(), "SELECT ("+sql+")::text", args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if s == nil {
		return "NULL"
	}
	return *s
}

func askLSN(t testing.TB, db *pgtest.DB, sql string, args ...any) relay.LSN {
	t.Helper()
	lsn, err := relay.ParseLSN(ask(t, db, sql, args...))
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func confirmed(t testing.TB, db *pgtest.DB) relay.LSN {
	t.Helper()
	return askLSN(t, db, `SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1`, db.Name)
}

func keys(events []relay.Event) string {
	var b strings.Builder
	for i := range events {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(events[i].AggregateID)
	}
	return b.String()
}

// wantSetup fails the test unless err is a *relay.SetupError with a Fix that has every one of the
// texts in it.
func wantSetup(t testing.TB, err error, texts ...string) {
	t.Helper()
	var setup *relay.SetupError
	switch {
	case !errors.As(err, &setup):
		t.Errorf("got %T (%v), want a *relay.SetupError", err, err)
		return
	case setup.Fix == "":
		t.Errorf("it has no Fix: %v", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("got %q, want %q in it", err, text)
		}
	}
}

// wantGone fails the test unless err is a *relay.SlotGoneError of the slot with the given cause,
// and has every one of the texts in it.
func wantGone(t testing.TB, err error, slot string, cause relay.GoneCause, texts ...string) {
	t.Helper()
	var gone *relay.SlotGoneError
	if !errors.As(err, &gone) || gone.Slot != slot || gone.Cause != cause {
		t.Errorf("got %T (%v), want a *relay.SlotGoneError of slot %s with cause %s", err, err, slot, cause)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("got %q, want %q in it", err, text)
		}
	}
}

// wantStreaming fails the test unless err is a *relay.SetupError that has whether only streaming is
// impossible.
func wantStreaming(t testing.TB, err error, streaming bool) {
	t.Helper()
	var setup *relay.SetupError
	if !errors.As(err, &setup) || setup.Streaming != streaming {
		t.Errorf("got %T (%v), want a *relay.SetupError with Streaming %t", err, err, streaming)
	}
}
