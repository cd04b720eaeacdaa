package rabbitmq

import (
	"context"
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/relay"
)

// A message for which the broker closes the channel or the connection takes all with it that is
// under way there. The search for it happens within one Publish: what is pending goes out in pieces
// (package halve) until the culprit is alone, and is refused.
//
// An exception of the channel comes from what is under way on that channel, so the search begins at
// once. One of the connection may come from another lane. So the batch goes to a connection of its
// own, where only its own messages can end it, and no other lane suffers from the search. One batch
// at a time does that.
//
// The control finds whether it is the records at all (blame.go). Where it has no answer, a record
// that is alone is refused when the broker has taken another one since, or when it has ended the
// channel often enough.
//
// Crashes: nothing of this is durable. A restart begins the search again, and what was in front of
// the culprit may arrive twice, in order.
const (
	// A piece that is refused costs an open and a close of a channel, which is about a millisecond;
	// a connection costs ten times that, and a broker counts them.
	maxChannels    = 128
	maxConnections = 24
	// loneTimes is how often a record must cause alone what the broker itself may have caused.
	loneTimes = 3
	// maxSuspects of a batch are counted: enough for all that a broker takes little by little.
	maxSuspects = 256
)

// search is what a batch has found out so far.
type search struct {
	finding  finding
	closings int
	own      bool // link is the batch's own connection
	taken    int  // messages confirmed since the first exception
	lone     int  // record that was alone last, and
	times    int  // how often in a row
	unproven map[int]unproven
}

// unproven is a record that was alone, while nothing shows that others are taken.
type unproven struct {
	refusal error
	speaks  bool // the code is about a message
}

// closed handles the end of the channel under an attempt. It returns why the rest is given up, nil
// when a further attempt follows.
func (b *batch) closed(ctx context.Context, a *attempt, err error) error {
	exception := b.exception(ctx, a.c)
	if ctx.Err() != nil || errors.Is(err, relay.ErrFence) {
		return err
	}
	connection := b.link.conn.IsClosed()
	err = b.link.lost(exception)
	refuse, limit := b.sink.cfg.blame(exception)
	if limit > 0 {
		b.link.limit.Store(limit)
	}
	if refuse != nil && b.refuseThose(refuse) {
		return nil // each further round has at least one record less
	}
	fault := faultOf(exception)
	suspects := a.suspects()
	if exception != nil && exception.Code == amqp.NotFound {
		b.link.undeclared()
		b.sink.routes.forget()
	}
	if fault == faultNobodys || len(suspects) == 0 {
		return err
	}
	// With an unclear end the lane offers the batch again first, as after any lost connection.
	if fault == faultUnclear && !b.search.own && b.search.closings == 0 && !b.sameAgain(suspects) {
		return err
	}
	if connection && !b.search.own {
		return b.moveToOwnLink(ctx, err)
	}
	if b.search.closings++; b.search.closings == 1 {
		b.search.taken = 0
	}
	if connection {
		if err := b.renewOwnLink(ctx); err != nil {
			return err
		}
	}
	if exception != nil && exception.Code == amqp.NotFound {
		if err := b.link.ready(ctx); err != nil {
			return err
		}
	}
	if b.search.finding == notAsked {
		b.search.finding = b.control(suspects)
		b.sink.log.Debug("looking for the record that the broker closes the channel for", "records", len(suspects), "connection", connection, "error", err)
		if !b.link.alive() { // the control may end it, too
			if err := b.renewLink(ctx); err != nil {
				return err
			}
		}
	}
	if b.search.finding == exchangeIll {
		return err
	}
	if b.piece.Refused(len(suspects)) {
		b.alone(suspects[0], fault, exception, connection, err)
	}
	if b.search.closings >= maxChannels || b.search.own && b.search.closings >= maxConnections {
		b.crowded()
		return fmt.Errorf("%w, last: %w", errNoRoom, err)
	}
	return nil
}

// sameAgain counts an end that may be the broker's own against the suspects, and reports whether
// one of them was there often enough.
func (b *batch) sameAgain(suspects []int) (enough bool) {
	for _, i := range suspects[:min(len(suspects), maxSuspects)] {
		enough = b.sink.culprits.add(b.recs[i].EventID) || enough
	}
	return enough
}

// alone gives a record its fate that ended the channel with nothing else under way.
func (b *batch) alone(i int, fault fault, exception *amqp.Error, connection bool, err error) {
	if b.search.lone != i {
		b.search.lone, b.search.times = i, 0
	}
	b.search.times++
	if fault == faultUnclear && b.search.times < loneTimes {
		b.search.finding = notAsked // it may be the broker: once more, and ask again
		return
	}
	refusal := b.sink.cfg.closedBy(exception, connection)
	if b.search.finding == exchangeWell || b.search.taken > 0 {
		b.sink.culprits.refused(b.recs[i].EventID, refusal)
		b.refuse(i, refusal)
		return
	}
	if b.search.unproven == nil {
		b.search.unproven = map[int]unproven{}
	}
	b.search.unproven[i] = unproven{refusal, fault == faultMessage && exception.Code != amqp.AccessRefused}
	b.fail(i, err)
}

// conclude refuses what was alone when others were taken, or when that has happened often enough
// with a code that is about a message.
func (b *batch) conclude() {
	for i, u := range b.search.unproven {
		id := b.recs[i].EventID
		if b.search.taken > 0 || u.speaks && b.sink.culprits.add(id) {
			b.sink.culprits.refused(id, u.refusal)
			b.refuse(i, u.refusal)
		}
	}
}

// crowded refuses those of the rest that were refused before, without another try.
func (b *batch) crowded() {
	b.sink.culprits.crowded.Store(b.sink.routes.now())
	for i, fate := range b.fates {
		if fate != errPending || b.isStopped(i) {
			continue
		}
		if refusal := b.sink.culprits.refusal(b.recs[i].EventID); refusal != nil {
			b.refuse(i, refusal)
		}
	}
}

// suspects are the records that may have ended the channel: all under way on it. What was confirmed
// before is none of them.
func (a *attempt) suspects() (at []int) {
	for n := a.head; n < len(a.sent); n++ {
		if i := a.sent[n].at; a.fates[i] == errPending {
			at = append(at, i)
		}
	}
	return at
}

// moveToOwnLink waits for its turn and gives the batch a connection of its own.
func (b *batch) moveToOwnLink(ctx context.Context, why error) error {
	if err := b.sink.searchTurn.Take(ctx); err != nil {
		return err
	}
	b.search.own = true
	b.sink.log.Debug("the batch goes to a connection of its own, to see whether it has the record for which the broker closes connections", "records", len(b.recs), "error", why)
	return b.renewOwnLink(ctx)
}

func (b *batch) renewLink(ctx context.Context) error {
	if b.search.own {
		return b.renewOwnLink(ctx)
	}
	l, err := b.sink.ready(ctx)
	if err == nil {
		b.setLink(l)
	}
	return err
}

func (b *batch) renewOwnLink(ctx context.Context) error {
	b.closeOwnLink()
	l, err := connect(ctx, b.sink.cfg, b.sink.log)
	if err != nil {
		return err
	}
	l.limit.Store(b.link.limit.Load())
	b.ownLink = l
	b.setLink(l)
	return l.ready(ctx)
}

func (b *batch) closeOwnLink() {
	if b.ownLink != nil {
		_ = b.ownLink.close() // all that it carried has its fate
		b.ownLink = nil
	}
}

// endSearch gives back what the search took.
func (b *batch) endSearch() {
	b.conclude()
	b.closeOwnLink()
	if b.search.own {
		b.sink.searchTurn.Give()
	}
}
