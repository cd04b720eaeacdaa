package kafka

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/produce"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/halve"
)

// maxMoves is how often a group follows its leader, movePause apart from the second time on. Just
// after a topic was made or a leader elected, brokers need a moment to agree. After that the lane
// decides.
const (
	maxMoves  = 4
	movePause = 50 * time.Millisecond
)

var (
	errNoProducer = errors.New("the producer id is used up or not accepted: a new one is asked for")
	errGone       = errors.New("sent together with records of a call that has ended")
)

// partition queues what goes to one partition of one topic, gives it to the leader's sender batch
// by batch, and gives the records their fates. It lives as long as the sink knows the topic.
//
// Life of a group of records: queue → chunk in flight → done. A chunk that another broker must
// take, that was too large or that came out of sequence goes back to the front of the queue.
//
// Invariants:
//   - Of one group at most one chunk is in flight, so a failed chunk has nothing of its keys behind
//     it. Chunks of different groups may be in flight together: groups come from different Publish
//     calls, and a key is in one call at a time.
//   - All chunks in flight are on one connection, so they arrive in the order sent.
//   - After a failure nothing is sent until all chunks in flight have their fates. Then the epoch
//     goes up by one, so that brokers append nothing of ours that is still on the way.
type partition struct {
	sink  *Sink
	topic *topic
	index int32

	// tried: the present leader has taken something. Before that it may answer for a while that it
	// leads nothing, when the partition was just made or has moved, while other partitions take
	// records. Changed under mu.
	tried atomic.Bool

	mu       sync.Mutex
	leader   int32    // node id, -1 for no leader
	stale    bool     // the leader must be asked for before anything is sent
	asked    bool     // the leader was just asked for: it may be dialed
	listed   bool     // is on a broker's or the refresher's list, which will look at it again
	queue    []*group // in order of arrival
	again    []*chunk // to be sent once more as they were: the connection broke under them
	inflight int      // chunks
	link     *link    // that they are on
	id       producerID
	numbered bool  // id is set; 0, epoch 0, is an id like any other
	seq      int32 // of the next record under id
	resync   bool  // a chunk failed: id's epoch ends when nothing is in flight
	// how often the leader was not where the metadata had it, since it last was
	moves int
	piece halve.Piece // records per chunk while a culprit is looked for
}

// group is the part of one Publish that goes to one partition. Guarded by the partition's mutex.
type group struct {
	call    *call
	p       *partition
	recs    []*relay.Record
	pos     []int32 // of each record in the call's batch; nil when recs is the batch
	next    int     // first record not in a chunk
	decided int     // first record without a fate
	flying  bool    // a chunk of it is in flight or in again
	over    bool    // all fates known, or the call has gone
	moves   int     // how often it was sent to a broker that does not lead (any more)
}

// segment is what a chunk has of one group.
type segment struct {
	g        *group
	from, to int
}

// chunk is one record batch. Guarded by the partition's mutex once in flight.
type chunk struct {
	p      *partition
	segs   []segment
	n      int
	size   int // of the batch on the wire
	id     producerID
	seq    int32
	resent bool
}

// enqueue adds a group; it may be called by any lane.
func (p *partition) enqueue(g *group) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, g)
	p.route()
}

// route puts the partition on the list of the broker or the refresher that can do something for it.
// Called after every change, with mu held.
func (p *partition) route() {
	if p.listed || !p.ready() {
		return
	}
	p.listed = true
	if p.stale || p.leader < 0 {
		p.sink.refresher.add(p)
		return
	}
	p.sink.broker(p.leader).add(p)
}

// ready reports whether a chunk may be sent now, as far as the partition itself is concerned.
func (p *partition) ready() bool {
	if p.inflight > 0 && (p.resync || p.piece.Most() > 0 || p.stale) {
		return false // route is called again when the chunks have landed
	}
	return len(p.again) > 0 || (len(p.queue) > 0 && !p.queue[0].flying)
}

// compose appends the next chunk to the request, for the sender of broker on link. It returns nil
// when it has none to send there. The records are read here and nowhere later.
func (p *partition) compose(f *frame, w *batchWriter, b *broker, l *link) *chunk {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listed = false
	p.dropFenced()
	p.dropBehind()
	if !p.ready() || (p.inflight > 0 && p.link != l) {
		return nil
	}
	if p.stale || p.leader != b.id {
		p.route()
		return nil
	}
	var c *chunk
	if len(p.again) > 0 {
		c = p.again[0]
		p.again = p.again[1:]
		mark := f.partition(p.topic.name, p.index)
		w.begin(f.buf)
		for _, s := range c.segs {
			for _, rec := range s.g.recs[s.from:s.to] {
				w.add(rec, math.MaxInt)
			}
		}
		p.close(f, w, c, mark)
	} else if c = p.take(f, w); c == nil {
		return nil
	}
	p.inflight++
	p.link, p.asked = l, false
	p.route()
	return c
}

// take makes a chunk of what is at the front of the queue.
func (p *partition) take(f *frame, w *batchWriter) *chunk {
	if p.resync || !p.numbered {
		if err := p.newEpoch(); err != nil {
			p.failAll(err)
			return nil
		}
	}
	limit := p.topic.batchLimit(p.sink.cfg.BatchBytes)
	c := &chunk{p: p, id: p.id, seq: p.seq}
	mark := f.partition(p.topic.name, p.index)
	w.begin(f.buf)
	full, most := false, p.piece.Most()
	for len(p.queue) > 0 && !full {
		g := p.queue[0]
		if g.flying {
			break
		}
		from := g.next
		for g.next < len(g.recs) && !full {
			if full = (most > 0 && c.n == most) || !w.add(g.recs[g.next], limit); !full {
				g.next++
				c.n++
			}
		}
		if g.next > from {
			c.segs = append(c.segs, segment{g, from, g.next})
			g.flying = true
		}
		if g.next == len(g.recs) {
			p.queue[0] = nil
			p.queue = p.queue[1:]
		}
	}
	if len(p.queue) == 0 {
		p.queue = nil
	}
	p.close(f, w, c, mark)
	if c.id != noProducer {
		p.seq = nextSequence(p.seq, c.n)
	}
	return c
}

// close ends the batch. A codec that fails is no fault of a broker, and no codec of ours does.
func (p *partition) close(f *frame, w *batchWriter, c *chunk, mark int) {
	var err error
	f.buf, err = w.finish(c.id, c.seq, time.Now())
	if err != nil {
		panic(fmt.Sprintf("kafka: compress %d records with %v: %v", c.n, w.compression, err))
	}
	c.size = len(f.buf) - mark
	f.closePartition(mark)
}

// newEpoch starts a new series of sequence numbers. After the first batch that a broker accepts
// under the new epoch it refuses all of the former one, so a request that timed out here can no
// longer be appended behind what follows.
func (p *partition) newEpoch() error {
	current := p.sink.producer.Load()
	switch {
	case current == nil: // given up in the meantime: the next Publish asks for one
		return errNoProducer
	case *current == noProducer:
		p.id, p.numbered, p.seq, p.resync = noProducer, true, -1, false
		return nil
	case !p.numbered || p.id.id != current.id:
		p.id = *current
	case p.id.epoch == math.MaxInt16:
		p.sink.producer.CompareAndSwap(current, nil)
		return errNoProducer
	default:
		p.id.epoch++
	}
	p.numbered, p.seq, p.resync = true, 0, false
	return nil
}

// nextSequence wraps as brokers expect: after the largest comes 0.
func nextSequence(seq int32, n int) int32 { return int32((int64(seq) + int64(n)) & math.MaxInt32) }

// answered gives a chunk its fate by the broker's answer.
func (p *partition) answered(c *chunk, b *broker, res *produce.ResponsePartition) {
	code := kafkago.Error(res.ErrorCode)
	v, reason := classify(code)
	if code == kafkago.DuplicateSequenceNumber && c.resent {
		v = delivered // the first copy arrived, longer ago than the broker remembers offsets for
	}
	var err error
	if v != delivered {
		err = fmt.Errorf("produce to %s/%d at %s: %w", p.topic.name, p.index, b.address(), withText(code, res.ErrorMessage))
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	p.land(c)
	failedBefore := p.resync // then a misplaced chunk is only what follows from that
	p.resync = p.resync || v != delivered
	switch v {
	case delivered:
		p.moves = 0
		p.setTried(true)
		for _, s := range c.segs {
			s.g.decide(s.to, nil)
		}
		p.piece.Taken(c.n)
	case moved:
		p.setTried(false)
		p.stale = true
		p.follow(c, err)
	case misplaced:
		if failedBefore {
			p.requeue(c)
		} else {
			// Start over with an id that brokers know nothing about.
			if current := p.sink.producer.Load(); current != nil && current.id == p.id.id {
				p.sink.producer.CompareAndSwap(current, nil)
			}
			p.fail(c, err)
		}
	case unfenced:
		p.sink.withoutProducer(err)
		p.follow(c, err)
	case oversized, suspect:
		if v == oversized {
			p.sink.refresher.learnLimit(p.topic)
		}
		if !p.piece.Refused(c.n) {
			if i, ok := named(res, c.n); ok {
				p.piece.Named(i)
			}
			p.requeue(c)
			break
		}
		// an answer costs no connection here, so the rest goes out at full width
		p.piece = halve.Piece{}
		s := c.segs[0]
		if v == oversized {
			err = tooLarge(c.size, 0, err)
		} else {
			err = relay.Refuse(reason, err)
		}
		p.topic.refusedAt.Store(time.Now().UnixNano())
		s.g.decide(s.to, err)
	case refused:
		err = relay.Refuse(reason, err)
		p.topic.refusedAt.Store(time.Now().UnixNano())
		for _, s := range c.segs {
			s.g.decide(s.to, err)
		}
	default:
		p.fail(c, err)
	}
	p.route()
}

// setTried is called with mu held.
func (p *partition) setTried(tried bool) {
	if p.tried.Load() == tried {
		return
	}
	p.tried.Store(tried)
	if tried {
		p.topic.untried.Add(-1)
	} else {
		p.topic.untried.Add(1)
	}
}

// named returns the place in the chunk of the first record that the broker names.
func named(res *produce.ResponsePartition, n int) (int, bool) {
	first := n
	for _, e := range res.RecordErrors {
		if i := int(e.BatchIndex); i >= 0 {
			first = min(first, i)
		}
	}
	return first, first < n
}

// lost gives a chunk its fate whose connection broke. When it may have reached the broker (sent) it
// is sent once more as it is, under the same sequence numbers, so that the broker appends it once.
// Without a producer id that would be a guess, and after a timeout it would be a second wait. In
// these cases the lane decides.
func (p *partition) lost(c *chunk, err error, sent, late bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.land(c)
	p.stale = true // the leader may have gone with its connection
	gone := false
	for _, s := range c.segs {
		gone = gone || s.g.over // its call has returned, so its records may not be read again
	}
	switch {
	case c.resent || late || p.resync || gone || p.sink.ctx.Err() != nil || (sent && c.id == noProducer):
		p.resync = true
		p.fail(c, fmt.Errorf("produce to %s/%d: %w", p.topic.name, p.index, err))
	default:
		c.resent = true
		for _, s := range c.segs {
			s.g.flying = true
		}
		p.again = append(p.again, c)
	}
	p.route()
}

// land takes a chunk out of the air.
func (p *partition) land(c *chunk) {
	if p.inflight--; p.inflight < 0 {
		panic(fmt.Sprintf("kafka: %s/%d: %d chunks in flight", p.topic.name, p.index, p.inflight))
	}
	for _, s := range c.segs {
		s.g.flying = false
	}
}

func (p *partition) movedAgain() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.moves > 1
}

// follow puts the chunk's groups back to be sent to the new leader, unless they were sent after one
// often enough.
func (p *partition) follow(c *chunk, err error) {
	for i := len(c.segs) - 1; i >= 0; i-- {
		s := c.segs[i]
		if s.g.moves++; s.g.moves > maxMoves {
			p.dequeue(s.g)
			s.g.decide(len(s.g.recs), err)
			continue
		}
		p.moves = max(p.moves, s.g.moves)
		p.putBack(s)
	}
}

func (p *partition) requeue(c *chunk) {
	for i := len(c.segs) - 1; i >= 0; i-- {
		p.putBack(c.segs[i])
	}
}

// putBack puts a group to the front of the queue as it was before the segment was taken.
func (p *partition) putBack(s segment) {
	if s.g.over {
		return
	}
	inQueue := s.g.next < len(s.g.recs)
	s.g.next = s.from
	if !inQueue {
		p.queue = append([]*group{s.g}, p.queue...)
	}
}

// fail gives up the chunk's groups, with all that is behind it in them.
func (p *partition) fail(c *chunk, err error) {
	for _, s := range c.segs {
		p.dequeue(s.g)
		s.g.decide(len(s.g.recs), err)
	}
}

// failAll gives up all that waits, and nothing that is in flight.
func (p *partition) failAll(err error) {
	for _, c := range p.again {
		for _, s := range c.segs {
			s.g.flying = false
		}
		p.resync = true
		p.fail(c, err)
	}
	p.again = nil
	var flying []*group
	for _, g := range p.queue {
		if g.flying { // the fate of its chunk decides about the rest of it
			flying = append(flying, g)
			continue
		}
		g.decide(len(g.recs), err)
	}
	p.queue = flying
	p.piece = halve.Piece{}
}

func (p *partition) dequeue(g *group) {
	for i := range p.queue {
		if p.queue[i] == g {
			p.queue = append(p.queue[:i:i], p.queue[i+1:]...)
			return
		}
	}
}

// abandon ends a group whose call returns early: what has no fate yet fails with err. After it
// returns the group's records are not read any more.
func (p *partition) abandon(g *group, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g.over {
		return
	}
	p.dequeue(g)
	g.decide(len(g.recs), err)
	p.again = p.dropGone(p.again)
	p.route()
}

// dropFenced gives up what waits and may not be sent any more.
func (p *partition) dropFenced() {
	p.again = p.dropGone(p.again)
	p.queue = slices.DeleteFunc(p.queue, func(g *group) bool {
		if g.flying || g.call.fence() {
			return false
		}
		g.decide(len(g.recs), relay.ErrFence)
		return true
	})
}

// dropBehind gives up what waits behind a refused record of its key, in this partition or another.
func (p *partition) dropBehind() {
	p.queue = slices.DeleteFunc(p.queue, func(g *group) bool {
		if g.flying || !g.call.refusals.Load() {
			return false
		}
		g.dropBehind()
		return g.over
	})
}

// dropBehind leaves what is in chunks, or has its fate, as it is.
func (g *group) dropBehind() {
	recs, pos := slices.Clone(g.recs[:g.next]), make([]int32, g.next)
	for i := range g.recs {
		at := int32(i)
		if g.pos != nil {
			at = g.pos[i]
		}
		switch {
		case i < g.next:
			pos[i] = at
		case g.call.behind(int(at)):
			g.call.fail(int(at), relay.ErrBehind)
		default:
			recs, pos = append(recs, g.recs[i]), append(pos, at)
		}
	}
	g.recs, g.pos = recs, pos
	g.decide(g.decided, nil) // it may be over
}

// dropGone gives up chunks with records of a call that has gone, or that may not be sent any more;
// they cannot be sent as they were.
func (p *partition) dropGone(chunks []*chunk) []*chunk {
	for i, c := range chunks {
		for _, s := range c.segs {
			if !s.g.over && s.g.call.fence() {
				continue
			}
			// What comes after it carries later sequence numbers, and would not be taken without
			// it.
			for _, c := range chunks[i:] {
				for _, s := range c.segs {
					s.g.flying = false
				}
				p.resync = true
				p.fail(c, errGone)
			}
			return chunks[:i]
		}
	}
	return chunks
}

// decide gives the records before to their fate.
func (g *group) decide(to int, err error) {
	if g.over {
		return
	}
	for ; g.decided < to; g.decided++ {
		if err != nil {
			i := g.decided
			if g.pos != nil {
				i = int(g.pos[i])
			}
			g.call.fail(i, err)
		}
	}
	if g.decided == len(g.recs) {
		g.over = true
		g.call.finish()
	}
}
