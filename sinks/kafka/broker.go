package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"

	"github.com/sagaz-relay/relay/relay"
)

const (
	// maxInFlight is the number of unanswered requests on a broker's connection: one that the
	// broker works on, and the next, which is there when that is done. Brokers take the requests of
	// one connection one by one, so more would only make them smaller. With 20 topics of 4
	// partitions 5 cost half as much CPU again per record as 2 (BenchmarkPublish). It must not
	// exceed 5, the number of batches per partition and producer that brokers remember.
	maxInFlight = 2
	// frameBytes is when a request is sent though other partitions wait: it bounds the buffer.
	frameBytes = 2 << 20
	// keepBuffer is the largest buffer that is kept for the next request.
	keepBuffer = 4 << 20
)

// broker sends what all its partitions have in one request, as soon as the connection has room.
// While requests are under way the partitions gather, so batches grow with the load and no linger
// time is needed.
type broker struct {
	sink *Sink
	id   int32

	mu    sync.Mutex
	addr  string
	ready []*partition
	wake  chan struct{} // capacity 1: several wake-ups are one

	// owned by the sender goroutine
	link        *link
	frame       frame
	batch       batchWriter
	correlation int32
}

func (b *broker) address() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addr
}

// add puts a partition on the list; the caller holds the partition's mutex and has marked it as
// listed.
func (b *broker) add(p *partition) {
	b.mu.Lock()
	b.ready = append(b.ready, p)
	b.mu.Unlock()
	relay.Wake(b.wake)
}

func (b *broker) takeReady() []*partition {
	b.mu.Lock()
	defer b.mu.Unlock()
	ready := b.ready
	b.ready = nil
	return ready
}

// run is the sender goroutine.
func (b *broker) run() {
	for {
		select {
		case <-b.wake:
			b.flush()
		case <-b.sink.ctx.Done():
			return // open calls see the same and return; the link closes by itself
		}
	}
}

// flush sends one request.
func (b *broker) flush() {
	l := b.link
	if l == nil || l.broken() {
		if l = b.connect(); l == nil {
			return
		}
		b.link = l
	}
	select { // until there is room, more gathers
	case l.slots <- struct{}{}:
	case <-l.down:
		relay.Wake(b.wake)
		return
	case <-b.sink.ctx.Done():
		return
	}
	ready := b.takeReady()
	slices.SortFunc(ready, func(x, y *partition) int {
		return cmp.Or(strings.Compare(x.topic.name, y.topic.name), cmp.Compare(x.index, y.index))
	})
	b.correlation++
	b.frame.begin(l.version, b.correlation, b.sink.cfg.ClientID, b.sink.brokerTimeout())
	var chunks []*chunk
	for i, p := range ready {
		if c := p.compose(&b.frame, &b.batch, b, l); c != nil {
			if chunks == nil {
				chunks = make([]*chunk, 0, len(ready)-i)
			}
			chunks = append(chunks, c)
		}
		if rest := ready[i+1:]; len(b.frame.buf) >= frameBytes && len(rest) > 0 {
			b.mu.Lock()
			b.ready = append(slices.Clone(rest), b.ready...)
			b.mu.Unlock()
			relay.Wake(b.wake)
			break
		}
	}
	if len(chunks) == 0 {
		<-l.slots
		return
	}
	l.send(b.frame.finish(), &request{id: b.correlation, chunks: chunks})
	if cap(b.frame.buf) > keepBuffer {
		b.frame.buf = nil
	}
}

// connect opens a connection for what is ready. Before a broker is dialed its partitions look up
// their leader: when a broker went away, they have often moved.
func (b *broker) connect() *link {
	var asked []*partition
	for _, p := range b.takeReady() {
		p.mu.Lock()
		if p.asked {
			asked = append(asked, p)
		} else {
			p.listed, p.stale = false, true
			p.route()
		}
		p.mu.Unlock()
	}
	if len(asked) == 0 {
		return nil
	}
	l, err := b.dial()
	if err != nil {
		b.sink.log.Debug("broker not reached", "broker", b.id, "error", err)
		for _, p := range asked {
			p.mu.Lock()
			p.listed, p.asked, p.stale = false, false, true
			p.failAll(err)
			p.mu.Unlock()
		}
		return nil
	}
	b.mu.Lock()
	b.ready = append(asked, b.ready...)
	b.mu.Unlock()
	b.sink.log.Debug("broker connected", "broker", b.id, "address", l.addr)
	return l
}

func (b *broker) dial() (*link, error) {
	addr := b.address()
	if addr == "" {
		return nil, fmt.Errorf("dial kafka broker %d: the cluster's metadata does not list it", b.id)
	}
	conn, versions, err := b.sink.dialer.dial(b.sink.ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("broker %d, under the address that the cluster advertises: %w", b.id, err)
	}
	l := &link{
		broker:  b,
		conn:    conn,
		addr:    addr,
		version: versions[protocol.Produce],
		slots:   make(chan struct{}, maxInFlight),
		down:    make(chan struct{}),
	}
	b.sink.goroutines.Add(1) // the sender counts as one, so the count is above zero
	go func() {
		defer b.sink.goroutines.Done()
		stop := context.AfterFunc(b.sink.ctx, func() { l.close(ErrClosed) })
		defer stop()
		l.read()
	}()
	return l, nil
}

// link is one connection to a broker with the requests on it. The sender writes, read reads;
// brokers answer in order.
type link struct {
	broker  *broker
	conn    *wire
	addr    string
	version int16
	slots   chan struct{} // one token per unanswered request
	down    chan struct{} // closed when the connection is no longer used

	mu      sync.Mutex
	err     error // why it was closed
	pending []*request
}

type request struct {
	id       int32
	chunks   []*chunk
	deadline time.Time
}

// fence reports whether all of it may still be sent. It is asked last. So a process which was
// frozen while it composed the request does not write it when it thaws.
func (r *request) fence() bool {
	for _, c := range r.chunks {
		for i := range c.segs {
			if !c.segs[i].g.call.fence() {
				return false
			}
		}
	}
	return true
}

func (l *link) broken() bool {
	select {
	case <-l.down:
		return true
	default:
		return false
	}
}

// close ends the connection; the first cause stays. read then gives fates to what is pending.
func (l *link) close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		close(l.down)
		_ = l.conn.Close()
	}
}

// send writes a request. The caller has taken a slot, and may reuse buf afterwards.
func (l *link) send(buf []byte, req *request) {
	req.deadline = time.Now().Add(l.broker.sink.cfg.RequestTimeout)
	l.mu.Lock()
	if err := l.err; err != nil {
		l.mu.Unlock()
		for _, c := range req.chunks {
			c.p.lost(c, err, false, false)
		}
		return
	}
	if l.pending = append(l.pending, req); len(l.pending) == 1 {
		_ = l.conn.SetReadDeadline(req.deadline)
	}
	_ = l.conn.SetWriteDeadline(req.deadline)
	l.mu.Unlock()
	if !req.fence() {
		l.close(relay.ErrFence) // read gives it its fate; the broker has seen nothing of it
		return
	}
	if _, err := l.conn.Write(buf); err != nil {
		l.close(fmt.Errorf("write to kafka at %s: %w", l.addr, err))
	}
}

// read gives fates by the answers until the connection ends, and then to what is left without one.
func (l *link) read() {
	err := l.answers()
	l.close(fmt.Errorf("read from kafka at %s: %w", l.addr, err))
	l.mu.Lock()
	pending, cause := l.pending, l.err
	l.pending = nil
	l.mu.Unlock()
	if len(pending) > 0 {
		l.broker.sink.log.Debug("broker connection lost", "broker", l.broker.id, "address", l.addr, "requests", len(pending), "error", cause)
		cause = hint(cause, &l.broker.sink.cfg, asking)
	}
	late := errors.Is(cause, os.ErrDeadlineExceeded)
	for _, req := range pending {
		for _, c := range req.chunks {
			c.p.lost(c, cause, true, late)
		}
	}
	relay.Wake(l.broker.wake)
}

func (l *link) answers() error {
	for {
		id, msg, err := l.conn.response(protocol.Produce, l.version)
		if err != nil {
			return err
		}
		l.mu.Lock()
		if len(l.pending) == 0 || l.pending[0].id != id {
			l.mu.Unlock()
			return fmt.Errorf("answer to request %d, which is not the oldest open one", id)
		}
		req := l.pending[0]
		if l.pending = l.pending[1:]; len(l.pending) > 0 {
			_ = l.conn.SetReadDeadline(l.pending[0].deadline)
		} else {
			_ = l.conn.SetReadDeadline(time.Time{})
		}
		l.mu.Unlock()
		l.match(req, msg.(*produce.Response))
		<-l.slots
	}
}

// match gives each chunk of the request its part of the answer; brokers may answer in another
// order.
func (l *link) match(req *request, res *produce.Response) {
	next := 0
	find := func(topic string, index int32) *chunk {
		for range req.chunks {
			i := next % len(req.chunks)
			next++
			if c := req.chunks[i]; c != nil && c.p.index == index && c.p.topic.name == topic {
				req.chunks[i] = nil
				return c
			}
		}
		return nil
	}
	for i := range res.Topics {
		t := &res.Topics[i]
		for j := range t.Partitions {
			if c := find(t.Topic, t.Partitions[j].Partition); c != nil {
				c.p.answered(c, l.broker, &t.Partitions[j])
			}
		}
	}
	for _, c := range req.chunks {
		if c != nil {
			c.p.lost(c, fmt.Errorf("kafka at %s answered without naming the partition", l.addr), true, true)
		}
	}
}
