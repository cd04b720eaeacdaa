package engine_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/relay/watch"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// named is a relay of its own name, with one lane.
func named(worker string, more ...func(*engine.Config)) func(*engine.Config) {
	return func(cfg *engine.Config) {
		oneLane(cfg)
		cfg.WorkerID = worker
		for _, m := range more {
			m(cfg)
		}
	}
}

// divided is a world with so many slots, which belong to worker-1.
func divided(t *testing.T, shards int) *world {
	w := newWorld(t)
	w.divide(shards)
	for i := range shards {
		w.at(i).onlyFor = "worker-1"
	}
	return w
}

// slotOf is a slot's status.
func (r *rig) slotOf(p *place) watch.SlotStatus {
	for _, s := range r.watch.Status().Slots {
		if s.Slot == p.shard.Slot {
			return s
		}
	}
	return watch.SlotStatus{}
}

// wantOnce checks that a sink has taken each of the labels once, each key in its order.
func wantOnce(t *testing.T, sink *sinktest.Script, w *world) {
	t.Helper()
	got := make(map[string][]string)
	for _, rec := range sink.Taken() {
		got[rec.Key] = append(got[rec.Key], label(rec.EventID))
	}
	want := make(map[string][]string)
	for key, n := range w.perKey {
		want[key] = numbered(key, 1, n)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("taken %v, want %v", got, want)
	}
}

// all are the labels of all rows.
func (w *world) all() (all []string) {
	for key, n := range w.perKey {
		all = append(all, numbered(key, 1, n)...)
	}
	return all
}

func TestSeveralSlots(t *testing.T) {
	// One relay owns all: each event comes once, from the slot that has its key.
	bubble(t, "OneRelay", func(t *testing.T) {
		w, sink := divided(t, 4), sinktest.NewScript("kafka")
		r := start(t, w, named("worker-1", func(cfg *engine.Config) { cfg.Retention = time.Hour }), sink)
		w.untilOwned()
		for range 5 {
			w.commit("a", "b", "c", "d", "e", "f", "g", "h")
		}
		w.untilStatus("sent", w.all()...)
		wantOnce(t, sink, w)
		time.Sleep(2 * time.Second)
		r.wantMetric(4, "outbox_shards")
		r.wantMetric(4, "outbox_shards_owned")
		r.wantMetric(4, "outbox_stream_up")
		r.wantMetric(float64(engine.DefaultConfig().InflightEvents), "outbox_inflight_limit_events")
		if _, exported := r.metric("outbox_events_by_state"); !exported {
			t.Error("the owner of the first slot exports no count of the table")
		}
		w.mu.Lock()
		pruned := slices.Compact(slices.Clone(w.pruned))
		w.mu.Unlock()
		if fmt.Sprint(pruned) != "[sagaz_outbox_0of4]" {
			t.Errorf("old rows are removed by the owners of %v, want the first slot's alone", pruned)
		}
		if st := r.watch.Status(); st.Verdict().Summary != "Relaying from 4 of 4 slots" || len(st.Problems()) > 0 {
			t.Errorf("verdict %+v, problems %q", st.Verdict(), st.Problems())
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if got := fmt.Sprint(w.owners()); got != "[- - - -]" {
			t.Errorf("after the stop the owners are %s", got)
		}
	})

	// What waits on a slot that no relay owns is counted by the one that speaks for it, until
	// somebody owns it.
	bubble(t, "SlotWithoutOwner", func(t *testing.T) {
		w, sink := divided(t, 4), sinktest.NewScript("kafka")
		w.at(3).onlyFor = "worker-2"
		w.unowned = map[string]int{w.set.Shard(3).Slot: 25}
		r := start(t, w, named("worker-1"), sink)
		sink.Down(errBroker)
		w.commit(keysOf(0, 4, 2)...)
		time.Sleep(3 * time.Second)
		r.wantMetric(27, "outbox_pending_events_total")
		w.change(func() { w.unowned[w.set.Shard(3).Slot] = 30 })
		time.Sleep(5 * time.Second)
		r.wantMetric(32, "outbox_pending_events")
		w.change(func() { w.unowned = nil })
		r.wantMetric(2, "outbox_pending_events_total")
	})

	// What is known of the whole table comes from the first slot's owner. The sum of what waits is
	// the backlog.
	bubble(t, "TwoRelays", func(t *testing.T) {
		w, sink := divided(t, 4), sinktest.NewScript("kafka")
		w.at(2).onlyFor, w.at(3).onlyFor = "worker-2", "worker-2"
		one, two := start(t, w, named("worker-1"), sink), start(t, w, named("worker-2"), sink)
		w.untilOwned()
		if got := fmt.Sprint(w.owners()); got != "[worker-1 worker-1 worker-2 worker-2]" {
			t.Errorf("owners %s", got)
		}
		sink.Down(errBroker)
		for i := range 4 {
			w.commit(keysOf(i, 4, i+1)...)
		}
		time.Sleep(2 * time.Second)
		one.wantMetric(3, "outbox_pending_events_total")
		two.wantMetric(7, "outbox_pending_events_total")
		if _, exported := two.metric("outbox_events_by_state"); exported {
			t.Error("the owner of other slots counts the table, too")
		}
		for _, r := range []*rig{one, two} {
			r.wantMetric(2, "outbox_shards_owned")
			if p := r.problem(); p != "" {
				t.Errorf("owner of some, standby of others: %s", p)
			}
		}
		sink.Down(nil)
		w.untilStatus("sent", w.all()...)
		wantOnce(t, sink, w)
	})

	// A fault of one slot that a person has to fix is no end of the others, once one has worked.
	bubble(t, "OneSlotCannotBeRead", func(t *testing.T) {
		w, sink := divided(t, 2), sinktest.NewScript("kafka")
		w.at(1).onlyFor = "nobody"
		r := start(t, w, named("worker-1"), sink)
		w.stream()
		w.change(func() {
			w.openErrs = slices.Repeat([]error{errSetup}, 3)
			w.places["sagaz_outbox_1of2"].onlyFor = ""
		})
		w.commit("a", "b", "c", "d")
		w.untilStatus("sent", "a1", "b1", "c1", "d1")
		if n := r.log.count("replication cannot go on"); n != 3 {
			t.Errorf("logged %d times, want 3", n)
		}
	})
}

func TestGivingBack(t *testing.T) {
	// What is in flight is finished first, the other slots go on, and nothing comes twice.
	bubble(t, "WhileInFlight", func(t *testing.T) {
		w, sink := divided(t, 2), sinktest.NewScript("kafka")
		mine, other := keysOf(0, 2, 1)[0], keysOf(1, 2, 1)[0]
		gate := sink.OnEvent(id(mine + "1")).Block()
		one, two := start(t, w, named("worker-1"), sink), start(t, w, named("worker-2"), sink)
		w.untilOwned()
		w.commit(mine)
		<-gate.Reached
		w.leaseOf(w.at(0)).giveBack("worker-2")
		synctest.Wait()
		_, end := w.commit(mine, other)
		w.untilStatus("sent", other+"1")
		time.Sleep(time.Second)
		if s := one.slotOf(w.at(0)); s.Role != relay.Draining || !s.GivesBack || s.Inflight != 1 {
			t.Errorf("%+v, want it to finish the one event", s)
		}
		if p := one.problem(); p != "" {
			t.Errorf("giving a slot back makes the relay not ready: %s", p)
		}
		gate.Release()
		w.untilStatus("sent", mine+"2")
		wantOnce(t, sink, w)
		if got := fmt.Sprint(w.owners()); got != "[worker-2 worker-1]" {
			t.Errorf("owners %s", got)
		}
		if s := one.slotOf(w.at(0)); s.Role != relay.Standby || s.GivesBack {
			t.Errorf("%+v, want a standby", s)
		}
		one.wantMetric(1, "outbox_shards_owned")
		if _, there := one.metric("outbox_mode", "slot="+w.at(0).shard.Slot); there {
			t.Error("it exports series of the slot that it gave back")
		}
		time.Sleep(2 * time.Second)
		two.wantMetric(1, "outbox_shards_owned")
		if w.at(0).confirmed != end {
			t.Errorf("confirmed %s, want %s", w.at(0).confirmed, end)
		}
	})

	// A sink that is down keeps no slot: what it does not take goes to the ledger, and the next
	// owner delivers it, in order.
	bubble(t, "WhileASinkIsDown", func(t *testing.T) {
		w, sink := divided(t, 2), sinktest.NewScript("kafka")
		key := keysOf(0, 2, 1)[0]
		start(t, w, named("worker-1", quick), sink)
		w.untilOwned()
		sink.Down(errBroker)
		w.commit(key, key, key)
		time.Sleep(time.Second)
		began := time.Now()
		w.leaseOf(w.at(0)).giveBack("worker-2")
		w.until("it is given back", func() bool { return w.places["sagaz_outbox_0of2"].owner == nil })
		if took := time.Since(began); took > time.Second {
			t.Errorf("given back after %s", took)
		}
		if got, want := w.entriesOf("kafka"), fmt.Sprintf("%[1]s1 ready, %[1]s2 ready, %[1]s3 ready", key); got != want {
			t.Errorf("the ledger has %s, want %s", got, want)
		}
		sink.Down(nil)
		start(t, w, named("worker-2", quick), sink)
		w.commit(key)
		w.untilStatus("sent", w.all()...)
		wantOnce(t, sink, w)
	})

	// A sink that never answers keeps the slot for as long as a stop waits, and no longer. What it
	// has is not marked.
	bubble(t, "WithASinkThatObeysNobody", func(t *testing.T) {
		w, sink := divided(t, 2), &deafSink{release: make(chan struct{})}
		r := start(t, w, named("worker-1", func(cfg *engine.Config) { cfg.DrainTimeout = 2 * time.Second }), sink)
		w.untilOwned()
		key := keysOf(0, 2, 1)[0]
		w.commit(key)
		time.Sleep(time.Second)
		began := time.Now()
		w.leaseOf(w.at(0)).giveBack("worker-2")
		w.until("it is given back", func() bool { return w.places["sagaz_outbox_0of2"].owner == nil })
		if took := time.Since(began); took < 2*time.Second || took > 10*time.Second {
			t.Errorf("given back after %s", took)
		}
		wantStatus(t, w, key+"1", "pending")
		if got := r.slotOf(w.at(1)); got.Role != relay.Owner {
			t.Errorf("the other slot: %+v", got)
		}
		close(sink.release)
	})

	// In the middle of a sweep: the next owner makes it.
	bubble(t, "WhileSweeping", func(t *testing.T) {
		w, sink := divided(t, 2), sinktest.NewScript("kafka")
		key := keysOf(0, 2, 1)[0]
		w.commit(key, key)
		w.at(0).gone = relay.GoneMissing
		w.sweepCost = func(relay.SweepQuery) time.Duration { return time.Hour }
		r := start(t, w, named("worker-1"), sink)
		time.Sleep(time.Minute)
		if s := r.slotOf(w.at(0)); s.Mode != relay.ModeRecovering {
			t.Errorf("%+v, want it to sweep", s)
		}
		began := time.Now()
		w.leaseOf(w.at(0)).giveBack("worker-2")
		w.until("it is given back", func() bool { return w.places["sagaz_outbox_0of2"].owner == nil })
		if took := time.Since(began); took > time.Second {
			t.Errorf("given back after %s", took)
		}
		w.change(func() { w.sweepCost = nil })
		start(t, w, named("worker-2"), sink)
		w.untilStatus("sent", w.all()...)
		wantOnce(t, sink, w)
	})

	// The slot may be asked for before the relay has begun with it.
	bubble(t, "BeforeTheFirstEvent", func(t *testing.T) {
		w, sink := divided(t, 1), sinktest.NewScript("kafka")
		w.before.errs = slices.Repeat([]error{errConnection}, 1000)
		w.commit("a")
		start(t, w, named("worker-1", func(cfg *engine.Config) { cfg.Mode = relay.ModePolling }), sink)
		l := w.leaseOf(w.at(0))
		l.giveBack("worker-2")
		w.until("it is given back", func() bool { return w.places["sagaz_outbox"].owner == nil })
		two := start(t, w, named("worker-2"), sink)
		w.untilStatus("sent", "a1")
		wantOnce(t, sink, w)
		if err := two.stop(); err != nil {
			t.Error(err)
		}
	})

	bubble(t, "AndStopAtOnce", func(t *testing.T) {
		w, sink := divided(t, 2), sinktest.NewScript("kafka")
		key := keysOf(0, 2, 1)[0]
		gate := sink.OnEvent(id(key + "1")).Block()
		r := start(t, w, named("worker-1"), sink)
		w.untilOwned()
		w.commit(key)
		<-gate.Reached
		r.cancel()
		synctest.Wait()
		w.leaseOf(w.at(0)).giveBack("worker-2")
		time.Sleep(time.Second)
		if s := r.slotOf(w.at(0)); s.Role != relay.Draining || s.GivesBack {
			t.Errorf("%+v, want it to stop", s)
		}
		w.mu.Lock()
		if fmt.Sprint(w.left) != "[worker-1]" {
			t.Errorf("relays that have left: %v", w.left)
		}
		w.mu.Unlock()
		if p := r.problem(); !strings.Contains(p, "stopping") {
			t.Errorf("a relay that stops is ready: %q", p)
		}
		gate.Release()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		wantStatus(t, w, key+"1", "sent")
		if got := fmt.Sprint(w.owners()); got != "[- -]" {
			t.Errorf("owners %s", got)
		}
	})

	// The lease is lost while what is in flight is finished: nothing more is sent or marked.
	bubble(t, "AndTheLeaseIsLost", func(t *testing.T) {
		w, sink := divided(t, 2), sinktest.NewScript("kafka")
		key := keysOf(0, 2, 1)[0]
		gate := sink.OnEvent(id(key + "1")).Block()
		r := start(t, w, named("worker-1"), sink)
		w.untilOwned()
		w.commit(key, key)
		<-gate.Reached
		l := w.leaseOf(w.at(0))
		l.giveBack("worker-2")
		time.Sleep(time.Second)
		l.lose(errConnection)
		w.until("it is released", func() bool { return w.places["sagaz_outbox_0of2"].owner == nil })
		gate.Release()
		time.Sleep(time.Minute)
		if taken := sink.Taken(); len(taken) > 0 {
			t.Errorf("taken %s", labels(taken))
		}
		wantStatus(t, w, key+"1", "pending")
		if s := r.slotOf(w.at(0)); s.Role != relay.Standby {
			t.Errorf("%+v", s)
		}
		start(t, w, named("worker-2"), sink)
		w.untilStatus("sent", w.all()...)
		wantOnce(t, sink, w)
	})

	// What one slot's drain waits for holds up no other's: they end together.
	bubble(t, "AllAtOnceAtAStop", func(t *testing.T) {
		w, sink := divided(t, 8), &deafSink{release: make(chan struct{})}
		r := start(t, w, named("worker-1", func(cfg *engine.Config) { cfg.DrainTimeout = 10 * time.Second }), sink)
		w.untilOwned()
		for i := range 8 {
			w.commit(keysOf(i, 8, 1)...)
		}
		time.Sleep(time.Second)
		began := time.Now()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 16*time.Second {
			t.Errorf("stopped after %s", took)
		}
		close(sink.release)
	})
}

func TestSetChanges(t *testing.T) {
	// Under load, with two relays: everything comes once, each key in its order.
	bubble(t, "WhileOwner", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		one, two := start(t, w, named("worker-1"), sink), start(t, w, named("worker-2"), sink)
		w.untilOwned()
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				w.commit("a", "b", "c", "d", "e", "f", "g", "h", "i")
				select {
				case <-stop:
					return
				case <-time.After(3 * time.Millisecond):
				}
			}
		}()
		for _, shards := range []int{4, 2, 4, 3, 1} {
			time.Sleep(time.Second)
			w.divide(shards)
			w.untilOwned()
		}
		close(stop)
		<-stopped
		w.untilStatus("sent", w.all()...)
		wantOnce(t, sink, w)
		time.Sleep(10 * time.Second)
		for _, r := range []*rig{one, two} {
			st := r.watch.Status()
			if len(st.Slots) != 1 || st.Slots[0].Slot != "sagaz_outbox" {
				t.Errorf("slots that are gone are left: %+v", st.Slots)
			}
			r.wantMetric(1, "outbox_shards")
			if _, there := r.metric("outbox_slot_owned", "slot=sagaz_outbox_1of4"); there {
				t.Error("series of a slot that is gone are left")
			}
			if h := r.watch.History(); len(h.Slots) != 1 {
				t.Errorf("the history has %d slots", len(h.Slots))
			}
			if n := r.log.count("the table is divided in another way"); n != 5 {
				t.Errorf("logged %d changes, want 5", n)
			}
		}
	})

	// What waits in the ledger goes on in the slot that its key has now.
	bubble(t, "WithALedger", func(t *testing.T) {
		w, sink := divided(t, 2), sinktest.NewScript("kafka")
		start(t, w, named("worker-1", quick), sink)
		w.untilOwned()
		sink.Down(errBroker)
		for range 3 {
			w.commit("a", "b", "c", "d", "e")
		}
		time.Sleep(time.Minute)
		w.divide(4)
		w.commit("a", "b", "c", "d", "e")
		time.Sleep(time.Minute)
		sink.Down(nil)
		w.untilStatus("sent", w.all()...)
		wantOnce(t, sink, w)
	})

	// A standby's keepers end, too, and it stands by for the new slots.
	bubble(t, "WhileStandingBy", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.at(0).onlyFor = "somebody"
		r := start(t, w, named("worker-1"), sink)
		synctest.Wait()
		w.divide(3)
		w.untilOwned()
		w.commit("a", "b", "c", "d")
		w.untilStatus("sent", w.all()...)
		if st := r.watch.Status(); len(st.Slots) != 3 {
			t.Errorf("%d slots", len(st.Slots))
		}
	})

	// Acquire may say so before the set's channel does.
	bubble(t, "WhileAcquiring", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		w.at(0).onlyFor = "somebody"
		start(t, w, named("worker-1"), sink)
		synctest.Wait()
		w.mu.Lock()
		late := w.setChanged
		w.setChanged = make(chan struct{}) // nobody waits for this one
		w.mu.Unlock()
		w.divide(2)
		time.Sleep(time.Minute)
		if got := fmt.Sprint(w.owners()); got != "[- -]" {
			t.Errorf("owners %s before the set is known to have changed", got)
		}
		close(late)
		w.untilOwned()
	})

	// Nor does a stop wait for anything while the set changes.
	bubble(t, "AndStopAtOnce", func(t *testing.T) {
		w, sink := divided(t, 4), sinktest.NewScript("kafka")
		key := keysOf(0, 4, 1)[0]
		gate := sink.OnEvent(id(key + "1")).Block()
		r := start(t, w, named("worker-1"), sink)
		w.untilOwned()
		w.commit(key)
		<-gate.Reached
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.divide(2)
		}()
		time.Sleep(time.Second)
		r.cancel()
		gate.Release()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		<-done
		if got := fmt.Sprint(w.owners()); got != "[- -]" {
			t.Errorf("owners %s", got)
		}
		start(t, w, named("worker-2"), sink)
		w.untilStatus("sent", key+"1")
	})
}

func TestSharedBudget(t *testing.T) {
	few := func(cfg *engine.Config) { cfg.InflightEvents, cfg.InflightBytes = 8, 256<<10 }

	// Each slot has its part of the budget, whatever the others do, and all of it when they are
	// gone.
	bubble(t, "Events", func(t *testing.T) {
		w, sink := divided(t, 2), sinktest.NewScript("kafka")
		a, b := keysOf(0, 2, 1)[0], keysOf(1, 2, 1)[0]
		gate := sink.OnEvent(id(a + "1")).Block()
		r := start(t, w, named("worker-1", few), sink)
		w.untilOwned()
		for range 20 {
			w.commit(a)
		}
		<-gate.Reached
		synctest.Wait()
		if s := r.slotOf(w.at(0)); s.Inflight != 4 || s.InflightLimit != 4 || s.InflightBudget != 128<<10 {
			t.Errorf("%d events in flight of %d and %d bytes, want half of the budget", s.Inflight, s.InflightLimit, s.InflightBudget)
		}
		for range 20 {
			w.commit(b)
		}
		w.untilStatus("sent", numbered(b, 1, 20)...)
		w.leaseOf(w.at(1)).giveBack("worker-2")
		w.until("it is given back", func() bool { return w.places["sagaz_outbox_1of2"].owner == nil })
		synctest.Wait()
		if s := r.slotOf(w.at(0)); s.Inflight != 8 || s.InflightLimit != 8 {
			t.Errorf("%d events in flight of %d, want all of the budget", s.Inflight, s.InflightLimit)
		}
		gate.Release()
		w.untilStatus("sent", w.all()...)
		wantOnce(t, sink, w)
	})

	// Events larger than a share take turns: one of them is in memory at a time.
	bubble(t, "LargerThanAShare", func(t *testing.T) {
		w, sink := divided(t, 3), sinktest.NewScript("kafka")
		var keys []string
		var gates []*sinktest.Gate
		for i := range 3 {
			key := keysOf(i, 3, 1)[0]
			keys, gates = append(keys, key), append(gates, sink.OnEvent(id(key+"1")).Block())
		}
		r := start(t, w, named("worker-1", few), sink)
		w.untilOwned()
		for _, key := range keys {
			w.commitRows(insert(key, payloadOf(200_000)), insert(key))
		}
		for range 3 {
			time.Sleep(10 * time.Second)
			inflight, holder := 0, -1
			for i := range 3 {
				s := r.slotOf(w.at(i))
				if inflight += s.Inflight; s.Inflight > 0 {
					holder = i
				} else if r.log.count("waits for one of another slot") == 0 {
					t.Error("the log does not say what is waited for")
				}
			}
			if inflight != 1 || holder < 0 {
				t.Fatalf("%d large events are in flight, want one", inflight)
			}
			for i := range 3 {
				if s := r.slotOf(w.at(i)); i != holder && s.WaitsFor != relay.WaitsForRoom && w.status(keys[i]+"1") != "sent" {
					t.Errorf("slot %d waits for %q", i, s.WaitsFor)
				}
			}
			gates[holder].Release()
			w.untilStatus("sent", keys[holder]+"1", keys[holder]+"2")
		}
		wantOnce(t, sink, w)
	})

	// Who waits for the turn and ends leaves it to the others.
	bubble(t, "TheTurnIsNotLost", func(t *testing.T) {
		w, sink := divided(t, 3), sinktest.NewScript("kafka")
		var keys []string
		for i := range 3 {
			keys = append(keys, keysOf(i, 3, 1)[0])
		}
		gate := sink.OnEvent(id(keys[0] + "1")).Block()
		start(t, w, named("worker-1", few), sink)
		w.untilOwned()
		w.commitRows(insert(keys[0], payloadOf(200_000)))
		<-gate.Reached
		w.commitRows(insert(keys[1], payloadOf(200_000)))
		synctest.Wait()
		w.commitRows(insert(keys[2], payloadOf(200_000)))
		synctest.Wait()
		w.leaseOf(w.at(1)).giveBack("worker-2") // it is the next in turn
		w.leaseOf(w.at(0)).lose(errConnection)  // and this one has it
		w.untilStatus("sent", keys[2]+"1")
		gate.Release()
		start(t, w, named("worker-2", few), sink)
		w.untilStatus("sent", w.all()...)
		wantOnce(t, sink, w)
	})
}

// Lanes of several slots offer their sink no more at once, together, than those of one: it has its
// own copy of what it is offered. A batch does not get smaller than is of use, though.
func TestSharedBatch(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		w, sink := divided(t, 2), sinktest.NewScript("kafka")
		a := keysOf(0, 2, 1)[0]
		start(t, w, named("worker-1", func(cfg *engine.Config) { cfg.Lanes, cfg.BatchSize = 1, 400 }), sink)
		w.untilOwned()
		next := 1
		offers := func(events int) int {
			t.Helper()
			gate := sink.OnEvent(id(a + strconv.Itoa(next))).Block()
			w.commit(a)
			<-gate.Reached
			before, _ := sink.Calls()
			w.commit(slices.Repeat([]string{a}, events)...)
			synctest.Wait()
			gate.Release()
			next += events + 1
			w.untilStatus("sent", a+strconv.Itoa(next-1))
			after, _ := sink.Calls()
			return after - before
		}
		if n := offers(400); n != 2 {
			t.Errorf("400 events were offered in %d batches, want two of half the size", n)
		}
		w.leaseOf(w.at(1)).giveBack("worker-2")
		w.until("it is given back", func() bool { return w.places["sagaz_outbox_1of2"].owner == nil })
		synctest.Wait()
		if n := offers(400); n != 1 {
			t.Errorf("400 events were offered in %d batches, want one, because no other slot is left", n)
		}
		wantOnce(t, sink, w)
	})
}

// A sink is isolated as long as it is for one slot or more.
func TestIsolatedForSeveralSlots(t *testing.T) {
	bubble(t, "GivingOneBack", func(t *testing.T) {
		w, sink := divided(t, 2), sinktest.NewScript("kafka")
		r := start(t, w, named("worker-1", quick, func(cfg *engine.Config) { cfg.SinkIsolation = time.Second }), sink)
		w.untilOwned()
		sink.Down(errors.New("connection refused"))
		w.commit(append(keysOf(0, 2, 2), keysOf(1, 2, 2)...)...)
		time.Sleep(time.Minute)
		state := func(isolated, up float64) {
			t.Helper()
			r.wantMetric(isolated, "outbox_sink_isolated")
			r.wantMetric(up, "outbox_sink_up")
		}
		state(1, 0)
		w.leaseOf(w.at(0)).giveBack("worker-2")
		time.Sleep(time.Minute)
		state(1, 0)
		sink.Down(nil)
		time.Sleep(time.Minute)
		state(0, 1)
		w.at(0).onlyFor = "worker-1"
		w.change(func() {})
		w.untilStatus("sent", w.all()...)
		wantOnce(t, sink, w)
		state(0, 1)
	})
}

// Whatever the number of slots, the next owner finds in the ledger which keys have to wait.
func TestLedgerOfSeveralSlots(t *testing.T) {
	for _, shards := range []int{1, 2, 3, 5, 6, 7, 9, 33, 64} {
		bubble(t, fmt.Sprint(shards), func(t *testing.T) {
			w, sink := divided(t, shards), sinktest.NewScript("kafka")
			var keys []string
			for i := range shards {
				keys = append(keys, keysOf(i, shards, 3)...)
			}
			for _, key := range keys {
				sink.OnEvent(id(key+"1")).Times(1).Refuse(relay.ReasonUnroutable, errNoQueue)
			}
			patient := func(cfg *engine.Config) { cfg.RetryMin, cfg.RetryMax = time.Minute, time.Minute }
			r := start(t, w, named("worker-1", patient), sink)
			w.untilOwned()
			w.commit(keys...)
			for _, key := range keys {
				w.untilStatus("failed", key+"1")
			}
			r.stop()
			start(t, w, named("worker-1", patient), sink)
			w.untilOwned()
			w.commit(keys...)
			w.untilStatus("sent", w.all()...)
			wantOnce(t, sink, w)
		})
	}
}
