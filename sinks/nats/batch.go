package nats

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sagaz-relay/relay/relay"
)

const (
	// maxFlyingBytes is how many bytes of bodies a batch may have under way.
	maxFlyingBytes = 8 << 20
	// lookupTimeout bounds the question which stream has a subject.
	lookupTimeout = 2 * time.Second
)

var (
	// errNoResponders is a server's answer to a message that nobody listens to.
	errNoResponders = errors.New("nobody listens on the subject")
	// errHeld is the error of a record that was not sent because one of its key before it is to be
	// offered again first.
	errHeld = errors.New("not sent: a record of the same key before it was not acknowledged")
)

// batch is one Publish on one link. It is owned by the goroutine that publishes; others only put
// results into the channel and ask the fence.
type batch struct {
	sink    *Sink
	link    *link
	recs    []*relay.Record
	fence   func() bool
	results chan result // room for one of each record

	fates   []error
	settled []bool
	behind  []int // the next record of the same key; 0: none
	ready   []int // what may be sent, in order
	flying  []sent
	bytes   int  // of the bodies of what is flying
	count   int  // how many are flying
	left    bool // given up with some flying, which may be in the client's buffer still
	answers map[string]error
}

// sent is a record that was sent, in the order of sending.
type sent struct {
	i     int
	token uint64
	at    time.Time
}

// result is the answer to one record.
type result struct {
	i   int
	err error
}

func newBatch(s *Sink, l *link, recs []*relay.Record, fence func() bool) *batch {
	b := &batch{
		sink: s, link: l, recs: recs, fence: fence, results: make(chan result, len(recs)),
		fates: make([]error, len(recs)), settled: make([]bool, len(recs)), behind: make([]int, len(recs)),
		answers: make(map[string]error),
	}
	last := make(map[string]int, len(recs))
	for i, rec := range recs {
		if before, ok := last[rec.Key]; ok {
			b.behind[before] = i
		} else {
			b.ready = append(b.ready, i)
		}
		last[rec.Key] = i
	}
	return b
}

// run sends what may be sent and takes the answers, until each record has its fate.
func (b *batch) run(ctx context.Context) {
	timer := time.NewTimer(b.sink.cfg.AckTimeout)
	defer timer.Stop()
	for {
		b.send()
		if b.count == 0 {
			return
		}
		timer.Reset(time.Until(b.flying[0].at.Add(b.sink.cfg.AckTimeout)))
		select {
		case r := <-b.results:
			b.take(ctx, r)
		case <-timer.C:
			b.overdue(ctx)
		case <-b.link.dead:
			b.drain(ctx)
			err := b.link.reason()
			if !b.fence() {
				err = relay.ErrFence
			}
			b.giveUp(err)
			return
		case <-ctx.Done():
			b.drain(ctx)
			b.giveUp(fmt.Errorf("not acknowledged: %w", context.Cause(ctx)))
			return
		}
		b.drain(ctx)
	}
}

// send sends what is ready, as far as the window has room.
func (b *batch) send() {
	for len(b.ready) > 0 && b.count < b.sink.cfg.Window && b.bytes < maxFlyingBytes {
		i := b.ready[0]
		b.ready = b.ready[1:]
		rec := b.recs[i]
		msg, err := b.sink.message(rec)
		if err == nil {
			err = fits(msg, b.link.nc.MaxPayload())
		}
		if err == nil && !b.fence() {
			err = relay.ErrFence
		}
		if err != nil {
			b.settle(i, err)
			continue
		}
		at := time.Now()
		token, err := b.link.send(flight{b, i, rec.Topic}, msg)
		if err != nil {
			b.settle(i, err)
			continue
		}
		b.flying = append(b.flying, sent{i, token, at})
		b.count++
		b.bytes += len(rec.Value)
	}
}

// fits returns the refusal of a message that the server would close the connection for.
func fits(msg *nats.Msg, limit int64) error {
	headers := int64(len("NATS/1.0\r\n\r\n"))
	for name, values := range msg.Header {
		headers += int64(len(name) + len(": \r\n") + len(values[0]))
	}
	if size := headers + int64(len(msg.Data)); limit > 0 && size > limit {
		return &relay.RefusedError{Reason: relay.ReasonTooLarge, Size: size, Limit: limit, Err: errors.New("above the server's max_payload")}
	}
	return nil
}

// drain takes the answers that are there already.
func (b *batch) drain(ctx context.Context) {
	for {
		select {
		case r := <-b.results:
			b.take(ctx, r)
		default:
			return
		}
	}
}

// take takes the answer to a record that is flying.
func (b *batch) take(ctx context.Context, r result) {
	if b.settled[r.i] { // it came right after it was given up
		return
	}
	b.landed(r.i)
	if errors.Is(r.err, errNoResponders) {
		r.err = b.unanswered(ctx, b.recs[r.i].Topic, errNoResponders)
	}
	b.settle(r.i, b.sink.cfg.fate(b.recs[r.i], r.err))
}

// landed takes a record off the list of those that are flying.
func (b *batch) landed(i int) {
	b.count--
	b.bytes -= len(b.recs[i].Value)
	b.settled[i] = true
	for len(b.flying) > 0 && b.settled[b.flying[0].i] {
		b.flying = b.flying[1:]
	}
}

// overdue gives up what was not acknowledged in time.
func (b *batch) overdue(ctx context.Context) {
	late := time.Now().Add(-b.sink.cfg.AckTimeout)
	for len(b.flying) > 0 && !b.flying[0].at.After(late) {
		f := b.flying[0]
		b.link.forget(f.token)
		select {
		case r := <-b.results: // of any record: it came just now
			b.take(ctx, r)
			continue
		default:
		}
		b.landed(f.i)
		b.settle(f.i, b.unanswered(ctx, b.recs[f.i].Topic, fmt.Errorf("no acknowledgement within %s", b.sink.cfg.AckTimeout)))
	}
}

// unanswered finds out why no stream has answered: a refusal if none has the subject, else err,
// which is transient: one has it, and has no leader at the moment, or nothing can be asked.
func (b *batch) unanswered(ctx context.Context, subject string, err error) error {
	if known, ok := b.answers[subject]; ok {
		if known == nil {
			return err
		}
		return known
	}
	var refusal error
	if b.unheard(ctx, subject, err) {
		refusal = relay.Refuse(relay.ReasonUnroutable, fmt.Errorf("no stream has subject %.100q: add it to a stream's subjects", subject))
	}
	b.answers[subject] = refusal
	if refusal != nil {
		return refusal
	}
	return err
}

// unheard asks JetStream whether no stream has a subject. Who may not ask has to take the server's
// word that nobody listens.
func (b *batch) unheard(ctx context.Context, subject string, err error) bool {
	if !b.link.secretive.Load() {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		_, lookup := b.link.js.StreamNameBySubject(ctx, subject)
		if lookup == nil || noStream(lookup) {
			return lookup != nil
		}
	}
	return b.link.secretive.Load() && errors.Is(err, errNoResponders)
}

// settle gives a record its fate, and those behind it of its key theirs if it is not acknowledged.
func (b *batch) settle(i int, err error) {
	b.settled[i], b.fates[i] = true, err
	next := b.behind[i]
	if err == nil {
		if next != 0 {
			b.ready = append(b.ready, next)
		}
		return
	}
	fate := errHeld
	if _, refused := relay.Refused(err); refused {
		fate = relay.ErrBehind
	} else if errors.Is(err, relay.ErrFence) {
		fate = relay.ErrFence
	}
	for ; next != 0; next = b.behind[next] {
		b.settled[next], b.fates[next] = true, fate
	}
}

// giveUp ends the batch: what has no fate yet gets err.
func (b *batch) giveUp(err error) {
	b.left = b.count > 0
	tokens := make([]uint64, 0, len(b.flying))
	for _, f := range b.flying {
		tokens = append(tokens, f.token)
	}
	b.link.forget(tokens...)
	for i := range b.recs {
		if !b.settled[i] {
			b.settled[i], b.fates[i] = true, err
		}
	}
	b.count = 0
}

// result is what Publish returns.
func (b *batch) result() error {
	for _, err := range b.fates {
		if err != nil {
			return &relay.BatchError{Errs: b.fates}
		}
	}
	return nil
}
