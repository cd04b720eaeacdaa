package watch

import (
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

// Metrics are all series that the engine exports; docs/contract.md lists those that the Python
// library has too, docs/metrics.md all of them. The hot path pays for a few additions a batch:
// label values are resolved once and kept, and events are counted by runs.
//
// What an owner knows of its slots is in slotSeries: it is there while a slot is owned, and gone
// with it.
type Metrics struct {
	workerID string

	batches     prometheus.Counter
	published   *prometheus.CounterVec
	failed      *prometheus.CounterVec
	deadLetters *prometheus.CounterVec
	retries     prometheus.Counter
	batchSize   prometheus.Gauge
	duration    *histograms

	slots *slotSeries
	sagas *sagas

	sinkUp        *prometheus.GaugeVec
	sinkIsolated  *prometheus.GaugeVec
	attempts      *prometheus.CounterVec
	acks          *prometheus.CounterVec
	bytes         *prometheus.CounterVec
	routed        *prometheus.CounterVec
	dropped       *prometheus.CounterVec
	arrived       *prometheus.CounterVec
	tailRead      *prometheus.CounterVec
	tailUnread    *prometheus.CounterVec
	publishErrors *prometheus.CounterVec
	parked        *prometheus.CounterVec
	ackSeconds    *histograms
	batchSeconds  *histograms
	batchEvents   *histograms

	received     prometheus.Counter
	skipped      prometheus.Counter
	found        *prometheus.CounterVec
	looks        *histograms
	marks        prometheus.Counter
	markSeconds  *histogram
	markFailures prometheus.Counter
	pruned       prometheus.Counter
	leaseChanges prometheus.Counter
	reconnects   prometheus.Counter
	spansDropped *prometheus.CounterVec
	build        *prometheus.GaugeVec
	wanted       *prometheus.GaugeVec
	memoryLimit  *prometheus.GaugeVec
	isReady      atomic.Pointer[func() bool]

	// Records' trace contexts are known, so histograms may name them; set before anything is
	// counted.
	exemplars bool

	mu         sync.Mutex // guards what follows
	eventTypes map[string]*eventTypeMetrics
	sinks      map[string]*sinkMetrics
}

// eventTypeMetrics are the series of one event type, resolved.
type eventTypeMetrics struct {
	published prometheus.Counter
	failed    prometheus.Counter
	dead      prometheus.Counter
	duration  *histogram
}

// acked counts events that a sink took after the given time.
// acked counts events that took equally long; traced, if not nil, is of one of them.
func (t *eventTypeMetrics) acked(seconds float64, events int, traced *relay.TraceContext) {
	t.published.Add(float64(events))
	t.duration.mu.Lock()
	t.duration.add(seconds, events)
	if traced != nil {
		t.duration.example(seconds, traced)
	}
	t.duration.mu.Unlock()
}

// maxEventTypes bounds the values of the label event_type, which come from rows: beyond it, types
// share "other".
const maxEventTypes = 200

const otherEventType = "other"

// recoveredCauses are those of outbox_recovered_events_total.
var recoveredCauses = []string{string(relay.GoneMissing), string(relay.GoneLost), string(relay.GonePublication), string(relay.GoneMoved), string(relay.GoneRestored), string(relay.GoneUnreadable), "first_start", "stuck_claim", "failed", "pending", "polled"}

// parkedBehind is the reason of an entry that waits behind another of its key.
const parkedBehind = "behind"

// NewMetrics builds the collectors and registers them. The configuration must be valid.
func NewMetrics(reg prometheus.Registerer, workerID string, cfg Config) *Metrics {
	workerID = relay.Label(workerID)
	worker := prometheus.Labels{"worker_id": workerID}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: worker})
		reg.MustRegister(c)
		return c
	}
	counters := func(name, help string, constant prometheus.Labels, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: constant}, labels)
		reg.MustRegister(c)
		return c
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		reg.MustRegister(g)
		return g
	}
	histogram := func(name, help string, bounds []float64, constant prometheus.Labels, labels ...string) *histograms {
		h := newHistograms(name, help, bounds, constant, labels...)
		reg.MustRegister(h)
		return h
	}
	m := &Metrics{workerID: workerID, eventTypes: make(map[string]*eventTypeMetrics), sinks: make(map[string]*sinkMetrics)}

	// The library's names.
	m.batches = counter("outbox_batch_processed_total", "Batches offered to a sink of which it acknowledged something.")
	m.published = counters("outbox_published_events_total", "Events that a sink has acknowledged; with several sinks an event counts once for each.", worker, "event_type")
	m.failed = counters("outbox_failed_events_total", "Times that a sink refused an event for the event's own fault. A rise means rows with status failed: read last_error.", worker, "event_type")
	m.deadLetters = counters("outbox_dead_letter_events_total", "Events given up for good, once for each sink that does not have them. A rise means work for a person: sagaz-relay dead-letter list.", worker, "event_type")
	m.retries = counter("outbox_retry_attempts_total", "Events offered again after a transient error of a sink, and refused ones tried again. A steady rise means that a broker does not work.")
	m.batchSize = prometheus.NewGauge(prometheus.GaugeOpts{Name: "outbox_batch_size", Help: "Events in the last batch that a sink acknowledged.", ConstLabels: worker})
	reg.MustRegister(m.batchSize)
	m.duration = histogram("outbox_publish_duration_seconds", "Time from offering an event's batch to a sink to its acknowledgement, for each event.",
		[]float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5}, worker, "event_type")

	// What the owner of slots knows.
	m.slots = newSlotSeries(workerID)
	reg.MustRegister(m.slots)

	// Sinks.
	m.sinkUp = gauges("outbox_sink_up", "1 while the sink takes what it is offered, 0 while its events are being offered again or go to the ledger.", "sink")
	m.sinkIsolated = gauges("outbox_sink_isolated", "1 while all events of the sink go to the ledger, because it was down for RELAY_SINK_ISOLATION or the slot holds back too much WAL.", "sink")
	m.attempts = counters("outbox_publish_attempts_total", "Events offered to the sink, counted at each offer.", nil, "sink")
	m.publishErrors = counters("outbox_publish_errors_total", "Events offered to the sink and not taken, at each offer, by reason: refused for their own fault (unroutable, too_large, nacked, rejected, encode, unknown_topic) "+
		"or transient errors (timeout, connection, other). Divided by outbox_publish_attempts_total it is the error rate.", nil, "sink", "reason")
	m.acks = counters("outbox_acknowledged_events_total", "Events that the sink has acknowledged.", nil, "sink")
	m.bytes = counters("outbox_acknowledged_bytes_total", "Bytes of keys and bodies that the sink has acknowledged.", nil, "sink")
	m.routed = counters("outbox_routed_events_total", "Events that the sink has acknowledged, by the rule of RELAY_ROUTES that brought them there; default stands for no rule. Only sinks that have rules.", nil, "sink", "rule")
	m.dropped = counters("outbox_dropped_events_total", "Events that a rule of RELAY_ROUTES keeps from the sink: it is done with them, and the row says sent. default stands for RELAY_ROUTES_DEFAULT=drop.", nil, "sink", "rule")
	m.arrived = counters("outbox_tail_arrived_events_total", "Events that a relay which died had sent and not marked, found at the sink after the takeover and not sent again.", nil, "sink")
	m.tailRead = counters("outbox_tail_records_read_total", "Records read back from the sink after a takeover, whoever sent them.", nil, "sink")
	m.tailUnread = counters("outbox_tail_unread_total", "Parts of topics that could not be read back after a takeover, or not to their ends, so that what the relay before sent there may have been sent again.", nil, "sink")
	m.ackSeconds = histogram("outbox_commit_to_ack_seconds", "Time from the commit of an event's transaction to the sink's acknowledgement, by the clocks of database and relay; only events that the stream delivered.",
		[]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300}, nil, "sink")
	m.batchSeconds = histogram("outbox_batch_publish_seconds", "Time that an offer of a batch to the sink took, whatever came of it.",
		[]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}, nil, "sink")
	m.batchEvents = histogram("outbox_batch_events", "Events in a batch offered to the sink. Small batches under load mean too many lanes, or a broker that waits for nothing.",
		[]float64{1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000}, nil, "sink")
	m.parked = counters("outbox_parked_events_total", "Ledger entries made, by reason: refused (as in outbox_publish_errors_total), sink_down, or behind (another of its key is in the ledger).", nil, "sink", "reason")

	// The stream, the table, the marks.
	m.received = counter("outbox_received_events_total", "Events taken from the slot or found in the table, to be published.")
	m.skipped = counter("outbox_skipped_events_total", "Events that the stream delivered again although they were finished already: after a crash, or with other workers on the table.")
	m.found = counters("outbox_recovered_events_total", "Events found in the table and not delivered by the stream, by cause: missing, lost, publication, moved, restored, unreadable (a gap in the stream), first_start (rows older than the slot), stuck_claim, failed, pending (by hand), polled.", nil, "cause")
	m.looks = histogram("outbox_table_look_seconds", "Time that a look at the table for rows that the stream does not deliver took, by what is looked for: pending, stuck_claim, failed.",
		[]float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60}, nil, "kind")
	m.marks = counter("outbox_marked_events_total", "Rows marked with their event's fate.")
	marks := histogram("outbox_mark_seconds", "Time that a transaction of marks took.", []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}, worker)
	m.markSeconds = marks.with()
	m.markFailures = counter("outbox_mark_failures_total", "Transactions of marks that did not succeed and were tried again.")
	m.pruned = counter("outbox_pruned_events_total", "Rows removed because RELAY_RETENTION is over.")
	m.leaseChanges = counter("outbox_lease_changes_total", "Times that this relay has taken or lost a slot. A steady rise means relays that fight or die.")
	m.reconnects = counter("outbox_stream_reconnects_total", "Times that the replication connection had to be made again.")
	m.spansDropped = counters("outbox_trace_spans_dropped_total", "Spans that no collector got, by reason: queue_full (OTEL_BSP_MAX_QUEUE_SIZE waited already), export (the collector did not take them). Events are delivered all the same.", nil, "reason")
	m.build = gauges("outbox_build_info", "1, with what is running.", "version", "revision", "goversion")
	m.wanted = gauges("outbox_wanted_mode", "1 for what RELAY_MODE asks for (auto, cdc, polling), 0 for the others. outbox_mode is what came of it.", "mode")
	m.memoryLimit = gauges("outbox_memory_limit_bytes", "Memory that this process may use: the least limit of its control groups, or the machine's memory. Beyond it the kernel ends the relay.")
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "outbox_ready", Help: "1 while /health/ready answers 200, 0 while this relay does not do its part. A standby is ready, and so is an owner whose broker is down.",
	}, func() float64 {
		ready := m.isReady.Load()
		return oneIf(ready != nil && (*ready)())
	}))

	m.sagas = newSagas(reg, cfg.SagaRules)

	for _, cause := range recoveredCauses {
		m.found.WithLabelValues(cause)
	}
	for _, reason := range []string{relay.SpansQueueFull, relay.SpansExport} {
		m.spansDropped.WithLabelValues(reason)
	}
	for _, kind := range []relay.SweepKind{relay.SweepPending, relay.SweepClaimed, relay.SweepFailed} {
		m.looks.with(kind.String())
	}
	return m
}

// configure takes over what the engine is.
func (m *Metrics) configure(about *relay.About) {
	m.exemplars = about.Traced
	for _, mode := range []string{relay.ModeAuto, relay.ModeCDC, relay.ModePolling} {
		m.wanted.WithLabelValues(mode).Set(oneIf(mode == about.Mode))
	}
}

// Build exports which version runs.
func (m *Metrics) Build(version, revision string) {
	m.build.WithLabelValues(version, revision, runtime.Version()).Set(1)
}

// SpansDropped counts spans that are not exported. It may be called from any goroutine.
func (m *Metrics) SpansDropped(reason string, spans int) {
	m.spansDropped.WithLabelValues(reason).Add(float64(spans))
}

// MemoryLimit exports how much memory the process may use; 0 is not known, and exports nothing.
func (m *Metrics) MemoryLimit(bytes uint64) {
	if bytes > 0 {
		m.memoryLimit.WithLabelValues().Set(float64(bytes))
	}
}

// readiness sets how to find out at each scrape whether the relay is ready.
func (m *Metrics) readiness(ready func() bool) { m.isReady.Store(&ready) }

// eventType returns the series of an event type, or those of "other" when there are too many types.
func (m *Metrics) eventType(name string) *eventTypeMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	return ofName(m.eventTypes, maxEventTypes, name, func(name string) *eventTypeMetrics {
		return &eventTypeMetrics{
			published: m.published.WithLabelValues(name),
			failed:    m.failed.WithLabelValues(name),
			dead:      m.deadLetters.WithLabelValues(name),
			duration:  m.duration.with(name),
		}
	})
}

// ofName returns the series that known has of a name from somebody's row, or adds them. Beyond most
// names it is those of "other".
func ofName[series any](known map[string]*series, most int, name string, add func(name string) *series) *series {
	if s, ok := known[name]; ok {
		return s
	}
	name = relay.Label(name)
	if _, ok := known[name]; !ok && len(known) >= most {
		name = otherEventType
	}
	if s, ok := known[name]; ok {
		return s
	}
	s := add(name)
	known[name] = s
	return s
}

// marked counts a batch whose outcomes are written.
func (m *Metrics) marked(slot string, batch []*relay.Flight) {
	m.marks.Add(float64(len(batch)))
	m.sagas.marked(slot, batch)
	for _, f := range batch {
		for i := range f.Parked {
			p := &f.Parked[i]
			reason := string(p.Reason)
			if reason == "" {
				reason = parkedBehind
			}
			m.parked.WithLabelValues(p.Sink, reason).Inc()
			if p.State == relay.StateDead {
				m.eventType(f.Record.EventType).dead.Inc()
			}
		}
	}
}

// resolved counts what became of ledger entries.
func (m *Metrics) resolved(outcomes []relay.Outcome) {
	for i := range outcomes {
		if outcomes[i].Fate == relay.FateDead {
			m.eventType(outcomes[i].Entry.Event.EventType).dead.Inc()
		}
	}
}

// looked notes how long a look at the table took.
func (m *Metrics) looked(kind relay.SweepKind, took time.Duration) {
	m.looks.with(kind.String()).observe(took.Seconds(), 1)
}

// recovered counts events that were found in the table.
func (m *Metrics) recovered(cause string, events int) {
	m.found.WithLabelValues(relay.Label(strings.ReplaceAll(cause, " ", "_"))).Add(float64(events))
}
