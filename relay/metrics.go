package relay

import (
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are all series that the engine exports; CONTRACT.md lists those that the Python library has too.
// The hot path pays for an atomic add or two an event: label values are resolved once and kept.
type Metrics struct {
	workerID string

	batches     prometheus.Counter
	published   *prometheus.CounterVec
	failed      *prometheus.CounterVec
	deadLetters *prometheus.CounterVec
	retries     prometheus.Counter
	pending     prometheus.Gauge
	pendingName prometheus.Gauge
	processing  prometheus.Gauge
	batchSize   prometheus.Gauge
	duration    *prometheus.HistogramVec

	lag          *prometheus.GaugeVec
	slotLag      *prometheus.GaugeVec
	slotRetained *prometheus.GaugeVec
	slotSafe     *prometheus.GaugeVec
	slotActive   *prometheus.GaugeVec
	slotStatus   *prometheus.GaugeVec
	ackSeconds   *prometheus.HistogramVec
	sinkUp       *prometheus.GaugeVec
	shardsOwned  prometheus.Gauge
	leaseChanges prometheus.Counter
	reconnects   prometheus.Counter
	marks        prometheus.Counter
	pruned       prometheus.Counter
	ledger       *prometheus.GaugeVec
	found        *prometheus.CounterVec

	mu         sync.Mutex // guards what follows
	eventTypes map[string]*eventTypeMetrics
	sinks      map[string]*sinkMetrics
}

// eventTypeMetrics are the series of one event type, resolved.
type eventTypeMetrics struct {
	published prometheus.Counter
	failed    prometheus.Counter
	dead      prometheus.Counter
	duration  prometheus.Observer
}

// maxEventTypes bounds the values of the label event_type, which come from rows: beyond it, types share "other".
const maxEventTypes = 200

// NewMetrics builds the collectors and registers them.
func NewMetrics(reg prometheus.Registerer, workerID string) *Metrics {
	worker := prometheus.Labels{"worker_id": workerID}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: worker})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, labels prometheus.Labels) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels})
		reg.MustRegister(g)
		return g
	}
	byType := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: worker}, []string{"event_type"})
		reg.MustRegister(c)
		return c
	}
	gaugeBy := func(name, help, label string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{label})
		reg.MustRegister(g)
		return g
	}
	slotStatus := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "outbox_slot_wal_status",
		Help: "1 for the slot's wal_status. lost means that PostgreSQL has removed WAL that the slot needed.",
	}, []string{"slot", "status"})
	reg.MustRegister(slotStatus)
	ledger := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "outbox_ledger_events",
		Help: "Events in the ledger by sink and state: retry (to be offered), held (behind another of their key), dead (for a person).",
	}, []string{"sink", "state"})
	found := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "outbox_recovered_events_total",
		Help: "Events found in the table rather than told by the slot, by cause: missing, lost, publication, moved (slots), stuck_claim, failed, pending (by hand), polled.",
	}, []string{"cause"})
	reg.MustRegister(ledger, found)
	m := &Metrics{
		slotStatus:   slotStatus,
		slotLag:      gaugeBy("outbox_slot_confirmed_flush_lag_bytes", "WAL written and not confirmed by the relay. It rises while events wait.", "slot"),
		slotRetained: gaugeBy("outbox_slot_retained_wal_bytes", "WAL that the slot keeps on the database's disk.", "slot"),
		slotSafe:     gaugeBy("outbox_slot_safe_wal_size_bytes", "WAL that may still be written before the slot can be lost; absent without max_slot_wal_keep_size.", "slot"),
		slotActive:   gaugeBy("outbox_slot_active", "1 while a connection reads the slot.", "slot"),
		workerID:     workerID,
		batches:      counter("outbox_batch_processed_total", "Batches offered to a sink and acknowledged."),
		published:    byType("outbox_published_events_total", "Events that a sink has acknowledged; with several sinks an event counts once for each."),
		failed:       byType("outbox_failed_events_total", "Events that a sink refused for their own fault. A rise means rows with status failed: read last_error."),
		deadLetters:  byType("outbox_dead_letter_events_total", "Events given up for good. A rise means work for a person."),
		retries:      counter("outbox_retry_attempts_total", "Events offered again after trouble of a sink. A steady rise means a broker in trouble."),
		pending: gauge("outbox_pending_events_total", "Events waiting on the slots that this relay owns: in flight, exact, plus an "+
			"estimate of those in WAL not read yet; 0 on a standby, so that the sum over pods is the backlog. A gauge, despite its name, which the autoscaler knows.", nil),
		pendingName: gauge("outbox_pending_events", "The same as outbox_pending_events_total, under a gauge's name.", nil),
		processing:  gauge("outbox_processing_events_total", "Events in flight: read from the slot and not yet marked.", worker),
		batchSize:   gauge("outbox_batch_size", "Events in the last batch that a sink acknowledged.", worker),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "outbox_publish_duration_seconds", Help: "Time from offering an event's batch to a sink to its acknowledgement.",
			Buckets:     []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5},
			ConstLabels: worker,
		}, []string{"event_type"}),
		lag: gaugeBy("outbox_replication_lag_seconds", "Age of the oldest commit with an event in flight; 0 when there is none. A steady rise means that delivery stands still.", "slot"),
		ackSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "outbox_commit_to_ack_seconds", Help: "Time from the commit of an event's transaction to a sink's acknowledgement, by the clocks of database and relay.",
			Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300},
		}, []string{"sink"}),
		sinkUp:       gaugeBy("outbox_sink_up", "1 while the sink takes what it is offered, 0 while its events are being offered again.", "sink"),
		shardsOwned:  gauge("outbox_shards_owned", "Replication slots whose lease this relay holds; 0 on a standby.", nil),
		leaseChanges: counter("outbox_lease_changes_total", "Times that this relay has taken or lost a slot. A steady rise means relays that fight or die."),
		reconnects:   counter("outbox_stream_reconnects_total", "Times that the replication connection had to be made again."),
		marks:        counter("outbox_marked_events_total", "Rows marked with their event's fate."),
		pruned:       counter("outbox_pruned_events_total", "Rows removed because RELAY_RETENTION is over."),
		ledger:       ledger,
		found:        found,
		eventTypes:   make(map[string]*eventTypeMetrics),
		sinks:        make(map[string]*sinkMetrics),
	}
	reg.MustRegister(m.duration, m.ackSeconds)
	return m
}

// eventType returns the series of an event type, or those of "other" when there are too many types.
func (m *Metrics) eventType(name string) *eventTypeMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t, ok := m.eventTypes[name]; ok {
		return t
	}
	if len(m.eventTypes) >= maxEventTypes {
		if t, ok := m.eventTypes[otherEventType]; ok {
			return t
		}
		name = otherEventType
	}
	t := &eventTypeMetrics{
		published: m.published.WithLabelValues(name),
		failed:    m.failed.WithLabelValues(name),
		dead:      m.deadLetters.WithLabelValues(name),
		duration:  m.duration.WithLabelValues(name),
	}
	m.eventTypes[name] = t
	return t
}

const otherEventType = "other"

// sinkMetrics are the series of one sink, resolved.
type sinkMetrics struct {
	m   *Metrics
	ack prometheus.Observer
	up  prometheus.Gauge
}

func (m *Metrics) sink(name string) *sinkMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.sinks[name]
	if !ok {
		s = &sinkMetrics{m: m, ack: m.ackSeconds.WithLabelValues(name), up: m.sinkUp.WithLabelValues(name)}
		s.up.Set(1)
		m.sinks[name] = s
	}
	return s
}

// acked counts a batch that a sink took within the given time.
func (s *sinkMetrics) acked(batch []*flight, took time.Duration) {
	if len(batch) == 0 {
		return
	}
	s.m.batches.Inc()
	s.m.batchSize.Set(float64(len(batch)))
	now := TimestampOf(time.Now())
	seconds := took.Seconds()
	var t *eventTypeMetrics
	last, run := "", 0
	for _, f := range batch {
		if t == nil || f.rec.EventType != last {
			if t != nil {
				t.published.Add(float64(run))
			}
			t, last, run = s.m.eventType(f.rec.EventType), f.rec.EventType, 0
		}
		run++
		t.duration.Observe(seconds)
		if f.committed != 0 {
			s.ack.Observe(max(0, float64(now-f.committed)/1e6))
		}
	}
	t.published.Add(float64(run))
}

func (s *sinkMetrics) refused(f *flight, _ error) { s.m.eventType(f.rec.EventType).failed.Inc() }

func (s *sinkMetrics) retry(events int) { s.m.retries.Add(float64(events)) }

// marked counts a batch whose fates are written.
func (m *Metrics) marked(batch []*flight) {
	m.marks.Add(float64(len(batch)))
	for _, f := range batch {
		for i := range f.parked {
			if f.parked[i].State == StateDead {
				m.eventType(f.rec.EventType).dead.Inc()
			}
		}
	}
}

// resolved counts what became of ledger entries.
func (m *Metrics) resolved(outcomes []Outcome) {
	for i := range outcomes {
		if outcomes[i].Fate == FateDead {
			m.eventType(outcomes[i].Entry.Event.EventType).dead.Inc()
		}
	}
}

// recovered counts events that were found in the table.
func (m *Metrics) recovered(cause string, events int) {
	m.found.WithLabelValues(strings.ReplaceAll(cause, " ", "_")).Add(float64(events))
}

// ledgerCounts exports how many entries there are.
func (m *Metrics) ledgerCounts(counts []LedgerCount) {
	m.ledger.Reset()
	for _, c := range counts {
		m.ledger.WithLabelValues(c.Sink, string(c.State)).Set(float64(c.N))
	}
}

// slotInfo exports what the server says of a slot.
func (m *Metrics) slotInfo(slot string, info SlotInfo) {
	m.slotStatus.DeletePartialMatch(prometheus.Labels{"slot": slot})
	if !info.Exists {
		return
	}
	m.slotLag.WithLabelValues(slot).Set(float64(info.WALEnd - min(info.WALEnd, info.ConfirmedFlush)))
	m.slotRetained.WithLabelValues(slot).Set(float64(info.WALEnd - min(info.WALEnd, info.Restart)))
	m.slotActive.WithLabelValues(slot).Set(0)
	if info.Active {
		m.slotActive.WithLabelValues(slot).Set(1)
	}
	m.slotSafe.DeleteLabelValues(slot)
	if info.SafeWALSize != nil {
		m.slotSafe.WithLabelValues(slot).Set(float64(*info.SafeWALSize))
	}
	m.slotStatus.WithLabelValues(slot, info.WALStatus).Set(1)
}
