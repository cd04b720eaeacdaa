package rabbitmq

import (
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/relay"
)

// A broker may close the channel, or the whole connection, because of one message, and does not
// name it. It sends a code, which shows only what the cause may be.
type fault int

const (
	// faultNobodys is an end that no message causes.
	faultNobodys fault = iota
	// faultMessage is a code by which a broker answers a message.
	faultMessage
	// faultUnclear is an end that a message may cause, by a defect of the broker or of what is in
	// front of it. More often the broker itself is the cause, so only an end that comes again
	// counts.
	faultUnclear
)

// faultOf sorts all codes of AMQP 0-9-1 (specification, 1.2). err is nil when the connection just
// ended.
func faultOf(err *amqp.Error) fault {
	if err == nil || !err.Server {
		return faultUnclear // end of file, reset, a frame that we do not understand
	}
	switch err.Code {
	case amqp.ConnectionForced:
		// 320: an operator closed it, the broker shuts down, its vhost goes down.
		return faultNobodys
	case amqp.ContentTooLarge:
		// 311: the body, in brokers other than RabbitMQ.
		return faultMessage
	case amqp.NoRoute, amqp.NoConsumers:
		// 312, 313: a message that came back. Brokers do not close anything for it.
		return faultMessage
	case amqp.AccessRefused:
		// 403: no right to write to the exchange, to this routing key, or to one in CC; or a user
		// id that is not ours.
		return faultMessage
	case amqp.PreconditionFailed:
		// 406: above max_message_size, a header with a type that RabbitMQ does not take (CC), an
		// expiration that is no number.
		return faultMessage
	case amqp.FrameError, amqp.SyntaxError, amqp.CommandInvalid, amqp.UnexpectedFrame:
		// 501, 502, 503, 505: what we wrote cannot be read: a frame above frame_max, a header table
		// with something in it that this broker does not know.
		return faultMessage
	case amqp.NotAllowed, amqp.NotImplemented:
		// 530, 540: something that this broker does not allow or has not.
		return faultMessage
	case amqp.InvalidPath, amqp.NotFound, amqp.ResourceLocked:
		// 402, 404, 405: the exchange or the vhost is gone, or is somebody else's. The exchange is
		// declared again.
		return faultUnclear
	case amqp.ChannelError, amqp.ResourceError, amqp.InternalError:
		// 504, 506, 541: the broker has no room, or a process of it crashed, which a message can do
		// too.
		return faultUnclear
	}
	return faultUnclear
}

// finding is the result of the control: a message without body and headers to the same exchange,
// which is rolled back.
type finding int

const (
	notAsked finding = iota
	// exchangeWell: the broker takes that, so the fault is in the records.
	exchangeWell
	// exchangeIll: the broker refuses that, too, so no record is at fault.
	exchangeIll
	// noAnswer: this broker does not know transactions.
	noAnswer
)

// controlPatience bounds the control: a broker that knows no transactions may not answer at all.
const controlPatience = 3 * time.Second

// control has the broker judge an empty message for the routing key of one of the suspects, within
// a transaction that is rolled back. A second one asks for another routing key, since permissions
// may be by routing key.
func (b *batch) control(suspects []int) finding {
	if b.sink.noControl.Load() {
		return noAnswer
	}
	c := routeCheck{link: b.link, cfg: b.sink.cfg, patience: controlPatience}
	keys := []string{b.recs[suspects[0]].RoutingKey}
	if other := b.sink.routes.takes(keys[0]); other != "" {
		keys = append(keys, other)
	} else {
		for _, i := range suspects {
			if key := b.recs[i].RoutingKey; key != keys[0] {
				keys = append(keys, key)
				break
			}
		}
	}
	for _, key := range keys {
		begun := false
		refusal, err := c.ask("ask whether the exchange takes anything", func(ch *amqp.Channel) error {
			if err := ch.Tx(); err != nil {
				return err
			}
			begun = true
			return c.tryWrite(ch, key)
		})
		dropped := b.link.killed.Load() != nil // by us, because no answer came
		switch {
		case !begun:
			// The broker is not asked again, since that may cost the connection, unless the
			// connection has just been lost.
			b.sink.noControl.Store(refusal != nil || dropped)
			return noAnswer
		case err != nil && dropped:
			return noAnswer
		case err != nil:
			return exchangeIll // the bare message ended the connection
		case refusal == nil:
			return exchangeWell
		case topicText.MatchString(refusal.Reason):
			return exchangeWell // this routing key alone is not allowed
		}
	}
	return exchangeIll
}

// closedBy is the refusal of a record that the broker closed a channel or connection for.
func (c Config) closedBy(err *amqp.Error, connection bool) error {
	what := "channel"
	if connection {
		what = "connection"
	}
	switch {
	case err == nil || !err.Server:
		return relay.Refuse(relay.ReasonRejected, fmt.Errorf("the connection to the broker ends whenever this message is sent, and only then: see the broker's log"))
	case err.Code == amqp.ContentTooLarge:
		return relay.Refuse(relay.ReasonTooLarge, fmt.Errorf("the broker closes the %s on this message: %w", what, reason(err)))
	case err.Code == amqp.AccessRefused:
		return relay.Refuse(relay.ReasonRejected, fmt.Errorf("the broker closes the %s on this message: %w; it takes others on exchange %q, so look at this one's routing key and headers, and at rabbitmqctl list_topic_permissions", what, reason(err), c.Exchange))
	}
	return relay.Refuse(relay.ReasonRejected, fmt.Errorf("the broker closes the %s on this message: %w; it takes others on exchange %q, so look at this one's headers", what, reason(err), c.Exchange))
}

var errNoRoom = errors.New("the broker closes channels on too many messages of one batch: the others wait for the next offer")
