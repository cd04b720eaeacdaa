package watch

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

// Two slots of one process add up, and what is known of a slot goes with it.
func TestSlotSeriesAddUp(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg, "worker-1", DefaultConfig())
	m.slots.divided(relay.Set{Slot: "s", Shards: 3})
	values := func() map[string]float64 {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		all := make(map[string]float64)
		for _, f := range families {
			for _, one := range f.GetMetric() {
				name := f.GetName()
				for _, l := range one.GetLabel() {
					if l.GetName() != "worker_id" {
						name += " " + l.GetValue()
					}
				}
				all[name] += one.GetGauge().GetValue() + one.GetCounter().GetValue()
			}
		}
		return all
	}
	want := func(when string, want map[string]float64, absent ...string) {
		t.Helper()
		got := values()
		for name, value := range want {
			if v, ok := got[name]; !ok || v != value {
				t.Errorf("%s: %s: got %v (%v), want %v", when, name, v, ok, value)
			}
		}
		for _, name := range absent {
			if v, ok := got[name]; ok {
				t.Errorf("%s: %s is there, and %v", when, name, v)
			}
		}
	}
	standby := map[string]float64{
		"outbox_pending_events_total": 0, "outbox_pending_events": 0, "outbox_processing_events_total": 0, "outbox_shards_owned": 0, "outbox_shards": 3, "outbox_slot_owned s_0of3": 0,
	}
	gone := []string{"outbox_slot_active s_0of3", "outbox_replication_lag_seconds s_0of3", "outbox_slot_wal_status s_0of3 lost", "outbox_mode cdc s_0of3", "outbox_ledger_events kafka dead", "outbox_events_by_state sent", "outbox_marks_hot_ratio", "outbox_relays s_0of3"}
	want("standing by", standby, gone...)

	info := relay.SlotInfo{Exists: true, Active: true, WALEnd: 100, ConfirmedFlush: 60, Restart: 10, WALStatus: "extended", Relays: 2}
	dead := []relay.LedgerCount{{Sink: "kafka", State: relay.StateDead, N: 2}, {Sink: "rabbitmq", State: relay.StateHeld, N: 1}}
	pending := 11.0
	waiting := func() float64 { return pending }
	m.slots.pending.Store(&waiting)
	m.slots.own("s_0of3")
	m.slots.own("s_1of3")
	want("before the first look", map[string]float64{"outbox_shards_owned": 2, "outbox_slot_owned s_1of3": 1, "outbox_slot_owned s_2of3": 0}, gone...)
	m.slots.set("s_0of3", &slotSample{looked: true, info: info, mode: relay.ModeCDC, inflight: 3, bytes: 30, ledger: dead, unmarked: 3, sinks: []string{"kafka"}, rows: map[string]int64{"sent": 7}, hotRatio: 0.5, limit: [2]int{10, 100}})
	m.slots.set("s_1of3", &slotSample{looked: true, info: info, mode: relay.ModeRecovering, inflight: 4, bytes: 40, ledger: dead, hotRatio: -1, limit: [2]int{10, 100}})
	want("owning two", map[string]float64{
		"outbox_pending_events_total": 11, "outbox_pending_events": 11, "outbox_processing_events_total": 7, "outbox_inflight_bytes": 70,
		"outbox_inflight_limit_events": 20, "outbox_inflight_limit_bytes": 200, "outbox_shards_owned": 2,
		"outbox_ledger_events kafka dead": 4, "outbox_ledger_events rabbitmq held": 2, "outbox_ledger_events kafka retry": 0,
		"outbox_slot_confirmed_flush_lag_bytes s_1of3": 40, "outbox_slot_retained_wal_bytes s_0of3": 90, "outbox_slot_wal_status s_0of3 extended": 1, "outbox_slot_wal_status s_0of3 lost": 0,
		"outbox_unmarked_events s_0of3": 3, "outbox_unmarked_events s_1of3": 0, "outbox_mode cdc s_0of3": 1, "outbox_mode cdc s_1of3": 0, "outbox_mode recovering s_1of3": 1, "outbox_relays s_0of3": 2, "outbox_slot_inflight_ratio s_0of3": 0.3, "outbox_slot_inflight_ratio s_1of3": 0.4,
		"outbox_events_by_state sent": 7, "outbox_events_by_state failed": 0, "outbox_marks_hot_ratio": 0.5,
	}, "outbox_slot_wal_keep_size_bytes s_0of3", "outbox_slot_safe_wal_size_bytes s_0of3", "outbox_slot_spill_bytes_total s_0of3", "outbox_slot_wal_budget_bytes s_0of3")

	// A slot that is lost has no positions any more, one that is gone has no wal_status of the
	// server's.
	m.slots.set("s_0of3", &slotSample{looked: true, info: relay.SlotInfo{WALEnd: 100}, mode: relay.ModeRecovering, inactive: time.Now().Add(-time.Minute), hotRatio: -1})
	want("without the slot", map[string]float64{"outbox_slot_active s_0of3": 0, "outbox_slot_wal_status s_0of3 missing": 1}, "outbox_slot_retained_wal_bytes s_0of3", "outbox_marks_hot_ratio")
	if got := values()["outbox_slot_inactive_seconds s_0of3"]; got < 60 || got > 600 {
		t.Errorf("inactive for %v s, want 60", got)
	}
	m.slots.drop("s_0of3")
	m.slots.drop("s_1of3")
	pending = 0
	want("standing by again", standby, gone...)
}

// Every relay exports how far a change of the number of slots is, also one that owns nothing. And
// who owns a slot is not denied by a relay whose table is delivered through another.
func TestSlotSeriesOfAChange(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg, "worker-1", DefaultConfig())
	set := relay.Set{Slot: "s", Shards: 2}
	m.slots.divided(set)
	now := relay.Snapshot{Set: set, Slots: []relay.SlotSnapshot{{Slot: "s_0of2", Role: relay.Standby}, {Slot: "s_1of2", Role: relay.Standby}}}
	m.slots.begin(func() relay.Snapshot { return now })
	want := func(when string, lines ...string) {
		t.Helper()
		page := exposition(t, reg)
		for _, line := range lines {
			line, absent := strings.CutPrefix(line, "no ")
			if absent == strings.Contains(page, "\n"+line) {
				t.Errorf("%s: %q is there: %t", when, line, absent)
			}
		}
		if t.Failed() {
			t.Log(page)
		}
	}
	want("without", "outbox_shards 2", "outbox_shards_target 2", "outbox_shards_change_seconds 0", `outbox_shards_change{state="making"} 0`, `outbox_shards_change{state="draining"} 0`,
		`outbox_slot_switch_bytes{slot="s_1of2"} 0`, `outbox_slot_owned{slot="s_0of2"} 0`, "no outbox_slot_stalled_seconds{")
	left := int64(4096)
	now.Change = &relay.SetChange{From: 2, Target: 4, State: relay.SetMaking, Began: time.Now().Add(-time.Hour)}
	want("making", "outbox_shards 2", "outbox_shards_target 4", "outbox_shards_change_seconds 3600", `outbox_shards_change{state="making"} 1`, `no outbox_slot_switch_bytes{`)
	now.Change.State, now.Change.Old = relay.SetDraining, []relay.OldSlot{{Slot: "s_0of2", Owner: "a"}, {Slot: "s_1of2", Owner: "b", Left: &left}}
	want("draining", `outbox_shards_change{state="making"} 0`, `outbox_shards_change{state="draining"} 1`, `outbox_slot_switch_bytes{slot="s_1of2"} 4096`, `no outbox_slot_switch_bytes{slot="s_0of2"}`)
	now.Change = nil
	now.Slots[0].Occupied = &relay.OccupiedError{}
	now.Slots[1].Role, now.Slots[1].Work, now.Slots[1].Moved = relay.Owner, &relay.WorkSnapshot{}, time.Now().Add(-100*time.Second)
	m.slots.set("s_1of2", &slotSample{since: time.Now().Add(-50 * time.Second), hotRatio: -1})
	want("through another", `no outbox_slot_owned{slot="s_0of2"}`, `outbox_slot_owned{slot="s_1of2"} 1`, `outbox_slot_stalled_seconds{slot="s_1of2"} 100`, `outbox_slot_lease_seconds{slot="s_1of2"} 50`)
}
