package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// Each kind of change, by what brings it about.
func TestEachKindOfChange(t *testing.T) {
	seen := make(map[relay.ChangeKind]bool)
	story := func(name string, play func(t *testing.T) *rig, want string, texts map[relay.ChangeKind]string) {
		bubble(t, name, func(t *testing.T) {
			r := play(t)
			synctest.Wait()
			changes := r.watch.Changes()
			if got := kindsOf(changes); got != want && want != "" {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			for _, c := range changes {
				seen[c.Kind] = true
				if text, ok := texts[c.Kind]; ok && !strings.Contains(c.Text, text) {
					t.Errorf("%s has the text %q, want %q in it", c.Kind, c.Text, text)
				}
				if c.Level == "" || c.Text == "" || c.Times < 1 || c.Time.IsZero() {
					t.Errorf("half a change: %+v", c)
				}
			}
		})
	}

	story("ALeaseLost", func(t *testing.T) *rig {
		w := newWorld(t)
		r := start(t, w, oneLane, sinktest.NewScript("kafka"))
		time.Sleep(time.Minute)
		l := w.lease()
		w.takenOver()
		l.lose(errConnection)
		time.Sleep(time.Minute)
		return r
	}, "standby lease_taken streaming lease_lost standby", map[relay.ChangeKind]string{relay.ChangeLeaseLost: errConnection.Error()})

	story("AStop", func(t *testing.T) *rig {
		r := start(t, newWorld(t), oneLane, sinktest.NewScript("kafka"))
		time.Sleep(time.Minute)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		return r
	}, "standby lease_taken streaming draining released", nil)

	story("AnInterruption", func(t *testing.T) *rig {
		w := newWorld(t)
		r := start(t, w, oneLane, sinktest.NewScript("kafka"))
		time.Sleep(time.Minute)
		w.stream().fail(errConnection)
		time.Sleep(time.Minute)
		return r
	}, "standby lease_taken streaming interrupted streaming", map[relay.ChangeKind]string{relay.ChangeBroken: errConnection.Error()})

	story("ASlotGone", func(t *testing.T) *rig {
		w := newWorld(t)
		r := start(t, w, oneLane, sinktest.NewScript("kafka"))
		time.Sleep(time.Minute)
		w.change(func() { w.gone = relay.GoneLost })
		w.stream().fail(errConnection)
		time.Sleep(2 * time.Minute)
		return r
	}, "standby lease_taken streaming interrupted slot_gone recovering streaming", map[relay.ChangeKind]string{relay.ChangeSlotGone: "lost", relay.ChangeRecovering: "lost"})

	story("PollingFromTheStart", func(t *testing.T) *rig {
		r := start(t, newWorld(t), func(cfg *engine.Config) { cfg.Mode = relay.ModePolling }, sinktest.NewScript("kafka"))
		time.Sleep(time.Minute)
		return r
	}, "standby lease_taken polling", map[relay.ChangeKind]string{relay.ChangePolling: "RELAY_MODE=polling"})

	// Mode auto polls from the start, then for another reason, then streams. That it tries every 30
	// s is not reported.
	story("PollingForOneReasonAndAnother", func(t *testing.T) *rig {
		w := newWorld(t)
		level, rights := &relay.SetupError{Problem: "wal_level is not logical", Streaming: true}, &relay.SetupError{Problem: "no REPLICATION", Streaming: true}
		w.openErrs = []error{level, level, level, rights, rights}
		r := start(t, w, nil, sinktest.NewScript("kafka"))
		time.Sleep(10 * time.Minute)
		var why []string
		for _, c := range r.watch.Changes() {
			if c.Kind == relay.ChangePolling {
				why = append(why, c.Text)
			}
		}
		if len(why) != 2 || !strings.Contains(why[1], "wal_level") || !strings.Contains(why[0], "REPLICATION") {
			t.Errorf("polling because of %q", why)
		}
		return r
	}, "standby lease_taken polling polling streaming", nil)

	story("ASinkIsolatedForItsTime", func(t *testing.T) *rig {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		r := start(t, w, oneLane, sink)
		sink.Down(errBroker)
		w.commit("a")
		time.Sleep(2 * time.Minute)
		sink.Down(nil)
		time.Sleep(time.Minute)
		return r
	}, "standby lease_taken streaming sink_down(kafka) sink_isolated(kafka) sink_up(kafka)", map[relay.ChangeKind]string{relay.ChangeIsolated: "RELAY_SINK_ISOLATION", relay.ChangeSinkUp: "its ledger is drained"})

	story("ASinkIsolatedForTheWAL", func(t *testing.T) *rig {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.Down(errBroker)
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.SinkIsolation, cfg.WALBudget = 1, time.Hour, 0x1000 }, sink)
		var end relay.LSN
		for range 30 {
			_, end = w.commit("a")
		}
		untilReported(w, end)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		// The budget is kept, and the sink is down as before.
		if s := r.watch.Status().Sinks[0]; s.Up || s.Isolated {
			t.Errorf("sink %+v, want it down and not isolated", s)
		}
		sink.Down(nil)
		w.untilStatus("sent", numbered("a", 1, 30)...)
		time.Sleep(10 * time.Second)
		return r
	}, "standby lease_taken streaming sink_down(kafka) sink_isolated(kafka) sink_down(kafka) sink_up(kafka)", map[relay.ChangeKind]string{relay.ChangeIsolated: "WAL"})

	story("APartOfASink", func(t *testing.T) *rig {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		keys := keysOfLanes(2)
		sink.OnKey(keys[0]).Fail(errBroker)
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes = 2 }, sink)
		for range 60 {
			w.commit(keys...)
			time.Sleep(500 * time.Millisecond)
		}
		w.untilStatus("sent", numbered(keys[1], 1, 60)...)
		time.Sleep(10 * time.Second)
		if got := kindsOf(r.watch.Changes()); !strings.Contains(got, "events_isolated(kafka)") || strings.Contains(got, "sink_isolated") {
			t.Errorf("got %s", got)
		}
		return r
	}, "", nil) // what else is reported depends on the order of the lanes

	story("DeadLetters", func(t *testing.T) *rig {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnCall(0).Refuse(relay.ReasonTooLarge, errors.New("limit 10"))
		r := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.MaxRetries = 1, 1 }, sink)
		w.commit("a", "b", "c")
		time.Sleep(10 * time.Second)
		return r
	}, "standby lease_taken streaming dead_letter(kafka)×3", map[relay.ChangeKind]string{relay.ChangeDeadLetter: "too_large"})

	story("RowsThatCannotBeMarked", func(t *testing.T) *rig {
		w := newWorld(t)
		r := start(t, w, oneLane, sinktest.NewScript("kafka"))
		time.Sleep(10 * time.Second)
		w.change(func() {
			w.unmarked = relay.Unmarked{Events: 2, Memory: 1, Oldest: time.Now(), Cause: "SQLSTATE 23514: constraint t"}
		})
		time.Sleep(10 * time.Second)
		const want = "slot sagaz_outbox: 2 rows are delivered and cannot be marked, the oldest for 10s: SQLSTATE 23514: constraint t; the ledger does not take 1 of them either, so a restart delivers them again"
		if v := r.watch.Status().Verdict(); v.Level != relay.LevelDegraded || !slices.Contains(v.Reasons, want) {
			t.Errorf("verdict %+v", v)
		}
		r.wantMetric(2, "outbox_unmarked_events")
		w.change(func() { w.unmarked = relay.Unmarked{} })
		time.Sleep(10 * time.Second)
		if v := r.watch.Status().Verdict(); v.Level != relay.LevelOK {
			t.Errorf("verdict %+v", v)
		}
		return r
	}, "standby lease_taken streaming rows_unmarked rows_unmarked", map[relay.ChangeKind]string{relay.ChangeUnmarked: "mark"})

	// The number of slots is changed, and that takes long.
	story("OtherSlots", func(t *testing.T) *rig {
		w := newWorld(t)
		r := start(t, w, oneLane, sinktest.NewScript("kafka"))
		time.Sleep(time.Minute)
		left := int64(12 << 20)
		w.change(func() {
			w.setChange = &relay.SetChange{
				From: 1, Target: 2, State: relay.SetDraining, Switch: 1 << 30, Began: time.Now(), Changer: "relay-2",
				Old: []relay.OldSlot{{Slot: "sagaz_outbox", Owner: "relay-1", Left: &left}},
			}
		})
		time.Sleep(time.Minute)
		const waits = "the old slot sagaz_outbox, owned by relay-1: it has 12 MB of WAL left to the switch"
		if st := r.watch.Status(); st.Verdict().Level != relay.LevelOK || st.Set.Shards != 1 || st.Set.Change == nil || st.Set.Change.WaitsFor != waits || len(st.Problems()) > 0 {
			t.Errorf("while it is under way: %+v, %+v", st.Verdict(), *st.Set)
		}
		r.wantMetric(2, "outbox_shards_target")
		r.wantMetric(12<<20, "outbox_slot_switch_bytes")
		time.Sleep(10 * time.Minute)
		const want = "the number of slots has been changing from 1 to 2 for 11 min; it waits for: " + waits
		if st := r.watch.Status(); st.Verdict().Level != relay.LevelDegraded || !slices.Contains(st.Verdict().Reasons, want) || len(st.Problems()) > 0 {
			t.Errorf("when it takes long: %+v, %q", st.Verdict(), st.Problems())
		}
		w.divide(2)
		w.change(func() { w.setChange = nil })
		time.Sleep(time.Minute)
		if st := r.watch.Status(); st.Set.Shards != 2 || st.Set.Change != nil {
			t.Errorf("after it: %+v", *st.Set)
		}
		return r
	}, "", map[relay.ChangeKind]string{relay.ChangeDivided: "from 1 to 2"})

	// The next owner has other sinks. One that is gone has left two events in the ledger, another
	// nothing.
	story("OtherSinks", func(t *testing.T) *rig {
		w, rabbit := newWorld(t), sinktest.NewScript("rabbitmq")
		rabbit.Down(errBroker)
		first := start(t, w, func(cfg *engine.Config) { cfg.Lanes, cfg.DrainTimeout = 1, time.Second }, sinktest.NewScript("kafka"), rabbit, sinktest.NewScript("file"))
		w.commit("a", "b")
		w.until("kafka has them", func() bool { return w.reading != nil })
		time.Sleep(time.Second)
		if err := first.stop(); err != nil {
			t.Fatal(err)
		}
		if got := kindsOf(first.watch.Changes()); strings.Contains(got, "sink_added") || strings.Contains(got, "sink_removed") {
			t.Errorf("the first owner ever reports %s", got)
		}
		r := start(t, w, oneLane, sinktest.NewScript("kafka"), sinktest.NewScript("stdout"))
		time.Sleep(10 * time.Second)
		for _, c := range r.watch.Changes() {
			if left := strings.Contains(c.Text, "2 entries"); c.Kind == relay.ChangeSinkGone && left != (c.Sink == "rabbitmq") {
				t.Errorf("of %s: %q", c.Sink, c.Text)
			}
		}
		if n := r.log.count("a sink was added"); n != 1 {
			t.Errorf("%d log lines about it", n)
		}
		return r
	}, "standby lease_taken sink_added(stdout) sink_removed(file) sink_removed(rabbitmq) streaming", nil)

	// The page knows a word for each of them.
	source, err := os.ReadFile("../change.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../admin/page/page.js")
	if err != nil {
		t.Fatal(err)
	}
	kinds := regexp.MustCompile(`ChangeKind = "(\w+)"`).FindAllSubmatch(source, -1)
	for _, k := range kinds {
		kind := relay.ChangeKind(k[1])
		if !seen[kind] {
			t.Errorf("no story has a change of kind %s", kind)
		}
		delete(seen, kind)
		if !regexp.MustCompile(`\b` + string(kind) + `: "`).Match(page) {
			t.Errorf("the page has no word for %s", kind)
		}
	}
	if len(seen) > 0 || len(kinds) < 15 {
		t.Errorf("%d kinds are known; and yet there are %v", len(kinds), slices.Sorted(maps.Keys(seen)))
	}
}

// Fifty are kept, the newest.
func TestChangesKept(t *testing.T) {
	bubble(t, "Fifty", func(t *testing.T) {
		w := newWorld(t)
		r := start(t, w, oneLane, sinktest.NewScript("kafka"))
		for i := range 60 {
			time.Sleep(2 * time.Minute)
			w.stream().fail(fmt.Errorf("break %d", i))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		changes := r.watch.Changes()
		if len(changes) != 50 || changes[1].Text != "break 59" || changes[0].Kind != relay.ChangeStreaming {
			t.Errorf("%d changes, the newest %+v and %+v", len(changes), changes[0], changes[1])
		}
		for i := 1; i < len(changes); i++ {
			if changes[i].Time.After(changes[i-1].Time) {
				t.Error("they are not in order")
			}
		}
	})
}
