package watch

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

// slotSeries exports what this relay knows of the slots it owns. Nothing of a slot outlives its
// ownership: a standby exports no series of slots, and 0 for what is summed over the pods, because
// a missing value would keep the autoscaler from scaling down.
type slotSeries struct {
	descs map[string]*prometheus.Desc
	// pending is how many events wait now; nil: there is no engine yet.
	pending atomic.Pointer[func() float64]

	mu    sync.Mutex            // guards what follows
	now   func() relay.Snapshot // nil: the engine has not begun
	of    relay.Set
	owned map[string]*slotSample
}

// slotSample is one slot at its owner's last look.
type slotSample struct {
	epoch     int64
	since     time.Time // the lease was taken
	mode      string
	streaming bool
	inflight  int
	bytes     int
	limit     [2]int  // events and bytes
	lag       float64 // seconds
	oldest    float64 // seconds
	budget    int64   // WAL, bytes; 0: none

	looked   bool // at the server
	info     relay.SlotInfo
	inactive time.Time // since when the slot has not been read, as far as we saw; zero: it is

	ledger   []relay.LedgerCount
	unmarked int // rows whose marks are parked
	sinks    []string
	rows     map[string]int64 // of the whole table by status; only from the owner of the first slot
	hotRatio float64          // negative: nothing was marked yet
}

// slotDefinition is one series of slotSeries with the label slot alone. value returns false when
// there is no value.
type slotDefinition struct {
	name, help string
	kind       prometheus.ValueType
	value      func(s *slotSample) (float64, bool)
}

func known(s *slotSample, value float64) (float64, bool) { return value, s.looked && s.info.Exists }

func counted(s *slotSample, value int64) (float64, bool) {
	return float64(value), s.looked && s.info.Exists && s.info.Stats != nil
}

func statsOf(s *slotSample) relay.SlotStats {
	if s.info.Stats == nil {
		return relay.SlotStats{}
	}
	return *s.info.Stats
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var slotDefinitions = []slotDefinition{
	{
		"outbox_replication_lag_seconds", "Age of the oldest commit with an event in flight; 0 without any. A steady rise means that delivery has stopped.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return s.lag, true },
	},
	{
		"outbox_oldest_pending_seconds", "Age of the oldest event that waits: in flight, in the ledger (without dead letters), or, while the slot is not read, pending in the table.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return s.oldest, true },
	},
	{
		"outbox_slot_inflight_ratio", "Part of the slot's share of the in-flight budget that is taken, of events or of bytes, whichever is more. At 1 the relay reads no further.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) {
			return max(float64(s.inflight)/float64(max(1, s.limit[0])), float64(s.bytes)/float64(max(1, s.limit[1]))), true
		},
	},
	{
		"outbox_slot_confirmed_flush_lag_bytes", "WAL written and not confirmed by the relay. It rises while events wait.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return known(s, float64(s.info.Lag(s.info.ConfirmedFlush))) },
	},
	{
		"outbox_slot_retained_wal_bytes", "WAL that the slot keeps on the database's disk.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return known(s, float64(s.info.Lag(s.info.Restart))) },
	},
	{
		"outbox_slot_wal_keep_size_bytes", "max_slot_wal_keep_size, the most WAL that the server keeps for a slot; absent when it has no limit.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return float64(s.info.KeepSize), s.looked && s.info.KeepSize > 0 },
	},
	{
		"outbox_slot_wal_budget_bytes", "Retained WAL from which on the relay sends events of sinks that are behind to the ledger, so that the slot can move; absent without a budget.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return float64(s.budget), s.budget > 0 },
	},
	{
		"outbox_slot_safe_wal_size_bytes", "WAL that may still be written before the slot can be lost; absent without max_slot_wal_keep_size, and when it is lost.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) {
			if s.info.SafeWALSize == nil {
				return 0, false
			}
			return known(s, float64(*s.info.SafeWALSize))
		},
	},
	{
		"outbox_unmarked_events", "Rows whose events are delivered, or in the ledger, and whose marks the database does not take: a constraint, a trigger, a lock. They are tried again.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return float64(s.unmarked), true },
	},
	{
		"outbox_slot_active", "1 while a connection reads the slot.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return oneIf(s.info.Active), s.looked },
	},
	{
		"outbox_slot_inactive_seconds", "For how long no connection has read the slot; 0 while one does. By the server where it knows (PostgreSQL 17 on), else since the owner saw it.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) {
			if s.inactive.IsZero() {
				return 0, s.looked
			}
			return max(0, time.Since(s.inactive).Seconds()), s.looked
		},
	},
	{
		"outbox_slot_transactions_total", "Transactions that the server has decoded for the slot (pg_stat_replication_slots).", prometheus.CounterValue,
		func(s *slotSample) (float64, bool) { return counted(s, statsOf(s).Transactions) },
	},
	{
		"outbox_slot_bytes_total", "Bytes of changes that the server has decoded for the slot (pg_stat_replication_slots).", prometheus.CounterValue,
		func(s *slotSample) (float64, bool) { return counted(s, statsOf(s).Bytes) },
	},
	{
		"outbox_slot_spill_transactions_total", "Transactions that outgrew logical_decoding_work_mem and went to the server's disk while they were decoded.", prometheus.CounterValue,
		func(s *slotSample) (float64, bool) { return counted(s, statsOf(s).SpillTransactions) },
	},
	{
		"outbox_slot_spill_bytes_total", "Bytes of changes that went to the server's disk while they were decoded. A rise means large transactions: raise logical_decoding_work_mem.", prometheus.CounterValue,
		func(s *slotSample) (float64, bool) { return counted(s, statsOf(s).SpillBytes) },
	},
	{
		"outbox_slot_stream_bytes_total", "Bytes of changes that were sent before their transaction ended. The relay does not ask for that, so it stays 0.", prometheus.CounterValue,
		func(s *slotSample) (float64, bool) { return counted(s, statsOf(s).StreamBytes) },
	},
	{
		"outbox_slot_epoch", "A number that is higher for each new owner of the slot. It may rise by more than 1, and a slot that a change of their number makes begins above the old ones.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return float64(s.epoch), true },
	},
	{
		"outbox_slot_lease_seconds", "For how long the slot's owner has had it: the time since the last handover.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return max(0, time.Since(s.since).Seconds()), !s.since.IsZero() },
	},
	{
		"outbox_relays", "Relays that live, the owner and the standbys of the slot; 1 means that no other would take over. Absent through a pooler.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return float64(s.info.Relays), s.info.Relays > 0 },
	},
	{
		"outbox_stream_up", "1 while the replication connection is open.", prometheus.GaugeValue,
		func(s *slotSample) (float64, bool) { return oneIf(s.streaming), true },
	},
}

// Statuses of rows, wal_status, modes and ledger states are exported one-hot, or all of them, so
// that none is missing at 0.
var (
	rowStates    = []string{"pending", "claimed", "sent", "failed", "dead_letter"}
	walStatuses  = []string{"reserved", "extended", "unreserved", "lost", walMissing}
	modes        = []string{relay.ModeCDC, relay.ModePolling, relay.ModeRecovering}
	ledgerStates = []relay.State{relay.StateRetry, relay.StateHeld, relay.StateDead}
)

// walMissing is the wal_status of a slot that is not there.
const walMissing = "missing"

func newSlotSeries(workerID string) *slotSeries {
	s := &slotSeries{descs: make(map[string]*prometheus.Desc), owned: make(map[string]*slotSample)}
	worker := prometheus.Labels{"worker_id": workerID}
	for _, d := range slotDefinitions {
		s.descs[d.name] = prometheus.NewDesc(d.name, d.help, []string{"slot"}, nil)
	}
	for _, d := range []struct {
		name, help string
		constant   prometheus.Labels
		labels     []string
	}{
		{"outbox_pending_events_total", "Events waiting on the slots that this relay owns: in flight and in the ledger, exact, plus " +
			"those that are not read yet, by a count of the table's rows every second or more seldom and an estimate in between; one that waits for two sinks is in the ledger twice, " +
			"and counts twice. On one of the relays also those of slots that no relay owns, so that the sum over pods is the backlog; 0 on other standbys. A gauge, despite its name, which the autoscaler knows.", nil, nil},
		{"outbox_pending_events", "The same as outbox_pending_events_total, under a gauge's name.", nil, nil},
		{"outbox_processing_events_total", "Events in flight: read from the slot and not yet marked. A gauge, despite its name.", worker, nil},
		{"outbox_inflight_bytes", "Bytes of the events in flight.", nil, nil},
		{"outbox_inflight_limit_events", "RELAY_INFLIGHT_EVENTS, of which each owned slot has an equal share; 0 on a standby. When a share is spent the relay stops reading the slot.", nil, nil},
		{"outbox_inflight_limit_bytes", "RELAY_INFLIGHT_BYTES, of which each owned slot has an equal share; 0 on a standby.", nil, nil},
		{"outbox_shards", "Replication slots that share out the table's keys; 0 until the database has answered.", nil, nil},
		{"outbox_shards_owned", "Those whose lease this relay holds; 0 on a standby.", nil, nil},
		{"outbox_shards_target", "Slots after the change of their number that is under way (migrate --shards); as many as outbox_shards without one. Every relay exports it.", nil, nil},
		{"outbox_shards_change", "1 for the state of that change, 0 for the others: making (the new slots), draining (the old slots are read up to the switch, and stop). Both are 0 without a change. Every relay exports it.", nil, []string{"state"}},
		{"outbox_shards_change_seconds", "For how long that change has been under way; 0 without one. Every relay exports it.", nil, nil},
		{"outbox_slot_switch_bytes", "WAL that an old slot still has to deliver before that change can switch to the new ones; 0 when it is past the switch, and without a change; absent where that is not known. Every relay exports it.", nil, []string{"slot"}},
		{"outbox_slot_owned", "1 on the relay that holds the slot's lease, 0 on the others. A relay that stands by because the table's events are delivered through another RELAY_SLOT exports none.", nil, []string{"slot"}},
		{"outbox_slot_stalled_seconds", "For how long the slot has not moved though there is work and the next step is the relay's; a few seconds are nothing. A sink that is down does not count, nor does waiting for PostgreSQL or for other workers.", nil, []string{"slot"}},
		{"outbox_slot_wal_status", "1 for the slot's wal_status, 0 for the others. lost means that PostgreSQL has removed WAL that the slot needed, missing that there is no slot.", nil, []string{"slot", "status"}},
		{"outbox_mode", "1 for how events are found now, 0 for the others: cdc (from the slot), polling (from the table), recovering (from the table, before the slot is read).", nil, []string{"slot", "mode"}},
		{"outbox_ledger_events", "Events in the ledger by sink and state: retry (to be offered), held (behind another of their key), dead (for a person).", nil, []string{"sink", "state"}},
		{"outbox_events_by_state", "Rows of the table by status, from the owner of the first slot only. sent is what the planner's statistics leave over; the others are counted, " +
			"the more seldom the longer it takes (at most 1/500 of the time).", nil, []string{"state"}},
		{"outbox_marks_hot_ratio", "Share of the table's last updates that were HOT, which need no new index entries. Below 0.9 marking costs far more than it should: sagaz-relay doctor. " +
			"From the owner of the first slot only, and absent until rows have been updated.", nil, nil},
	} {
		s.descs[d.name] = prometheus.NewDesc(d.name, d.help, d.labels, d.constant)
	}
	return s
}

// begin takes over how to look at the engine.
func (s *slotSeries) begin(now func() relay.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

// divided takes over how the table is divided.
func (s *slotSeries) divided(set relay.Set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of = set
}

// set notes a sample of an owned slot.
func (s *slotSeries) set(slot string, sample *slotSample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owned[slot] = sample
}

// drop forgets a slot that is not owned any more.
func (s *slotSeries) drop(slot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.owned, slot)
}

// own notes that a slot is owned from now on; set fills in what is known of it.
func (s *slotSeries) own(slot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.owned[slot]; !ok {
		s.owned[slot] = nil
	}
}

// slots are those of the set, and those of the one before that are still at work. It is called with
// mu held.
func (s *slotSeries) slots() (all []string) {
	for _, shard := range s.of.All() {
		all = append(all, shard.Slot)
	}
	for _, slot := range slices.Sorted(maps.Keys(s.owned)) {
		if !slices.Contains(all, slot) {
			all = append(all, slot)
		}
	}
	return all
}

// Describe implements prometheus.Collector.
func (s *slotSeries) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range s.descs {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (s *slotSeries) Collect(metrics chan<- prometheus.Metric) {
	now := s.look()
	waiting := 0.0
	if pending := s.pending.Load(); pending != nil {
		waiting = (*pending)()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	send := func(name string, kind prometheus.ValueType, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(s.descs[name], kind, value, labels...)
	}
	gauge := func(name string, value float64, labels ...string) {
		send(name, prometheus.GaugeValue, value, labels...)
	}
	var sum slotSample
	type sinkState struct {
		sink  string
		state relay.State
	}
	ledger := make(map[sinkState]int64)
	for _, slot := range s.slots() {
		sample, owned := s.owned[slot]
		is := slotOf(&now, slot)
		if owned || is.Occupied == nil {
			gauge("outbox_slot_owned", oneIf(owned), slot)
		}
		if left := leftOf(now.Change, slot); left != nil {
			gauge("outbox_slot_switch_bytes", float64(*left), slot)
		}
		if is.Work != nil && !is.Moved.IsZero() {
			gauge("outbox_slot_stalled_seconds", max(0, time.Since(is.Moved).Seconds()), slot)
		}
		if sample == nil {
			continue
		}
		sum.inflight += sample.inflight
		sum.bytes += sample.bytes
		sum.limit[0] += sample.limit[0]
		sum.limit[1] += sample.limit[1]
		for _, d := range slotDefinitions {
			if value, ok := d.value(sample); ok {
				send(d.name, d.kind, value, slot)
			}
		}
		for _, mode := range modes {
			gauge("outbox_mode", oneIf(mode == sample.mode), slot, mode)
		}
		if sample.looked {
			status := sample.info.WALStatus
			if !sample.info.Exists {
				status = walMissing
			}
			for _, one := range walStatuses {
				gauge("outbox_slot_wal_status", oneIf(one == status), slot, one)
			}
		}
		for _, sink := range sample.sinks {
			for _, state := range ledgerStates {
				ledger[sinkState{sink, state}] += 0
			}
		}
		for _, c := range sample.ledger {
			ledger[sinkState{c.Sink, c.State}] += c.N
		}
		for _, state := range rowStates {
			if sample.rows != nil {
				gauge("outbox_events_by_state", float64(sample.rows[state]), state)
			}
		}
		if sample.hotRatio >= 0 {
			gauge("outbox_marks_hot_ratio", sample.hotRatio)
		}
	}
	for key, n := range ledger {
		gauge("outbox_ledger_events", float64(n), key.sink, string(key.state))
	}
	gauge("outbox_pending_events_total", waiting)
	gauge("outbox_pending_events", waiting)
	gauge("outbox_processing_events_total", float64(sum.inflight))
	gauge("outbox_inflight_bytes", float64(sum.bytes))
	gauge("outbox_inflight_limit_events", float64(sum.limit[0]))
	gauge("outbox_inflight_limit_bytes", float64(sum.limit[1]))
	gauge("outbox_shards", float64(s.of.Shards))
	gauge("outbox_shards_owned", float64(len(s.owned)))
	target, seconds, state := s.of.Shards, 0.0, ""
	if c := now.Change; c != nil {
		target, seconds, state = c.Target, max(0, time.Since(c.Began).Seconds()), c.State
	}
	gauge("outbox_shards_target", float64(target))
	gauge("outbox_shards_change_seconds", seconds)
	for _, one := range []string{relay.SetMaking, relay.SetDraining} {
		gauge("outbox_shards_change", oneIf(one == state), one)
	}
}

// look is what the engine is like now.
func (s *slotSeries) look() (now relay.Snapshot) {
	s.mu.Lock()
	look := s.now
	s.mu.Unlock()
	if look != nil { // not with mu held: it takes the engine's
		now = look()
	}
	return now
}

// slotOf is a slot as the engine has it.
func slotOf(now *relay.Snapshot, slot string) *relay.SlotSnapshot {
	for i := range now.Slots {
		if now.Slots[i].Slot == slot {
			return &now.Slots[i]
		}
	}
	return &relay.SlotSnapshot{}
}

// leftOf is what a slot has left to the switch of a change; nil where that is not known.
func leftOf(change *relay.SetChange, slot string) *int64 {
	var none int64
	if change == nil {
		return &none
	}
	if change.State != relay.SetDraining { // nobody knows yet where the switch will be
		return nil
	}
	for _, old := range change.Old {
		if old.Slot == slot {
			return old.Left
		}
	}
	return &none
}
