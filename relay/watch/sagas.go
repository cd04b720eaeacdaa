package watch

import (
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

// sagas counts sagas by the events that they leave in the outbox. An event counts when its row is
// marked, whatever became of it at its sinks: that happens once, also where a crash or a new owner
// has the event delivered again. It is the marker's goroutine that pays.
//
// It cannot know what happened before this relay owned the slot: a saga that was under way then
// counts as started again, with a duration from then on. Nor can it know events that never were in
// the outbox. Rows that the stream did not deliver (set back by a person, left behind by another
// worker) do not count, because most of them were counted before.
//
// Where several slots share out the table, a saga whose events have one key is one slot's, and all
// of this holds. One whose events have several keys is spread: no relay need see both its first
// event and its last, and nothing but the database could put the parts together. So:
//
//   - completed and failed are right all the same: one event says so, and one relay has it.
//   - so is started, where a rule names the event that starts a saga.
//   - else started counts each relay that sees a part, and so do compensated and
//     compensation_failed. A saga cannot count as compensated in more relays than its keys have.
//   - active, oldest and duration leave such sagas out, instead of showing as stuck what has ended
//     elsewhere. They are known by their name: two keys in one saga of a name mean that all of that
//     name are spread, which any relay sees soon.
type sagas struct {
	rules    []sagaRule
	explicit bool // a rule names the events that start a saga; otherwise the first one seen does

	started, completed, failed, compensated, uncompensated *prometheus.CounterVec
	steps                                                  *prometheus.CounterVec
	duration                                               *histograms
	active, oldest                                         *prometheus.Desc
	dropped, unmatched                                     prometheus.Counter

	seed maphash.Seed

	mu       sync.Mutex // guards what follows
	meanings map[string]sagaMeaning
	names    map[string]*sagaType
	stepSets map[[2]string]*sagaSteps
	tracked  map[uint64]*trackedSaga // by a hash of saga_id
	shards   int                     // slots of the table
	order    trackedSaga             // ring of those tracked, the one heard of last in front
}

// Bounds of memory and of label values.
const (
	maxSagas     = 20_000 // tracked at a time, those that have ended among them
	maxSagaTypes = 100
	maxSagaSteps = 300  // pairs of saga and step
	maxMeanings  = 1000 // event types whose meaning is kept at hand
	// maxMeaningBytes is the size of an event type that is kept: longer ones are asked about each
	// time.
	maxMeaningBytes = 512
)

// sagaType are the series of the sagas of one name, resolved.
type sagaType struct {
	started, completed, failed, compensated, uncompensated prometheus.Counter
	durationCompleted, durationFailed                      *histogram
	active                                                 int
	// Events of one saga have several keys, and the table several slots: none is active.
	spread bool
}

type sagaSteps struct{ success, failed, compensated, uncompensated prometheus.Counter }

// trackedSaga is a saga of which an event was seen.
type trackedSaga struct {
	id   uint64
	of   *sagaType
	slot string
	key  uint64 // a hash of that of its first event
	// Created_at of its first event; by the application's clock, as that of the last.
	first         relay.Timestamp
	events        int
	active        bool // counted in of.active
	started       bool
	compensated   bool
	uncompensated bool
	ended         bool

	prev, next *trackedSaga
}

func newSagas(reg prometheus.Registerer, rules []string) *sagas {
	s := &sagas{
		seed: maphash.MakeSeed(), meanings: make(map[string]sagaMeaning), names: make(map[string]*sagaType),
		stepSets: make(map[[2]string]*sagaSteps), tracked: make(map[uint64]*trackedSaga),
	}
	s.order.prev, s.order.next = &s.order, &s.order
	s.rules, _ = parseSagaRules(rules)
	for _, rule := range s.rules {
		s.explicit = s.explicit || rule.outcome == sagaStarted
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	s.started = counters("outbox_saga_started_total", "Sagas of which a first event was seen in the outbox. After a change of the slot's owner, those under way count again. "+
		"Where a table has several slots and a saga's events several keys, it counts once for each relay that sees some of them, unless a rule of RELAY_SAGA_RULES names the event that starts a saga.", "saga_name")
	s.completed = counters("outbox_saga_completed_total", "Sagas that ended well, by their events (RELAY_SAGA_RULES). Each counts once over all relays, also where a table has several slots and a saga's events several keys.", "saga_name")
	s.failed = counters("outbox_saga_failed_total", "Sagas that ended otherwise, compensated or not. Each counts once over all relays, as for outbox_saga_completed_total.", "saga_name")
	s.compensated = counters("outbox_saga_compensated_total", "Sagas in which at least one step was compensated; once for each relay that sees such a step, where a table has several slots and a saga's events several keys.", "saga_name")
	s.uncompensated = counters("outbox_saga_compensation_failed_total", "Sagas in which at least one step could not be compensated, so that what it did is still in effect; once for each relay that sees such a step, as for outbox_saga_compensated_total. "+
		"The library's own listener reports none: see docs/metrics.md.", "saga_name")
	s.steps = counters("outbox_saga_steps_total", "Steps of sagas by outcome: success, failed, compensated, compensation_failed. Each counts once over all relays.", "saga_name", "step_name", "outcome")
	s.duration = newHistograms("outbox_saga_duration_seconds", "Time from a saga's first event to its last by their created_at, by how it ended (completed, failed); only sagas whose first event this owner saw. Not counted where a table has several slots and the events of such sagas several keys: no relay need see both.",
		[]float64{0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600}, nil, "saga_name", "status")
	s.active = prometheus.NewDesc("outbox_saga_active", "Sagas of which this owner saw the first event and not the last. Sagas without a type for the end stay in it until others push them out. Absent where a table has several slots and the events of such sagas several keys: another relay may see the last.", []string{"saga_name"}, nil)
	s.oldest = prometheus.NewDesc("outbox_saga_oldest_active_seconds", "Age of the oldest of them, from the created_at of its first event; 0 without any, absent like outbox_saga_active. A steady rise means a saga that is stuck.", []string{"saga_name"}, nil)
	s.dropped = counter("outbox_saga_tracking_dropped_total", "Sagas under way that are not followed any more, because only 20000 are: their duration will not be known. The one heard of least recently goes first.")
	s.unmatched = counter("outbox_saga_unmatched_events_total", "Events that say nothing of a saga: no rule of RELAY_SAGA_RULES names their type, and they have no header saga_name.")
	reg.MustRegister(s.duration, s)
	return s
}

// marked counts a batch of events whose rows were marked.
func (s *sagas) marked(slot string, batch []*relay.Flight) {
	if len(s.rules) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	unmatched := 0
	for _, f := range batch {
		if f.WhileStreaming {
			continue
		}
		m := s.meaning(f.Record.EventType)
		named, step := "", ""
		for i := range f.Record.Headers {
			switch f.Record.Headers[i].Key {
			case "saga_name":
				named = f.Record.Headers[i].Value
			case "step_name":
				step = f.Record.Headers[i].Value
			}
		}
		if m.outcome == "" && named == "" {
			unmatched++
			continue
		}
		for _, name := range [...]string{m.saga, f.AggregateType} {
			if named == "" {
				named = name
			}
		}
		if step == "" {
			step = m.step
		}
		s.count(slot, f, m.outcome, named, step)
	}
	if unmatched > 0 {
		s.unmatched.Add(float64(unmatched))
	}
}

// count counts one event. It is called with mu held.
func (s *sagas) count(slot string, f *relay.Flight, outcome sagaOutcome, name, step string) {
	t := s.track(slot, f, name)
	if !t.started && (!s.explicit || outcome == sagaStarted) {
		t.started = true
		t.of.started.Inc()
	}
	switch outcome {
	case sagaStep:
		s.step(name, step).success.Inc()
	case sagaStepFailed:
		s.step(name, step).failed.Inc()
	case sagaCompensated:
		s.step(name, step).compensated.Inc()
		if !t.compensated {
			t.compensated = true
			t.of.compensated.Inc()
		}
	case sagaUncompensated:
		s.step(name, step).uncompensated.Inc()
		if !t.uncompensated {
			t.uncompensated = true
			t.of.uncompensated.Inc()
		}
	case sagaCompleted:
		s.end(t, f, t.of.completed, t.of.durationCompleted)
	case sagaFailed:
		s.end(t, f, t.of.failed, t.of.durationFailed)
	}
}

// end counts a saga's end, once.
func (s *sagas) end(t *trackedSaga, f *relay.Flight, count prometheus.Counter, duration *histogram) {
	if t.ended {
		return
	}
	t.ended = true
	count.Inc()
	s.rest(t)
	if t.events > 1 && !t.of.spread { // a lone event has no duration
		duration.observe(max(0, float64(f.Created()-t.first)/1e6), 1)
	}
}

// rest takes a saga out of those that are active.
func (s *sagas) rest(t *trackedSaga) {
	if t.active {
		t.active = false
		t.of.active--
	}
}

// track returns what is known of the event's saga, and makes it the one heard of last.
func (s *sagas) track(slot string, f *relay.Flight, name string) *trackedSaga {
	id, key := maphash.String(s.seed, f.SagaID), maphash.String(s.seed, f.Record.Key)
	t, ok := s.tracked[id]
	if ok {
		t.prev.next, t.next.prev = t.next, t.prev
		if t.key != key && s.shards > 1 && !t.of.spread {
			s.spread(t.of)
		}
	} else {
		if len(s.tracked) >= maxSagas {
			s.forget(s.order.prev, true)
		}
		t = &trackedSaga{id: id, of: s.name(name), slot: slot, key: key, first: f.Created()}
		if t.active = !t.of.spread; t.active {
			t.of.active++
		}
		s.tracked[id] = t
	}
	t.events++
	t.prev, t.next = &s.order, s.order.next
	t.prev.next, t.next.prev = t, t
	return t
}

// spread notes that sagas of a name have events with several keys: none of them is active.
func (s *sagas) spread(of *sagaType) {
	of.spread = true
	for _, t := range s.tracked {
		if t.of == of {
			s.rest(t)
		}
	}
}

// divided takes over among how many slots the table is divided. What was learned of names holds
// only where there are several.
func (s *sagas) divided(shards int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shards = shards
	if shards <= 1 {
		for _, of := range s.names {
			of.spread = false
		}
	}
}

// forget stops following a saga.
func (s *sagas) forget(t *trackedSaga, full bool) {
	if t.active && full {
		s.dropped.Inc()
	}
	s.rest(t)
	t.prev.next, t.next.prev = t.next, t.prev
	delete(s.tracked, t.id)
}

// drop forgets the sagas of a slot that is not ours any more: the next owner sees their end.
func (s *sagas) drop(slot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tracked {
		if t.slot == slot {
			s.forget(t, false)
		}
	}
}

// meaning returns what the rules say of an event type.
func (s *sagas) meaning(eventType string) sagaMeaning {
	m, ok := s.meanings[eventType]
	if !ok {
		m = meaning(s.rules, eventType)
		if len(s.meanings) < maxMeanings && len(eventType) <= maxMeaningBytes {
			// The type's text keeps all of its event's alive, and so do its parts.
			m.saga, m.step = strings.Clone(m.saga), strings.Clone(m.step)
			s.meanings[strings.Clone(eventType)] = m
		}
	}
	return m
}

// name returns the series of a saga name, or those of "other" when there are too many.
func (s *sagas) name(name string) *sagaType {
	return ofName(s.names, maxSagaTypes, name, func(name string) *sagaType {
		return &sagaType{
			started: s.started.WithLabelValues(name), completed: s.completed.WithLabelValues(name),
			failed: s.failed.WithLabelValues(name), compensated: s.compensated.WithLabelValues(name),
			uncompensated:     s.uncompensated.WithLabelValues(name),
			durationCompleted: s.duration.with(name, "completed"), durationFailed: s.duration.with(name, "failed"),
		}
	})
}

// step returns the series of a saga's step.
func (s *sagas) step(saga, step string) *sagaSteps {
	key := [2]string{saga, step}
	if c, ok := s.stepSets[key]; ok {
		return c
	}
	key = [2]string{relay.Label(saga), relay.Label(step)}
	if c, ok := s.stepSets[key]; ok {
		return c
	}
	if len(s.stepSets) >= maxSagaSteps {
		key = [2]string{otherEventType, otherEventType}
		if c, ok := s.stepSets[key]; ok {
			return c
		}
	}
	c := &sagaSteps{
		success: s.steps.WithLabelValues(key[0], key[1], "success"), failed: s.steps.WithLabelValues(key[0], key[1], "failed"),
		compensated: s.steps.WithLabelValues(key[0], key[1], "compensated"), uncompensated: s.steps.WithLabelValues(key[0], key[1], "compensation_failed"),
	}
	s.stepSets[key] = c
	return c
}

// Describe implements prometheus.Collector.
func (s *sagas) Describe(descs chan<- *prometheus.Desc) { descs <- s.active; descs <- s.oldest }

// Collect implements prometheus.Collector.
func (s *sagas) Collect(metrics chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := make(map[*sagaType]relay.Timestamp)
	for _, t := range s.tracked {
		if at, ok := oldest[t.of]; t.active && (!ok || t.first < at) {
			oldest[t.of] = t.first
		}
	}
	now := relay.TimestampOf(time.Now())
	for name, of := range s.names {
		if of.spread {
			continue
		}
		metrics <- prometheus.MustNewConstMetric(s.active, prometheus.GaugeValue, float64(of.active), name)
		age := 0.0
		if at, ok := oldest[of]; ok {
			age = max(0, float64(now-at)/1e6)
		}
		metrics <- prometheus.MustNewConstMetric(s.oldest, prometheus.GaugeValue, age, name)
	}
}
