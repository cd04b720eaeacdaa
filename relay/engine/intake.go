package engine

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// intake takes events in, from the stream and from the table, and puts them on their lanes. It is
// the relay.Intake of each of the slot's connections, so what a new one repeats is recognised by
// its place in commit order, and dropped.
type intake struct {
	cfg     *Config
	log     hclog.Logger
	slotObs relay.SlotObserver
	lease   relay.Marks
	maker   maker
	window  *window
	confirm *confirmation
	doing   *doing
	lanes   [][]*lane // by sink, then by key

	// One feeder at a time, the stream or a sweep; whoever has it owns what follows.
	admitting relay.Turn
	last      position  // of the newest event admitted from the stream
	lookupTo  relay.LSN // up to here, rows may be settled though the stream delivers them
	place     int64     // Position of the newest event
	scratch   [][]*flight
	pending   []relay.Event // events that are not known already, reused
	taken     reports

	mu   sync.Mutex // guards what follows
	read reading
}

// reading is how far the stream has come.
type reading struct {
	at      relay.LSN // it has delivered everything that was committed before
	inside  int       // events admitted of the transaction whose end it has not delivered
	signs   uint64    // times that the stream has brought anything, if only a sign of life
	skipped uint64    // events that it delivered and that were settled
	claimed bool      // it waits for rows that another worker has claimed
}

// position is an event's place in commit order.
type position struct {
	commit  relay.LSN
	ordinal uint32
}

func (p position) atOrBefore(q position) bool {
	return p.commit < q.commit || p.commit == q.commit && p.ordinal <= q.ordinal
}

func newIntake(e *Engine, log hclog.Logger, slotObs relay.SlotObserver, lease relay.Lease, w *window, c *confirmation, d *doing, lanes [][]*lane) *intake {
	in := &intake{
		cfg: &e.cfg, log: log, slotObs: slotObs, lease: lease, maker: newMaker(e), window: w, confirm: c, doing: d, lanes: lanes,
		admitting: relay.NewTurn(), lookupTo: lease.MarkedLSN(), place: lease.LastPosition(), scratch: make([][]*flight, e.cfg.Lanes),
	}
	if e.cfg.Hybrid {
		in.lookupTo = math.MaxUint64
	}
	return in
}

// Admit implements Intake.
func (in *intake) Admit(ctx context.Context, events []relay.Event) error {
	if err := in.admitting.Take(ctx); err != nil {
		return err
	}
	defer in.admitting.Give()
	in.sign()
	events, err := in.fresh(ctx, events)
	if err != nil {
		return err
	}
	for len(events) > 0 {
		n, err := in.window.reserve(ctx, events)
		if err != nil {
			return err
		}
		in.launch(events[:n], false)
		// Only now: when the connection breaks while we wait for room, the next one repeats the
		// rest, which must not count as known then.
		in.last = position{events[n-1].CommitLSN, events[n-1].Ordinal}
		events = events[n:]
	}
	return nil
}

// finish waits until nobody is taking events in, at most until ctx ends. The feeders' own context
// has ended by then, so nobody begins to after that. A sweep next to the stream is not waited for
// otherwise: its rows would get to their lanes after the drain has found nothing in flight.
func (in *intake) finish(ctx context.Context) {
	if in.admitting.Take(ctx) == nil {
		in.admitting.Give()
	}
}

// fresh returns the events that are to be published. It leaves out what a new connection repeats,
// rows that were inserted with another status than pending, and what an earlier owner has settled,
// or in hybrid mode any worker.
func (in *intake) fresh(ctx context.Context, events []relay.Event) ([]relay.Event, error) {
	known := func(ev *relay.Event) bool {
		return position{ev.CommitLSN, ev.Ordinal}.atOrBefore(in.last) || ev.Status != "pending"
	}
	in.pending = in.keep(in.pending[:0], events, func(i int) bool { return !known(&events[i]) })
	if len(in.pending) == 0 || in.pending[0].CommitLSN > in.lookupTo {
		return in.pending, nil
	}
	settled, err := in.settledRetry(ctx, in.pending)
	if err != nil {
		return nil, err
	}
	asked := len(in.pending)
	in.pending = in.keep(in.pending[:0], in.pending, func(i int) bool {
		// Past lookupTo no earlier owner can have marked; asking was for the others of this batch.
		return !settled[i] || in.pending[i].CommitLSN > in.lookupTo
	})
	skipped := asked - len(in.pending)
	in.mu.Lock()
	in.read.skipped += uint64(skipped)
	in.mu.Unlock()
	in.slotObs.Skipped(skipped)
	return in.pending, nil
}

// keep appends the events that the test wants to kept, which may be the front of events itself. The
// position that a dropped event carries goes to the event before it, so that the slot still moves
// past it, and not before its time.
func (in *intake) keep(kept, events []relay.Event, want func(i int) bool) []relay.Event {
	for i := range events {
		ev := events[i]
		switch {
		case want(i):
			kept = append(kept, ev)
		case ev.CommitEnd == 0:
		case len(kept) > 0:
			kept[len(kept)-1].CommitEnd = ev.CommitEnd
		default:
			in.Pass(ev.CommitEnd)
		}
	}
	return kept
}

// admitSwept is Admit for rows from the table.
func (in *intake) admitSwept(ctx context.Context, events []relay.Event) (rows int, err error) {
	if err := in.admitting.Take(ctx); err != nil {
		return 0, err
	}
	defer in.admitting.Give()
	if in.cfg.Hybrid {
		if events, err = in.claimSwept(ctx, events); err != nil {
			return 0, err
		}
	}
	for len(events) > 0 {
		n, err := in.window.reserve(ctx, events)
		if err != nil {
			return rows, err
		}
		in.launch(events[:n], true)
		rows += n
		events = events[n:]
	}
	return rows, nil
}

// launch encodes events and puts them on their way.
func (in *intake) launch(events []relay.Event, swept bool) {
	flights := make([]*flight, len(events))
	whileStreaming := swept && in.doing.whileStreaming()
	for i := range events {
		// Each by itself: in one piece, an event that is stuck would keep all of them in memory.
		ev, f := &events[i], new(flight)
		flights[i] = f
		f.CommitLSN, f.xid, f.CommittedAt, f.size = ev.CommitLSN, ev.XID, ev.CommittedAt, ev.Size()
		f.confirm, f.Swept, f.WhileStreaming = ev.CommitEnd, swept, whileStreaming
		in.place++
		f.position = in.place
		f.keyHash = relay.KeyHash(ev.AggregateID)
		f.SagaID, f.AggregateType = ev.SagaID, ev.AggregateType
		in.maker.make(f, ev, everySink, time.Time{})
		lane := relay.Partition(f.keyHash, in.cfg.Lanes)
		in.scratch[lane] = append(in.scratch[lane], f)
	}

	in.slotObs.Received(in.taken.of(flights))
	in.taken.clear()
	if !swept {
		in.hasRead(events)
	}
	in.window.admit(flights, swept)

	for lane, part := range in.scratch {
		if len(part) == 0 {
			continue
		}
		for _, lanes := range in.lanes {
			lanes[lane].push(part)
		}
		clear(part)
		in.scratch[lane] = part[:0]
	}
}

// hasRead notes how far events have brought the stream.
func (in *intake) hasRead(events []relay.Event) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.read.inside += len(events)
	for i := len(events) - 1; i >= 0; i-- {
		if end := events[i].CommitEnd; end != 0 {
			in.read.at, in.read.inside = max(in.read.at, end), len(events)-1-i
			break
		}
	}
}

// Pass implements relay.Intake.
func (in *intake) Pass(lsn relay.LSN) {
	in.window.pass(lsn)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.read.signs++
	in.read.at, in.read.inside = max(in.read.at, lsn), 0
}

// Heard implements relay.Intake.
func (in *intake) Heard(relay.LSN) { in.sign() }

// sign notes that the stream has brought something.
func (in *intake) sign() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.read.signs++
}

// Watermark implements relay.Intake.
func (in *intake) Watermark() relay.LSN { return in.confirm.confirmed() }

// reading returns how far the stream has come.
func (in *intake) reading() reading {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.read
}

// restart begins with a slot that was made again at a position. Up to marked, it may deliver rows
// that are settled.
func (in *intake) restart(ctx context.Context, at, marked relay.LSN) error {
	if err := in.admitting.Take(ctx); err != nil {
		return err
	}
	if !in.cfg.Hybrid {
		in.lookupTo = marked
	}
	in.last = position{} // a restored database counts its WAL from elsewhere
	in.admitting.Give()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.read.at, in.read.inside = at, 0
	return nil
}

// lookUp has rows looked up that the stream delivers up to a position.
func (in *intake) lookUp(ctx context.Context, to relay.LSN) error {
	if err := in.admitting.Take(ctx); err != nil {
		return err
	}
	defer in.admitting.Give()
	in.lookupTo = max(in.lookupTo, to)
	return nil
}
