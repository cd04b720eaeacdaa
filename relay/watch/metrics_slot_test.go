package watch

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

// Two slots of one process add up, and what is known of a slot goes with it.
func TestSlotSeriesAddUp(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg, "worker-1", DefaultConfig())
	m.configure(&relay.About{Slots: []string{"one", "two", "three"}})
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
		"outbox_pending_events_total": 0, "outbox_pending_events": 0, "outbox_processing_events_total": 0, "outbox_shards_owned": 0, "outbox_shards": 3, "outbox_slot_owned one": 0,
	}
	gone := []string{"outbox_slot_active one", "outbox_replication_lag_seconds one", "outbox_slot_wal_status one lost", "outbox_mode cdc one", "outbox_ledger_events kafka dead", "outbox_events_by_state sent", "outbox_marks_hot_ratio", "outbox_relays one"}
	want("standing by", standby, gone...)

	info := relay.SlotInfo{Exists: true, Active: true, WALEnd: 100, ConfirmedFlush: 60, Restart: 10, WALStatus: "extended", Relays: 2}
	dead := []relay.LedgerCount{{Sink: "kafka", State: relay.StateDead, N: 2}, {Sink: "rabbitmq", State: relay.StateHeld, N: 1}}
	m.slots.own("one")
	m.slots.own("two")
	want("before the first look", map[string]float64{"outbox_shards_owned": 2, "outbox_slot_owned two": 1, "outbox_slot_owned three": 0}, gone...)
	m.slots.set("one", &slotSample{looked: true, info: info, mode: relay.ModeCDC, inflight: 3, bytes: 30, waiting: 5, ledger: dead, unmarked: 3, sinks: []string{"kafka"}, rows: map[string]int64{"sent": 7}, hotRatio: 0.5, limit: [2]int{10, 100}})
	m.slots.set("two", &slotSample{looked: true, info: info, mode: relay.ModeRecovering, inflight: 4, bytes: 40, waiting: 6, ledger: dead, hotRatio: -1, limit: [2]int{10, 100}})
	want("owning two", map[string]float64{
		"outbox_pending_events_total": 11, "outbox_pending_events": 11, "outbox_processing_events_total": 7, "outbox_inflight_bytes": 70,
		"outbox_inflight_limit_events": 20, "outbox_inflight_limit_bytes": 200, "outbox_shards_owned": 2,
		"outbox_ledger_events kafka dead": 4, "outbox_ledger_events rabbitmq held": 2, "outbox_ledger_events kafka retry": 0,
		"outbox_slot_confirmed_flush_lag_bytes two": 40, "outbox_slot_retained_wal_bytes one": 90, "outbox_slot_wal_status one extended": 1, "outbox_slot_wal_status one lost": 0,
		"outbox_unmarked_events one": 3, "outbox_unmarked_events two": 0, "outbox_mode cdc one": 1, "outbox_mode cdc two": 0, "outbox_mode recovering two": 1, "outbox_relays one": 2,
		"outbox_events_by_state sent": 7, "outbox_events_by_state failed": 0, "outbox_marks_hot_ratio": 0.5,
	}, "outbox_slot_wal_keep_size_bytes one", "outbox_slot_safe_wal_size_bytes one", "outbox_slot_spill_bytes_total one", "outbox_slot_wal_budget_bytes one")

	// A slot that is lost has no positions any more, one that is gone has no wal_status of the
	// server's.
	m.slots.set("one", &slotSample{looked: true, info: relay.SlotInfo{WALEnd: 100}, mode: relay.ModeRecovering, inactive: time.Now().Add(-time.Minute), hotRatio: -1})
	want("without the slot", map[string]float64{"outbox_slot_active one": 0, "outbox_slot_wal_status one missing": 1}, "outbox_slot_retained_wal_bytes one", "outbox_marks_hot_ratio")
	if got := values()["outbox_slot_inactive_seconds one"]; got < 60 || got > 600 {
		t.Errorf("inactive for %v s, want 60", got)
	}
	m.slots.drop("one")
	m.slots.drop("two")
	want("standing by again", standby, gone...)
}
