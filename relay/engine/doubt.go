package engine

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// doubt is what the owner before may have sent to one sink and has not marked. Where the sink can
// read back what arrived, such an event is settled without being sent again (relay/DESIGN.md, "What
// an owner that died had sent", has how that is known, and the crashes).
//
// An event counts as arrived only if the record that would be sent now is in its topic, byte for
// byte, and so are all events of its key that came before it since the takeover. The first that is
// not ends it for its key: what is sent again is a suffix.
type doubt struct {
	sink    relay.TailReader
	index   int // of the sink
	sinkObs relay.SinkObserver
	lease   relay.Doubts
	log     hclog.Logger
	query   relay.TailQuery // all but the topics
	to      relay.LSN
	marked  relay.LSN // no event that was committed later has a mark of an owner before

	open atomic.Bool // something may still be in doubt
	// Unix milliseconds; what was admitted until then may be something that had arrived.
	held atomic.Int64

	// Whoever has it reads, and owns what follows.
	turn   relay.Turn
	left   time.Duration // how much longer reading may take, in all
	warned bool

	mu      sync.Mutex // guards what follows
	read    map[string]bool
	arrived map[relay.UUID][]uint64 // what the events' records look like
	ended   map[string]bool         // keys of which an event had not arrived
	looked  int                     // events that were looked for
	found   int
}

const (
	// readTailFor is how long lanes may wait in all, after a takeover, for what is read back. What
	// takes longer is sent again.
	readTailFor = 1500 * time.Millisecond
	// tailShare is how many times the budget of events in flight is kept at most of what was read.
	tailShare = 4
)

// has reports whether the owner before may have sent an event: one of the stream that it may have
// read, or one that the first look at the table finds.
func (d *doubt) has(f *flight) bool {
	return f.round == nil && !f.WhileStreaming && (f.Swept || f.CommitLSN <= d.to)
}

// readFor finds out what has to be known before a batch can be looked for.
func (d *doubt) readFor(ctx context.Context, batch []*flight) {
	if d == nil || !d.open.Load() {
		return
	}
	if len(d.unread(batch)) > 0 {
		d.readTails(ctx, batch)
	}
	d.dropSent(ctx, batch)
}

// readTails reads the tails of the topics of a batch, unless they are known.
func (d *doubt) readTails(ctx context.Context, batch []*flight) {
	if d.turn.Take(ctx) != nil {
		return
	}
	defer d.turn.Give()
	q := d.query
	if q.Topics = d.unread(batch); len(q.Topics) == 0 {
		return // another lane has read them
	}
	if d.left <= 0 {
		d.take(q.Topics, nil)
		d.report(relay.TailReport{}, len(q.Topics), errNoTimeLeft)
		return
	}
	began := time.Now()
	reading, cancel := context.WithTimeout(ctx, d.left)
	defer cancel()
	var got []arrival
	most, lost := tailShare*q.Most, 0
	report, err := d.sink.ReadTail(reading, q, func(rec *relay.Record) {
		if len(got) < most {
			got = append(got, arrival{rec.EventID, look(rec)})
		} else {
			lost++
		}
	})
	d.take(q.Topics, got)
	took := time.Since(began)
	d.left -= took
	if ctx.Err() != nil {
		return
	}
	if err == nil && lost > 0 {
		err = fmt.Errorf("more than %d records", most)
	}
	d.log.Info("read back what the owner before has sent", "topics", len(q.Topics), "since", q.Since.UTC(), "records", report.Records, "took", took.Round(time.Millisecond))
	d.report(report, len(q.Topics), err)
}

var errNoTimeLeft = fmt.Errorf("reading has taken %s", readTailFor)

// report counts what was read, and logs once what could not be.
func (d *doubt) report(r relay.TailReport, topics int, err error) {
	unread, place := len(r.Unread), "all topics"
	switch {
	case unread > 0:
		place, err = r.Unread[0].Place, r.Unread[0].Err
	case err != nil:
		unread = topics
	}
	d.sinkObs.TailRead(r.Records, unread)
	if unread > 0 && !d.warned {
		d.warned = true
		d.log.Warn("what the owner before has sent cannot be read back, and may be sent again", "tails", unread, "first", place, "error", err)
	}
}

// arrival is a record that was read.
type arrival struct {
	id   relay.UUID
	look uint64
}

// unread are the topics of events in doubt whose tails are not known.
func (d *doubt) unread(batch []*flight) (topics []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var seen map[string]bool
	for _, f := range batch {
		topic := f.record(d.index).Topic
		if f.unfit(d.index) != nil || f.dropped(d.index) || d.read[topic] || seen[topic] || !d.has(f) {
			continue
		}
		if seen == nil {
			seen = make(map[string]bool)
		}
		seen[topic] = true
		topics = append(topics, strings.Clone(topic)) // a part of a row's text keeps all of it
	}
	return topics
}

// dropSent leaves out events that were marked sent by an owner before, and are pending again: a
// person wants them once more.
func (d *doubt) dropSent(ctx context.Context, batch []*flight) {
	streamed, swept := d.mayBeSent(batch)
	if len(streamed)+len(swept) == 0 {
		return
	}
	asking, cancel := context.WithTimeout(ctx, readTailFor)
	defer cancel()
	sent, err := d.lease.SentOnce(asking, streamed, swept)
	if err != nil {
		d.log.Debug("whether events were marked once is not known, so they are sent", "events", len(streamed)+len(swept), "error", err)
		sent = append(streamed, swept...)
	}
	gone := make(map[relay.UUID]bool, len(sent))
	for _, id := range sent {
		gone[id] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range batch {
		if gone[f.Record.EventID] {
			delete(d.arrived, f.Record.EventID)
		}
	}
}

// mayBeSent are the events of a batch that have arrived and may have had a mark.
func (d *doubt) mayBeSent(batch []*flight) (streamed, swept []relay.UUID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range batch {
		if d.has(f) && !f.dropped(d.index) && (f.Swept || f.CommitLSN <= d.marked) {
			if _, ok := d.arrived[f.Record.EventID]; ok && !d.ended[f.Record.Key] {
				if f.Swept {
					swept = append(swept, f.Record.EventID)
				} else {
					streamed = append(streamed, f.Record.EventID)
				}
			}
		}
	}
	return streamed, swept
}

// take notes what has arrived.
func (d *doubt) take(topics []string, got []arrival) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.open.Load() {
		return
	}
	for _, topic := range topics {
		d.read[topic] = true
	}
	for _, a := range got {
		if looks := d.arrived[a.id]; !slices.Contains(looks, a.look) { // somebody else may have written one more
			d.arrived[a.id] = append(looks, a.look)
		}
	}
}

// hasArrived reports whether the sink has an event already. Events of a key are asked about in
// their order.
func (d *doubt) hasArrived(f *flight) bool {
	if d == nil || !d.open.Load() || !d.has(f) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	key := f.Record.Key
	if d.count(); !d.open.Load() {
		return false
	}
	if !d.ended[key] && slices.Contains(d.arrived[f.Record.EventID], look(f.record(d.index))) {
		delete(d.arrived, f.Record.EventID)
		d.found++
		return true
	}
	d.endKey(key)
	return false
}

// pass notes that an event goes to the ledger.
func (d *doubt) pass(f *flight) {
	if d == nil || !d.open.Load() || !d.has(f) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count()
	d.endKey(f.Record.Key)
}

// count notes that an event is looked for, with mu held. The owner before had no more in flight
// than its budget, and we take ours for that; what it had in flight comes first.
func (d *doubt) count() {
	if d.looked++; d.looked > d.query.Most && d.open.Load() {
		d.held.Store(time.Now().UnixMilli())
		d.closeLocked()
	}
}

// endKey is called with mu held.
func (d *doubt) endKey(key string) {
	if d.open.Load() && !d.ended[key] {
		d.ended[strings.Clone(key)] = true
	}
}

func (d *doubt) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeLocked()
}

func (d *doubt) closeLocked() {
	if !d.open.Swap(false) {
		return
	}
	if len(d.read) > 0 {
		d.log.Info("nothing is in doubt any more of what the owner before has sent", "arrived", d.found)
	}
	d.read, d.arrived, d.ended = nil, nil, nil
}

// lookSeed begins what look computes, which is of this process only.
var lookSeed = maphash.MakeSeed()

// look is what a record looks like to a consumer. The trace context is left out: it may be of one
// offer.
func look(rec *relay.Record) uint64 {
	var h maphash.Hash
	h.SetSeed(lookSeed)
	var size [8]byte
	write := func(s string) {
		binary.LittleEndian.PutUint64(size[:], uint64(len(s)))
		_, _ = h.Write(size[:]) // never fails
		_, _ = h.WriteString(s)
	}
	write(rec.Topic)
	write(rec.MessageKey())
	binary.LittleEndian.PutUint64(size[:], uint64(len(rec.Value)))
	_, _ = h.Write(size[:])
	_, _ = h.Write(rec.Value)
	for i := range rec.Headers {
		if name := rec.Headers[i].Key; name != relay.TraceParent {
			write(name)
			write(rec.Headers[i].Value)
		}
	}
	return h.Sum64()
}
