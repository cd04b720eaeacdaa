package watch

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// slotWatch is what is known of the work on one slot under one lease.
type slotWatch struct {
	w     *Watch
	slot  string
	first bool // the first of the set: it speaks for the whole table
	log   hclog.Logger
	seen  chan relay.SlotInfo // capacity one: the engine's newest look at the slot

	mu     sync.Mutex // guards what follows
	unread unreadEstimate
	info   relay.SlotInfo    // at the last look
	hot    *float64          // share of HOT updates, lately; nil: not known
	parked []relay.Timestamp // by sink: the oldest event parked since it was last asked; 0: none
}

var _ relay.SlotObserver = (*slotWatch)(nil)

func newSlotWatch(w *Watch, shard relay.Shard, epoch int64) *slotWatch {
	return &slotWatch{
		w: w, slot: shard.Slot, first: shard.Index == 0, unread: unreadEstimate{shards: shard.Set.Shards}, log: w.log.Named("pipeline").With("slot", shard.Slot, "epoch", epoch),
		seen: make(chan relay.SlotInfo, 1), parked: make([]relay.Timestamp, len(w.about.Sinks)),
	}
}

// Sample implements relay.SlotObserver.
func (s *slotWatch) Sample(ctx context.Context, facts relay.Facts) { newSampler(s, facts).run(ctx) }

// Seen implements relay.SlotObserver.
func (s *slotWatch) Seen(info relay.SlotInfo) {
	select {
	case <-s.seen: // an older one, which nobody has taken yet
	default:
	}
	s.seen <- info // there is room: one goroutine sends
}

// Received implements relay.SlotObserver.
func (s *slotWatch) Received(batch []*relay.Flight) {
	s.w.metrics.received.Add(float64(len(batch)))
	logReceived(s.log, batch)
}

// Skipped implements relay.SlotObserver.
func (s *slotWatch) Skipped(events int) { s.w.metrics.skipped.Add(float64(events)) }

// Found implements relay.SlotObserver.
func (s *slotWatch) Found(cause string, events int) { s.w.metrics.recovered(cause, events) }

// LookedFor implements relay.SlotObserver.
func (s *slotWatch) LookedFor(kind relay.SweepKind, took time.Duration) {
	s.w.metrics.looked(kind, took)
}

// Interrupted implements relay.SlotObserver.
func (s *slotWatch) Interrupted() { s.w.metrics.reconnects.Inc() }

// MarkTried implements relay.SlotObserver.
func (s *slotWatch) MarkTried(took time.Duration, err error) {
	if err != nil {
		s.w.metrics.markFailures.Inc()
		return
	}
	s.w.metrics.markSeconds.observe(took.Seconds(), 1)
}

// Marked implements relay.SlotObserver.
func (s *slotWatch) Marked(batch []*relay.Flight) {
	s.w.metrics.marked(s.slot, batch)
	for _, f := range batch {
		for i := range f.Parked {
			if f.Parked[i].State == relay.StateDead {
				s.w.changes.add(deadLetter(s.slot, f.Parked[i].Sink, f.Parked[i].Reason))
			}
		}
	}
	logMarked(s.log, batch)
}

// Pruned implements relay.SlotObserver.
func (s *slotWatch) Pruned(rows int) { s.w.metrics.pruned.Add(float64(rows)) }

// Parked implements relay.SlotObserver.
func (s *slotWatch) Parked(sink string, batch []*relay.Flight, parks []*relay.Parked) {
	i := slices.Index(s.w.about.Sinks, sink)
	s.mu.Lock()
	for j, f := range batch {
		if parks[j] == nil || parks[j].Detached { // the latter holds up nothing
			continue
		}
		if at := f.At(); at != 0 && (s.parked[i] == 0 || at < s.parked[i]) {
			s.parked[i] = at
		}
	}
	s.mu.Unlock()
	logParked(s.w.sinks[sink].log, batch, parks)
}

// oldestParked returns when the oldest event happened that was parked for a sink since the last
// call, 0 for none.
func (s *slotWatch) oldestParked(sink int) (oldest relay.Timestamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest, s.parked[sink] = s.parked[sink], 0
	return oldest
}

// Retried implements relay.SlotObserver.
func (s *slotWatch) Retried(sink string, batch []*relay.Flight, again int) {
	to := s.w.sinks[sink]
	logRetried(to.log, sink, batch)
	to.metrics.retry(again)
}

// Gone implements relay.SlotObserver.
func (s *slotWatch) Gone(sink string, entries []*relay.Entry) {
	logGone(s.w.sinks[sink].log, s.w.about.Encoder, sink, entries)
}

// Resolved implements relay.SlotObserver.
func (s *slotWatch) Resolved(sink string, outcomes []relay.Outcome) {
	s.w.metrics.resolved(outcomes)
	for i := range outcomes {
		if outcomes[i].Fate == relay.FateDead {
			s.w.changes.add(deadLetter(s.slot, sink, outcomes[i].Reason))
		}
	}
	logResolved(s.w.sinks[sink].log, s.w.about.Encoder, sink, outcomes)
}

func deadLetter(slot, sink string, reason relay.Reason) relay.Change {
	return relay.Change{Kind: relay.ChangeDeadLetter, Level: relay.LevelDegraded, Slot: slot, Sink: sink, Text: string(reason)}
}

// hotShare returns the share of HOT updates lately.
func (s *slotWatch) hotShare() *float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hot
}
