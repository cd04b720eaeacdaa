package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/halve"
)

// windowBytes is how many bytes of bodies a channel may have under way. The broker sends a returned
// message back whole, so this bounds memory when nothing is routable. One record may be larger.
const windowBytes = 8 << 20

// batch is one call of Publish. It is used by the goroutine of that call only.
type batch struct {
	sink  *Sink
	link  *link
	recs  []*relay.Record
	fence func() bool // whether they may still be sent
	// fates has an entry per record: pending, nil (acknowledged), or what happened.
	fates  []error
	failed bool // some fate is an error
	// stopped are the keys with a record that failed or was refused: what comes later of theirs is
	// not sent.
	stopped map[string]stop

	piece   halve.Piece // how much may be under way at once
	search  search
	ownLink *link                // the batch's own, while it searches
	current atomic.Pointer[link] // link, for the goroutine that has to end it

	timer *time.Timer // reused for each wait
}

// stop is from where on a key is not sent, and what becomes of its records there.
type stop struct {
	behind int // index in the batch
	err    error
}

// errPending is the fate of a record that is not known yet.
var errPending = errors.New("pending")

// sent is a message under way.
type sent struct {
	at       int // index in the batch
	size     int
	route    *route
	confirm  *amqp.DeferredConfirmation
	returned string // the broker's text when it came back
}

func newBatch(ctx context.Context, s *Sink, l *link, recs []*relay.Record) *batch {
	b := &batch{sink: s, recs: recs, fence: relay.Fence(ctx), fates: make([]error, len(recs))}
	b.setLink(l)
	if crowded := s.culprits.crowded.Load(); crowded > 0 && s.routes.now()-crowded < int64(lately) {
		b.piece = halve.Of(1)
	}
	for i := range b.fates {
		b.fates[i] = errPending
	}
	return b
}

func (b *batch) setLink(l *link) {
	b.link = l
	b.current.Store(l)
}

// run publishes all records, and gives each its fate.
func (b *batch) run(ctx context.Context) {
	defer b.endSearch()
	for {
		c, err := b.link.take(ctx)
		if err != nil {
			b.giveUp(err)
			return
		}
		a := attempt{batch: b, c: c, sent: c.sent[:0]}
		more, err := a.run(ctx)
		switch {
		case err == nil:
			b.piece.Taken(len(a.sent))
			a.leave()
			b.link.put(c)
		case c.ch.IsClosed(), b.link.gone():
			// By the broker, or with the connection: amqp091 reports the connection's end before it
			// closes its channels.
			err = b.closed(ctx, &a, err)
			more = err == nil
		case a.head == len(a.sent):
			a.leave()
			b.link.put(c) // all confirms are there
		default:
			b.link.discard(c)
		}
		if ctx.Err() != nil && err == nil && more {
			err = context.Cause(ctx)
		}
		if err != nil {
			b.giveUp(err)
			return
		}
		if !more {
			return
		}
	}
}

// leave gives the channel its memory back. After put the channel is another lane's.
func (a *attempt) leave() {
	clear(a.sent)
	a.c.sent = a.sent[:0]
}

// exception returns why the broker closed the channel, nil when it did not. amqp091 marks a channel
// closed some time before it sends the reason.
func (b *batch) exception(ctx context.Context, c *channel) *amqp.Error {
	select {
	case err := <-c.closes:
		return err
	case <-ctx.Done():
		return nil
	}
}

// refuseThose refuses the pending records that are to blame and reports whether there were any.
func (b *batch) refuseThose(refuse func(*relay.Record) error) (found bool) {
	for i, fate := range b.fates {
		if fate != errPending {
			continue
		}
		if err := refuse(b.recs[i]); err != nil {
			b.refuse(i, err)
			found = true
		}
	}
	return found
}

// giveUp gives every record without a fate this transient error.
func (b *batch) giveUp(err error) {
	for i, fate := range b.fates {
		if fate == errPending {
			b.fates[i], b.failed = err, true
		}
	}
}

// fail gives a record a transient error, and refuse one that is its own fault. Both stop the rest
// of its key.
func (b *batch) fail(i int, err error) {
	b.fates[i], b.failed = err, true
	b.stop(i, err)
}

func (b *batch) refuse(i int, err error) {
	b.fates[i], b.failed = err, true
	b.stop(i, relay.ErrBehind)
}

func (b *batch) stop(i int, err error) {
	if b.stopped == nil {
		b.stopped = map[string]stop{}
	}
	if h, ok := b.stopped[b.recs[i].Key]; !ok || i < h.behind {
		b.stopped[b.recs[i].Key] = stop{i, err}
	}
}

// isStopped gives a record behind another of its key the fate that follows from that one, and
// reports whether it did.
func (b *batch) isStopped(i int) bool {
	if b.stopped == nil {
		return false
	}
	h, ok := b.stopped[b.recs[i].Key]
	if !ok || i < h.behind {
		return false
	}
	b.fates[i] = h.err
	return true
}

// result makes one error of the fates, nil when all records are acknowledged.
//
// Of each key it leaves acknowledged ones at the front and then either transient errors or one
// refusal with ErrBehind after it. What the broker took behind one that failed or was refused
// counts as failed too. It is offered again behind that one, so that what consumers see last is in
// order.
func (b *batch) result() error {
	if !b.failed {
		return nil
	}
	first := map[string]error{}
	for i, fate := range b.fates {
		key := b.recs[i].Key
		if before := first[key]; before != nil {
			b.fates[i] = before
		} else if _, refused := relay.Refused(fate); refused {
			first[key] = relay.ErrBehind
		} else if fate != nil {
			first[key] = fate
		}
	}
	return &relay.BatchError{Errs: b.fates}
}

// attempt sends a batch's pending records on one channel.
type attempt struct {
	*batch
	c     *channel
	sent  []sent // all that was sent, in order
	head  int    // sent[:head] is done
	bytes int    // under way
	full  bool   // the piece is sent, and something is left
	now   int64  // as routes has it, about

	routingKey string // whose route was last looked up
	route      *route
}

// run sends the pending records and waits for their confirms. An error leaves records pending, and
// the channel with missing confirms, or closed.
//
// A record whose route is not known to be good may come back or be nacked when what follows is long
// in a queue. So the next of its key is sent only when it is confirmed, in another pass; other keys
// do not wait. While the batch looks for a record that closes channels an attempt is one piece, and
// more is whether another follows.
func (a *attempt) run(ctx context.Context) (more bool, err error) {
	for {
		waiting, err := a.pass(ctx)
		if err != nil {
			return false, err
		}
		for a.head < len(a.sent) {
			if err := a.await(ctx); err != nil {
				return false, err
			}
		}
		if !waiting || a.full {
			more = waiting
			break
		}
	}
	if a.c.ch.IsClosed() {
		// All fates are known, but a channel that is gone must not go back to the pool.
		return false, errors.New("channel closed")
	}
	return more, nil
}

// pass sends what is pending and need not wait for another record of its key, and reports whether
// something has to.
func (a *attempt) pass(ctx context.Context) (waiting bool, err error) {
	a.now = a.sink.routes.now()
	var unsure map[string]struct{} // keys with a record under way whose fate must be known first
	most, alone := a.piece.Most(), a.sink.culprits.some.Load()
	for i, rec := range a.recs {
		if a.fates[i] != errPending || a.isStopped(i) {
			continue
		}
		if most > 0 && len(a.sent) >= most {
			a.full = true
			return true, nil
		}
		if unsure != nil {
			if _, wait := unsure[rec.Key]; wait {
				waiting = true
				continue
			}
		}
		if err := a.check(rec); err != nil {
			a.refuse(i, err)
			continue
		}
		if alone && a.sink.culprits.refusal(rec.EventID) != nil {
			// It would take the others with it again.
			if len(a.sent) > 0 {
				a.full = true
				return true, nil
			}
			most = 1
		}
		if err := a.makeRoom(ctx, len(rec.Value)); err != nil {
			return false, err
		}
		if a.isStopped(i) { // a nack or a return may have come while we made room
			continue
		}
		if err := a.send(i, rec); err != nil {
			a.collect()
			return false, err
		}
		if !a.sink.routes.sure(a.route, a.now) {
			if unsure == nil {
				unsure = map[string]struct{}{}
			}
			unsure[rec.Key] = struct{}{}
		}
	}
	return waiting, nil
}

// check refuses a record that would break the channel or the connection.
func (a *attempt) check(rec *relay.Record) error {
	if len(rec.RoutingKey) > maxShortString {
		return relay.Refuse(relay.ReasonEncode, fmt.Errorf("routing key has %d bytes, AMQP allows 255: shorten event_type, or change RELAY_ROUTING_KEY or the routing_key of its rule", len(rec.RoutingKey)))
	}
	if len(rec.ContentType) > maxShortString {
		return relay.Refuse(relay.ReasonEncode, fmt.Errorf("content type has %d bytes, AMQP allows 255", len(rec.ContentType)))
	}
	header := headerFrameFixed + len(rec.ContentType) + len(rec.EventType)
	if len(a.sink.properties) > 0 {
		var msg amqp.Publishing
		if err := setProperties(&msg, rec, a.sink.properties); err != nil {
			return err
		}
		header += propertiesSize(&msg)
	}
	for i := range rec.Headers {
		h := &rec.Headers[i]
		name, sent := headerName(rec, h.Key)
		if !sent {
			continue
		}
		if len(name) > maxShortString {
			return relay.Refuse(relay.ReasonEncode, fmt.Errorf("the name of header %d has %d bytes, AMQP allows 255", i, len(name)))
		}
		header += headerFixed + len(name) + len(h.Value)
		if isRoutes(name) {
			list, err := moreRoutes(name, h.Value)
			if err != nil {
				return err
			}
			header += (headerFixed - 1) * (len(list) + 1)
		}
	}
	if limit := a.link.conn.Config.FrameSize; limit > 0 && header > limit {
		return refuseSize(int64(header), int64(limit), "headers above the connection's frame_max: AMQP sends all of them in one frame")
	}
	if limit := a.link.limit.Load(); limit > 0 && int64(len(rec.Value)) > limit {
		return refuseSize(int64(len(rec.Value)), limit, "above the broker's max_message_size")
	}
	return nil
}

const (
	// headerFrameFixed is the size of a content header frame without our strings: frame header and
	// end (8), class, weight, body size and flags (14), the headers' length (4), three string
	// lengths, delivery mode (1), message id (36) and timestamp (8).
	headerFrameFixed = 8 + 14 + 4 + 3 + 1 + 36 + 8
	// headerFixed is the length of a name, the type and the length of a value.
	headerFixed = 1 + 1 + 4
)

// send hands one message to amqp091.
func (a *attempt) send(i int, rec *relay.Record) error {
	clear(a.c.headers)
	for j := range rec.Headers {
		switch name, sent := headerName(rec, rec.Headers[j].Key); {
		case !sent:
		case isRoutes(name):
			list, err := moreRoutes(name, rec.Headers[j].Value)
			if err != nil {
				return err // check has refused it before
			}
			a.c.headers[name] = list
		default:
			a.c.headers[name] = rec.Headers[j].Value
		}
	}
	msg := amqp.Publishing{
		Headers:      a.c.headers,
		ContentType:  rec.ContentType,
		DeliveryMode: amqp.Persistent,
		MessageId:    rec.EventID.String(),
		Body:         rec.Value,
	}
	if len(rec.EventType) <= maxShortString { // it is in the headers too
		msg.Type = rec.EventType
	}
	if err := setProperties(&msg, rec, a.sink.properties); err != nil {
		return err // check has refused it before
	}
	if rec.Timestamp.Unix() > 0 { // AMQP's timestamp has no sign
		msg.Timestamp = rec.Timestamp
	}
	confirm, err := a.link.publish(a.c.ch, &a.fence, a.sink.cfg.Exchange, rec.RoutingKey, msg)
	if err != nil {
		return a.unwritten(err)
	}
	if a.route == nil || rec.RoutingKey != a.routingKey {
		a.routingKey, a.route = rec.RoutingKey, a.sink.routes.of(rec.RoutingKey)
	}
	a.sent = append(a.sent, sent{at: i, size: len(rec.Value), route: a.route, confirm: confirm})
	a.bytes += len(rec.Value)
	return nil
}

// flush has all that was sent written to the network. Nobody may wait for the broker before that.
func (a *attempt) flush() error {
	if err := a.link.raw.flush(); err != nil {
		a.collect()
		return a.unwritten(err)
	}
	return nil
}

// unwritten ends the connection after a write that failed: part of a frame may be on its way, or in
// amqp091's buffer. amqp091 shuts down too, but from another goroutine. It returns why.
func (a *attempt) unwritten(err error) error {
	switch {
	case errors.Is(err, relay.ErrFence):
		a.link.kill("a slot is not ours any more, and its messages were about to be written")
		if !a.fence() {
			return err
		}
	case !errors.Is(err, amqp.ErrClosed):
		a.link.kill(fmt.Sprintf("write: %v", err))
	}
	// The broker's reason is clearer than that the connection is closed.
	return a.link.lostOr(fmt.Errorf("connection lost: %w", reason(err)))
}

// makeRoom waits until a message of this size fits into the window and the connection is not
// blocked. It also takes in what is confirmed already, so that a nack is known before more of its
// key is sent.
func (a *attempt) makeRoom(ctx context.Context, size int) error {
	for {
		for a.head < len(a.sent) && done(a.sent[a.head].confirm) {
			if err := a.await(ctx); err != nil {
				return err
			}
		}
		switch under := len(a.sent) - a.head; {
		case under > 0 && (under >= a.sink.cfg.Window || a.bytes+size > windowBytes):
			if err := a.await(ctx); err != nil {
				return err
			}
		case a.link.isBlocked.Load():
			if err := a.awaitUnblocked(ctx); err != nil {
				return err
			}
		case a.c.ch.IsClosed():
			a.collect()
			return errors.New("channel closed")
		default:
			if err := ctx.Err(); err != nil {
				a.collect()
				return context.Cause(ctx)
			}
			if !a.fence() {
				a.collect()
				return relay.ErrFence
			}
			return nil
		}
	}
}

func done(c *amqp.DeferredConfirmation) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

// await waits for the oldest message under way and gives its record its fate.
func (a *attempt) await(ctx context.Context) error {
	s := &a.sent[a.head]
	if !done(s.confirm) {
		if err := a.flush(); err != nil {
			return err
		}
		timeout := a.sink.cfg.ConfirmTimeout
		a.arm(timeout)
		select {
		case <-s.confirm.Done():
		case <-ctx.Done():
			a.collect()
			return context.Cause(ctx)
		case <-a.timer.C:
			a.collect()
			err := fmt.Errorf("no confirm for %s (%s)", timeout, a.sink.cfg.Said("RELAY_RABBITMQ_CONFIRM_TIMEOUT"))
			if reason, _ := a.link.blockedNow(); reason != "" {
				err = fmt.Errorf("connection blocked by the broker: %s: %w", reason, err)
			}
			return err
		}
	}
	if !a.resolve(a.head) {
		a.collect()
		return errors.New("channel closed")
	}
	a.bytes -= s.size
	a.head++
	return nil
}

// awaitUnblocked waits until the connection may be used again. With messages under way it waits as
// long as their confirms may take, since to give up means to drop them.
func (a *attempt) awaitUnblocked(ctx context.Context) error {
	reason, unblocked := a.link.blockedNow()
	if reason == "" {
		return nil
	}
	if err := a.flush(); err != nil {
		return err
	}
	patience := blockedPatience
	if a.head < len(a.sent) {
		patience = a.sink.cfg.ConfirmTimeout
	}
	a.arm(patience)
	var err error
	select {
	case <-unblocked:
		return nil
	case <-a.timer.C:
		err = fmt.Errorf("connection blocked by the broker: %s", reason)
	case <-a.link.dead:
		err = a.link.cause()
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	a.collect()
	return err
}

func (a *attempt) arm(d time.Duration) {
	if a.timer == nil {
		a.timer = time.NewTimer(d)
		return
	}
	a.timer.Reset(d)
}

// resolve gives the record of a confirmed message its fate. It returns false, and leaves the record
// pending, when the confirmation only means that the channel was closed.
func (a *attempt) resolve(n int) bool {
	a.readReturns()
	s := &a.sent[n]
	switch {
	case s.confirm.Acked() && s.returned == "":
		a.fates[s.at] = nil
		s.route.took(a.now)
		a.search.taken++
		a.sink.nacks.confirmed(a.recs[s.at].EventID)
		a.sink.culprits.confirmed(a.recs[s.at].EventID)
	case s.confirm.Acked():
		s.route.returned.Store(a.sink.routes.now())
		a.refuse(s.at, unroutable(a.sink.cfg.Exchange, a.recs[s.at].RoutingKey, s.returned))
	case a.c.ch.IsClosed():
		return false
	default:
		// A queue at its limit with overflow reject-publish, a quorum queue without a majority, or
		// a queue process that died.
		now := a.sink.routes.now()
		a.c.nacked = true
		a.sink.routes.nacked.Store(now)
		err := fmt.Errorf("nacked by the broker: a queue bound for routing key %q is full (overflow reject-publish) or not available", a.recs[s.at].RoutingKey)
		if enough := a.sink.nacks.add(a.recs[s.at].EventID); enough || now-s.route.full.Load() < int64(lately) {
			s.route.full.Store(now)
			a.refuse(s.at, relay.Refuse(relay.ReasonNacked, err))
		} else {
			a.fail(s.at, err)
		}
	}
	return true
}

// collect gives a fate to what is confirmed already, in whatever order, before the rest is given
// up.
func (a *attempt) collect() {
	for n := a.head; n < len(a.sent); n++ {
		if s := &a.sent[n]; a.fates[s.at] == errPending && done(s.confirm) {
			a.resolve(n)
		}
	}
	for a.head < len(a.sent) && a.fates[a.sent[a.head].at] != errPending {
		a.bytes -= a.sent[a.head].size
		a.head++
	}
}

// readReturns notes the messages that came back.
func (a *attempt) readReturns() {
	for {
		select {
		case r, ok := <-a.c.returns:
			if !ok {
				return
			}
			a.noteReturn(r)
		default:
			return
		}
	}
}

// noteReturn finds the message that came back: by event_id, and the oldest where a batch has one
// twice.
func (a *attempt) noteReturn(r amqp.Return) {
	id, err := relay.ParseUUID(r.MessageId)
	if err == nil {
		for n := a.head; n < len(a.sent); n++ {
			s := &a.sent[n]
			if rec := a.recs[s.at]; s.returned == "" && a.fates[s.at] == errPending && rec.EventID == id && rec.RoutingKey == r.RoutingKey {
				s.returned = r.ReplyText
				if s.returned == "" {
					s.returned = "returned"
				}
				return
			}
		}
	}
	a.sink.log.Error("the broker returned a message that is not under way", "event_id", r.MessageId, "reason", r.ReplyText)
}
