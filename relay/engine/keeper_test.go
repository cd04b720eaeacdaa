package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

var errSetup = &relay.SetupError{Problem: "wal_level is replica", Fix: "set wal_level = logical"}

func TestKeeper(t *testing.T) {
	// The lease is lost: everything stops at once, the relay is a standby, and takes the slot again
	// when it can, with a new pipeline.
	bubble(t, "LeaseLostAndTakenAgain", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		r := start(t, w, oneLane, sink)
		w.commit("a", "b")
		<-gate.Reached
		first := w.lease()
		r.wantMetric(1, "outbox_shards_owned")
		if got := r.slot(); got.Role != relay.Owner || got.Epoch != 1 || !got.Streaming {
			t.Errorf("status %+v, want the streaming owner of epoch 1", got)
		}
		time.Sleep(2 * time.Second) // the gauges are up to date every second
		r.wantMetric(2, "outbox_pending_events_total")
		r.wantMetric(2, "outbox_pending_events")
		r.wantMetric(2, "outbox_processing_events_total")
		if lag, _ := r.metric("outbox_replication_lag_seconds"); lag < 1 || lag > 2 {
			t.Errorf("replication lag %v s after two seconds", lag)
		}
		if age, _ := r.metric("outbox_oldest_pending_seconds"); age < 1 || age > 2 {
			t.Errorf("the oldest waits for %v s after two seconds", age)
		}
		r.wantMetric(1, "outbox_mode", "mode=cdc")
		r.wantMetric(1, "outbox_stream_up")
		r.wantMetric(2, "outbox_received_events_total")
		w.takenOver()
		first.lose(errConnection)
		w.until("the lease is released", func() bool { return slices.Contains(w.trace, "release") })
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := r.slot(); got.Role != relay.Standby || got.Inflight != 0 || got.Epoch != 0 {
			t.Errorf("status %+v, want a standby with nothing in flight", got)
		}
		if problems := r.watch.Status().Problems(); len(problems) > 0 {
			t.Errorf("problems %q, want none: a standby is ready", problems)
		}
		r.wantMetric(1, "outbox_ready")
		r.wantMetric(0, "outbox_shards_owned")
		r.wantMetric(0, "outbox_pending_events_total")
		r.wantMetric(0, "outbox_pending_events")
		r.wantMetric(0, "outbox_processing_events_total")
		for _, name := range []string{"outbox_replication_lag_seconds", "outbox_slot_active", "outbox_ledger_events", "outbox_events_by_state", "outbox_mode"} {
			if _, there := r.metric(name); there {
				t.Errorf("a standby exports %s", name)
			}
		}
		// Cut short; the stream is closed before the lease is released.
		wantOffers(t, sink, "a1! b1!")
		if got, want := fmt.Sprint(w.trace), "[acquire open close release]"; got != want {
			t.Errorf("trace: got %s, want %s", got, want)
		}
		if n := r.log.count(errConnection.Error()); n == 0 {
			t.Errorf("the log does not say why the lease was lost:\n%s", r.log)
		}
		gate.Release()
		w.givenBack()
		w.untilStatus("sent", "a1", "b1")
		if got := r.slot(); got.Role != relay.Owner || got.Epoch != 3 {
			t.Errorf("status %+v, want the owner of epoch 3", got)
		}
		r.wantMetric(3, "outbox_lease_changes_total")
		r.wantMetric(0, "outbox_failed_events_total")
	})

	// Another relay has taken the slot and this one finds out by its mark: it marks and publishes
	// nothing more.
	bubble(t, "FencedMark", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gate := sink.OnCall(1).Block()
		start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.BatchSize = 1, 1 }, sink)
		w.commit("a")
		<-gate.Reached
		w.takenOver()
		gate.Release()
		w.until("the lease is released", func() bool { return slices.Contains(w.trace, "release") })
		w.commit("a")
		time.Sleep(time.Minute)
		synctest.Wait()
		wantStatus(t, w, "a1", "pending")
		wantTaken(t, sink, "a1")
		if len(w.marks) != 1 {
			t.Errorf("%d marks, want the one that was fenced", len(w.marks))
		}
	})

	// Two relays, one slot: one works, the other is a standby and takes over within moments.
	// Nothing is lost and each key stays in order.
	bubble(t, "Handover", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		one := start(t, w, oneLane, sink)
		w.lease()
		two := start(t, w, oneLane, sink)
		synctest.Wait()
		if got := two.slot().Role; got != relay.Standby {
			t.Errorf("the second relay is %s, want standby", got)
		}
		two.wantMetric(0, "outbox_shards_owned")
		for range 10 {
			w.commit("a", "b")
		}
		synctest.Wait()
		if err := one.stop(); err != nil {
			t.Error(err)
		}
		w.commit("a")
		w.untilStatus("sent", append(numbered("a", 1, 11), numbered("b", 1, 10)...)...)
		if got := two.slot().Role; got != relay.Owner {
			t.Errorf("the second relay is %s, want owner", got)
		}
		perKey := make(map[string][]string)
		for _, rec := range sink.Taken() {
			perKey[rec.Key] = append(perKey[rec.Key], label(rec.EventID))
		}
		if got, want := fmt.Sprint(perKey), fmt.Sprint(map[string][]string{"a": numbered("a", 1, 11), "b": numbered("b", 1, 10)}); got != want {
			t.Errorf("taken: got %s, want %s", got, want)
		}
	})

	bubble(t, "SetupErrorAtFirst", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.openErrs = []error{errSetup}
		r := start(t, w, oneLane, sink)
		<-r.done
		var setup *relay.SetupError
		if !errors.As(r.err, &setup) || setup != errSetup {
			t.Errorf("got %v, want the source's SetupError", r.err)
		}
		if !strings.Contains(r.err.Error(), `slot "sagaz_outbox"`) || !strings.Contains(r.err.Error(), "to fix it: set wal_level = logical") {
			t.Errorf("%q does not name the slot and the fix", r.err)
		}
		if w.owner != nil {
			t.Error("the lease is still held")
		}
	})

	bubble(t, "SetupErrorByCheck", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.checkErrs = []error{errConnection, errConnection, errSetup}
		r := start(t, w, oneLane, sink)
		synctest.Wait()
		if problems := r.watch.Status().Problems(); len(problems) != 1 || !strings.Contains(problems[0], errConnection.Error()) {
			t.Errorf("problems %q while the database is away, want one, with the cause", problems)
		}
		r.wantMetric(0, "outbox_ready")
		<-r.done
		if !errors.Is(r.err, errSetup) {
			t.Errorf("got %v, want the check's SetupError", r.err)
		}
		if n := r.log.count("waiting for the database"); n != 1 {
			t.Errorf("%d log lines about a database that was away for a moment, want one", n)
		}
		if len(w.trace) > 0 {
			t.Errorf("trace %q, want nothing done", w.trace)
		}
	})

	// A database that is away for long is logged at intervals, not at every try.
	bubble(t, "DatabaseAwayForLong", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.checkErrs = append(slices.Repeat([]error{errConnection}, 100), errSetup)
		began, r := time.Now(), start(t, w, oneLane, sink)
		<-r.done
		took := time.Since(began)
		if n, most := r.log.count("waiting for the database"), int(took/(30*time.Second))+1; n > most || n < 2 {
			t.Errorf("%d log lines in %s, want from 2 to %d", n, took, most)
		}
	})

	// What worked once may be fixed while we run.
	bubble(t, "SetupErrorLater", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		broken := w.stream()
		w.change(func() { w.openErrs = []error{errSetup, errSetup, errSetup} })
		broken.fail(errConnection)
		w.until("three more have failed", func() bool { return len(w.openErrs) == 0 })
		w.commit("a")
		w.untilStatus("sent", "a1")
		if n := r.log.count("[ERROR]"); n != 3 {
			t.Errorf("%d errors logged, want 3", n)
		}
	})

	// A transient error at first is waited out.
	bubble(t, "DatabaseAwayAtFirst", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.openErrs = []error{errConnection, errConnection}
		r := start(t, w, oneLane, sink)
		w.commit("a")
		w.untilStatus("sent", "a1")
		if n := r.log.count("replication resumed"); n != 0 {
			t.Error("the log reports a resumption, though it had never worked before")
		}
	})

	bubble(t, "NoConnectionForLong", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		broken := w.stream()
		w.change(func() { w.openErrs = slices.Repeat([]error{errConnection}, 20) })
		broken.fail(errConnection)
		time.Sleep(14 * time.Second)
		if problems := r.watch.Status().Problems(); len(problems) != 0 {
			t.Errorf("problems %q after 14 s without a connection, want none yet", problems)
		}
		r.wantMetric(1, "outbox_ready")
		time.Sleep(2 * time.Second)
		if problems := r.watch.Status().Problems(); len(problems) != 1 || !strings.Contains(problems[0], "no replication connection for 16 s") {
			t.Errorf("problems %q after 16 s without a connection", problems)
		}
		r.wantMetric(0, "outbox_ready")
	})

	bubble(t, "StoppedWhileStandingBy", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.taken = true
		r := start(t, w, oneLane, sink)
		synctest.Wait()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})

	bubble(t, "StoppedWhileTheDatabaseIsAway", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.checkErrs = slices.Repeat([]error{errConnection}, 1000)
		r := start(t, w, oneLane, sink)
		time.Sleep(time.Minute)
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	w := newWorld(t)
	cfg := engine.DefaultConfig()
	cfg.WorkerID = "w"
	r := start(t, w, nil, sinktest.NewScript("kafka")) // for its parts
	if _, err := engine.New(cfg, nil, nil, source{w}, store{w, "w"}, engine.Sagaz); err == nil {
		t.Error("a relay without a sink: no error")
	}
	cfg.Lanes = 0
	if _, err := engine.New(cfg, nil, nil, source{w}, store{w, "w"}, engine.Sagaz, sinktest.NewScript("kafka")); err == nil || !strings.Contains(err.Error(), "RELAY_LANES=0") {
		t.Errorf("a relay with bad settings: got %v", err)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// Started and stopped a hundred times, several at once and at any moment, a relay leaves no
// goroutine behind.
func TestStartStop(t *testing.T) {
	before := goleak.IgnoreCurrent()
	var all sync.WaitGroup
	for n := range 100 {
		all.Go(func() {
			w, sink := newWorld(t), sinktest.NewScript("kafka")
			r := start(t, w, func(cfg *engine.Config) { cfg.MarkLinger = time.Millisecond }, sink)
			w.commit("a", "b")
			switch n % 4 {
			case 0: // at once
			case 1:
				w.lease()
			case 2:
				_ = sink.WaitTaken(t.Context(), 1)
			case 3:
				w.untilStatus("sent", "a1", "b1")
			}
			if err := r.stop(); err != nil {
				t.Error(err)
			}
			if w.owner != nil || w.reading != nil {
				t.Errorf("lease %v and stream %v are left", w.owner, w.reading)
			}
		})
		if n%8 == 7 {
			all.Wait()
		}
	}
	all.Wait()
	goleak.VerifyNone(t, before)
}

// Two relays, brokers that fail, connections that break, leases that are lost, in random order: in
// the end every row is sent, every key was acknowledged in order but for repeated suffixes, and the
// slot never stood behind a row that was not settled. With several slots these are also given back,
// and the table is divided in another way.
func TestPromisesUnderTrouble(t *testing.T) {
	for seed := range uint64(24) {
		bubble(t, fmt.Sprint("seed=", seed), func(t *testing.T) { trouble(t, seed, 1) })
	}
	for seed := range uint64(24) {
		bubble(t, fmt.Sprint("slots=3,seed=", seed), func(t *testing.T) { trouble(t, seed, 3) })
	}
}

func trouble(t *testing.T, seed uint64, shards int) {
	r := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t)
	if shards > 1 {
		w.divide(shards)
	}
	any := func() *place { return w.at(r.IntN(w.set.Shards)) }
	w.passEnds, w.batch = r.IntN(2) == 0, r.IntN(4)
	scripts := []*sinktest.Script{sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")}
	sinks := []relay.Sink{scripts[0], scripts[1]}
	var marking atomic.Int64 // how many marks are still to fail
	var rng sync.Mutex       // guards dice
	dice := rand.New(rand.NewPCG(seed, 1))
	w.onMark = func(_ context.Context, _ int, marks []relay.Mark) (later []int, err error) {
		if marking.Add(-1) >= 0 {
			return nil, errConnection
		}
		rng.Lock()
		defer rng.Unlock()
		if dice.IntN(5) == 0 {
			later = append(later, dice.IntN(len(marks)))
		}
		return later, nil
	}
	names := []string{"worker-1", "worker-2"}
	tune := func(cfg *engine.Config) {
		cfg.WorkerID, names = names[0], names[1:]
		cfg.Lanes, cfg.BatchSize, cfg.InflightEvents, cfg.MarkBatch, cfg.MarkLinger = 3, 4, 10, 5, 3*time.Millisecond
		cfg.BackoffMin, cfg.BackoffMax = 2*time.Millisecond, 20*time.Millisecond
		cfg.RetryMin, cfg.RetryMax, cfg.MaxRetries = 2*time.Millisecond, 50*time.Millisecond, 1000
		cfg.PollInterval = 20 * time.Millisecond
		if seed%2 == 0 {
			cfg.SinkIsolation = 50 * time.Millisecond
		}
	}
	relays := []*rig{start(t, w, tune, sinks...), start(t, w, tune, sinks...)}
	var all []string
	for range 400 {
		what := r.IntN(15)
		if shards > 1 && r.IntN(12) == 0 {
			what = 100
			if r.IntN(8) == 0 {
				what = 101
			}
		}
		switch sink := scripts[r.IntN(2)]; what {
		case 100:
			p, to := any(), fmt.Sprint("worker-", 1+r.IntN(2))
			w.mu.Lock()
			l := p.owner
			w.mu.Unlock()
			if l != nil {
				l.giveBack(to)
			}
		case 101:
			w.divide(1 + r.IntN(4))
		case 9: // one that the broker does not want, for a while
			key := string(rune('a' + r.IntN(6)))
			sink.OnEvent(id(fmt.Sprint(key, w.perKey[key]+1+r.IntN(5)))).Times(1+r.IntN(3)).Refuse(relay.ReasonRejected, errors.New("no"))
		case 10: // the slot is gone
			p := any()
			w.mu.Lock()
			s := p.reading
			broken := s != nil && s.in != nil
			if broken {
				p.gone = relay.GoneMissing
			}
			w.mu.Unlock()
			if broken {
				s.fail(errConnection)
			}
		case 11: // the database does not take outcomes
			left := r.IntN(3)
			w.mu.Lock()
			w.onResolve = func() error {
				if left--; left >= 0 {
					return errConnection
				}
				return nil
			}
			w.mu.Unlock()
		case 0:
			p := any()
			w.mu.Lock()
			s := p.reading
			broken := s != nil && s.in != nil
			w.mu.Unlock()
			if broken {
				s.fail(errConnection)
			}
		case 1:
			p := any()
			w.mu.Lock()
			l := p.owner
			valid := l != nil && l.valid
			w.mu.Unlock()
			if valid {
				l.lose(errConnection)
			}
		case 2:
			calls, _ := sink.Calls()
			sink.OnCall(calls + 1 + r.IntN(3)).Lose(errBroker)
		case 3:
			calls, _ := sink.Calls()
			sink.OnCall(calls + 1 + r.IntN(3)).FailBatch(errBroker)
		case 4:
			sink.Down(errBroker)
		case 5:
			scripts[0].Down(nil)
			scripts[1].Down(nil)
		case 6:
			marking.Store(int64(r.IntN(3)))
		case 7:
			calls, _ := sink.Calls()
			sink.OnCall(calls + 1).Delay(time.Duration(r.IntN(30)) * time.Millisecond)
		case 8:
			w.quiet()
		default:
			var keys []string
			for range 1 + r.IntN(15) {
				keys = append(keys, string(rune('a'+r.IntN(6))))
			}
			w.commit(keys...)
		}
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
	}
	scripts[0].Down(nil)
	scripts[1].Down(nil)
	for key, n := range w.perKey {
		all = append(all, numbered(key, 1, n)...)
	}
	w.untilStatus("sent", all...)
	w.until("the slots are at the end", func() bool {
		for _, shard := range w.set.All() {
			p := w.places[shard.Slot]
			for i := range w.wal {
				if p.has(w.wal[i].AggregateID) && p.confirmed < w.wal[i].CommitLSN {
					return false
				}
			}
		}
		return true
	})
	for _, one := range relays {
		if err := one.stop(); err != nil {
			t.Error(err)
		}
	}
	for _, s := range scripts {
		newest := make(map[string]int)
		for _, rec := range s.Taken() {
			var n int
			if _, err := fmt.Sscanf(label(rec.EventID)[1:], "%d", &n); err != nil {
				t.Fatal(err)
			}
			if n > newest[rec.Key]+1 {
				t.Errorf("%s: %s%d came before %s%d", s.Name(), rec.Key, n, rec.Key, newest[rec.Key]+1)
				t.Log(offersOf(s, rec.Key))
			}
			newest[rec.Key] = max(newest[rec.Key], n)
		}
		if got, want := fmt.Sprint(newest), fmt.Sprint(w.perKey); got != want {
			t.Errorf("%s took %s, want %s", s.Name(), got, want)
		}
	}
}

func offersOf(s *sinktest.Script, key string) (out []string) {
	for _, o := range s.Offered() {
		if o.Record.Key == key {
			out = append(out, fmt.Sprint(o.Call, ":", label(o.Record.EventID), " ", o.Err))
		}
	}
	return out
}
