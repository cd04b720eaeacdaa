package watch

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// Watch is what is known of one engine. It gets the engine's reports (relay.Observer), and shows
// them as metrics, as Status, History and Changes, and in the log.
type Watch struct {
	log     hclog.Logger
	metrics *Metrics
	changes changeLog
	history history
	kinds   map[string]string // of the sinks, by name

	// Set by Begin, before any other report.
	about relay.About
	sinks map[string]*sinkWatch

	mu    sync.Mutex            // guards what follows
	owned map[string]bool       // slots of which this relay is the owner
	slots map[string]*slotWatch // those with work under a lease
}

var _ relay.Observer = (*Watch)(nil)

// New builds a watch for one engine. The metrics are for it alone. kinds are what its sinks are (kafka,
// file …), by their names; what is not there is shown without.
func New(metrics *Metrics, kinds map[string]string, log hclog.Logger) *Watch {
	return &Watch{
		log: log.Named("relay"), metrics: metrics, kinds: kinds, sinks: make(map[string]*sinkWatch),
		owned: make(map[string]bool), slots: make(map[string]*slotWatch),
	}
}

// Begin implements relay.Observer.
func (w *Watch) Begin(about relay.About) {
	w.about = about
	w.metrics.configure(&w.about)
	w.metrics.slots.begin(about.Snapshot)
	pending := w.pending
	w.metrics.slots.pending.Store(&pending)
	w.metrics.readiness(func() bool { return len(w.Status().Problems()) == 0 })
}

// Divided implements relay.Observer.
func (w *Watch) Divided(set relay.Set) {
	w.metrics.slots.divided(set)
	w.metrics.sagas.divided(set.Shards)
}

// Sink implements relay.Observer.
func (w *Watch) Sink(name string) relay.SinkObserver {
	s := &sinkWatch{sink: name, log: w.log.Named("sink." + name), metrics: w.metrics.sink(name), changes: &w.changes, up: true}
	w.sinks[name] = s
	return s
}

// Owned implements relay.Observer.
func (w *Watch) Owned(shard relay.Shard, epoch int64) relay.SlotObserver {
	s := newSlotWatch(w, shard, epoch)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slots[shard.Slot] = s
	return s
}

// slot returns what is known of a slot with work under a lease, nil of another one.
func (w *Watch) slot(name string) *slotWatch {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.slots[name]
}

// Became implements relay.Observer.
func (w *Watch) Became(slot string, role relay.Role, working bool) {
	w.mu.Lock()
	if (role == relay.Owner) != w.owned[slot] {
		w.metrics.leaseChanges.Inc()
	}
	if w.owned[slot] = role == relay.Owner; role != relay.Owner {
		delete(w.owned, slot)
	}
	if !working {
		delete(w.slots, slot)
	}
	w.mu.Unlock()
	if working {
		w.metrics.slots.own(slot)
	} else {
		w.metrics.slots.drop(slot)
		w.metrics.sagas.drop(slot)
	}
}

// Changed implements relay.Observer.
func (w *Watch) Changed(c relay.Change) { w.changes.add(c) }

// Looked implements relay.Observer: it takes a sample for the history, when it is time.
func (w *Watch) Looked(at time.Time) {
	if elapsed := at.Sub(w.about.Started); w.history.due(elapsed) {
		w.history.add(at, elapsed, w.Status())
	}
}
