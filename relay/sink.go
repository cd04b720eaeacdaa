package relay

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Header is one header of a record, in the order in which it is sent.
type Header struct{ Key, Value string }

// Null reports whether the header was JSON's null in the row. It is sent as the text null; where
// something depends on the header it counts as not there, since applications write it where they
// have no value. The text null of a row is the same.
func (h *Header) Null() bool { return h.Value == "null" }

// Record is what a broker gets for one event. It is encoded once, shared by all sinks, and
// read-only from then on.
type Record struct {
	EventID    UUID
	EventType  string
	Topic      string // Kafka topic, from RELAY_TOPIC
	RoutingKey string // AMQP routing key, from RELAY_ROUTING_KEY
	// Key is the partition key. Empty means that the record has none: such records share one lane,
	// so they keep their order on the way, but a broker is free to spread them.
	Key string
	// OwnKey is what the message has as its key where that is another than Key, by the `key:` of a
	// route; the empty text is none. Lanes and order know nothing of it. Read it by MessageKey.
	OwnKey *string
	// Value is the body. Nil is another thing than empty: a broker that knows a record without a
	// value sends that, others an empty body. TombstoneHeader is among the headers then.
	Value       []byte
	Headers     []Header // a name occurs once
	ContentType string
	// The headers with CloudEventPrefix are attributes, which each protocol names in its way.
	CloudEvent bool
	Timestamp  time.Time // created_at
	// Trace is the row's traceparent. It is looked at only where there is a Tracer.
	Trace TraceContext
}

// CloudEventPrefix begins the name of a CloudEvents attribute in the headers of a record that is
// one.
const CloudEventPrefix = "ce_"

// CloudEventContentType is the one header of such a record that is no attribute: what its body is.
const CloudEventContentType = "content-type"

// TombstoneHeader shows that the record has no value, by the event's will. On Kafka it says nothing
// that the record does not; elsewhere a body may be empty for other reasons.
const TombstoneHeader = "relay-tombstone"

// ReplayedHeader shows a consumer that the event is delivered once more because a person wanted it,
// and when.
const ReplayedHeader = "relay-replayed-at"

// MessageKey is the key that a broker gets, and empty for none. What keeps the order of records, and
// what holds one up behind another, goes by Key.
func (r *Record) MessageKey() string {
	if r.OwnKey != nil {
		return *r.OwnKey
	}
	return r.Key
}

// Size is the number of bytes of the record's variable parts; brokers add framing of their own.
func (r *Record) Size() int {
	n := len(r.MessageKey()) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}

// Sink delivers records to one broker.
//
// Publish offers the batch in the order given and blocks until the outcome of every record is known
// or given up on. It returns nil when the broker has acknowledged all of them (for a broker that
// replicates: when it is as safe there as the broker can make it). Otherwise it returns a
// *BatchError, with the outcome record by record. Any other error means that no record of the batch
// is known to be delivered.
//
// Order: records that share a key reach the broker in the order given.
//
//   - When one of them fails with a transient error, the later ones of the same key count as
//     failed too, even if the broker took them. The caller offers the failed ones again, in the
//     same order. The consumer sees a suffix repeated, never a gap that closes late.
//   - A refused record (see Refuse) holds up those of its key behind it. They are not sent, with
//     ErrBehind, so that they can follow it when it is retried.
//   - Some sinks learn of a refusal only after they have sent what follows. What the broker has
//     taken behind the refused record gets ErrBehind too, and is offered again behind it. Such a
//     sink does its best to learn of it earlier the next time.
//
// All of this goes by Record.Key. What the broker gets as the key is Record.MessageKey, which may be
// another one: then a key's records may be spread, and those of several keys share a message key.
//
// Publish is called from several lanes at once, but records of one key always come from one lane,
// one call at a time. After an error or a restart a record may be offered again. A sink does not
// retry by itself beyond what its protocol asks for (a moved leader, a closed connection that was
// idle): the lane retries, so that backoff and metrics are right. A sink connects when first needed
// and reconnects by itself at the next Publish.
//
// When ctx ends Publish returns soon; records whose outcome is then unknown count as failed. A sink
// asks Fence right before it writes to its broker, after every lock and buffer. Close ends all
// connections; a Publish in progress returns an error. Close may be called once.
type Sink interface {
	// Name is the label in logs, metrics and the status page.
	Name() string
	Publish(ctx context.Context, batch []*Record) error
	Close() error
}

type fenceKey struct{}

// WithFence returns a context for Publish that carries the question which Fence asks.
func WithFence(ctx context.Context, valid func() bool) context.Context {
	return context.WithValue(ctx, fenceKey{}, valid)
}

// Fence returns the question whether records offered under ctx may still be sent. A process can be
// frozen at any point, by SIGSTOP or with its virtual machine. When it thaws it goes on right
// there, before any timer has fired and any context has ended. Another relay has taken the slot by
// then, and what a sink had kept back would arrive behind what that one has sent of the same key.
// The question looks at the clock, and is cheap. Without WithFence the answer is yes.
func Fence(ctx context.Context) (valid func() bool) {
	if valid, ok := ctx.Value(fenceKey{}).(func() bool); ok {
		return valid
	}
	return func() bool { return true }
}

// ErrFence is the error of records that were not sent because Fence answered no.
var ErrFence = errors.New("not sent: the slot is not ours any more")

// ErrBehind is the error of a record that was not sent because one of its key before it in the
// batch was refused.
var ErrBehind = errors.New("not sent: a record of the same key before it was refused")

// ErrLater is the error of a record that the sink has not begun to send, because the records before
// it took long although the broker takes them. It is no failure: the lane offers the record again
// at once, and the sink has told what became of the others. A sink returns it only where another
// record of the batch has another outcome, and where each of a key's records behind it has it, too.
var ErrLater = errors.New("not sent yet: the records before it took long")

// BatchError has the outcome of each record of one Publish.
type BatchError struct {
	// Errs has one entry for each record of the batch, in order: nil for an acknowledged record, a
	// *RefusedError for one that the broker will never take as it is, any other error for one that
	// is to be offered again.
	Errs []error
}

func (e *BatchError) Error() string {
	failed, first := 0, error(nil)
	for _, err := range e.Errs {
		if err != nil {
			failed++
			if first == nil {
				first = err
			}
		}
	}
	return fmt.Sprintf("%d of %d records not acknowledged, first: %v", failed, len(e.Errs), first)
}

// Unwrap gives errors.Is and errors.As each record's error.
func (e *BatchError) Unwrap() []error {
	errs := make([]error, 0, len(e.Errs))
	for _, err := range e.Errs {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// Reason is why a broker refuses a record, in one machine-readable word. It is a metric label and a
// column, so the set is closed.
type Reason string

// Reasons to refuse a record.
const (
	ReasonUnroutable Reason = "unroutable" // no queue is bound for the routing key, no stream has the subject
	// Larger than RELAY_MAX_EVENT_BYTES, or than the broker, topic or queue allows.
	ReasonTooLarge Reason = "too_large"
	ReasonNacked   Reason = "nacked" // RabbitMQ: basic.nack, again and again
	// Refused by policy: authorization, validation, corrupt.
	ReasonRejected Reason = "rejected"
	ReasonEncode   Reason = "encode" // the row cannot be made into a record
	// The topic does not exist and is not created, or its name is not legal.
	ReasonUnknownTopic Reason = "unknown_topic"
)

// RefusedError is the error of a record that fails by its own fault: offering it again as it is
// would fail again.
type RefusedError struct {
	Reason Reason
	// Size and Limit are bytes, for ReasonTooLarge; a Limit of 0 is not known.
	Size, Limit int64
	Err         error // the broker's error; never the payload
	// Final: no later try can end otherwise, so the event is a dead letter at once.
	Final bool
}

func (e *RefusedError) Error() string {
	if e.Reason == ReasonTooLarge {
		limit := "limit not known"
		if e.Limit > 0 {
			limit = fmt.Sprintf("limit %d", e.Limit)
		}
		return fmt.Sprintf("%s: %d bytes, %s: %v", e.Reason, e.Size, limit, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.Reason, e.Err)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// Refuse marks err as the record's own fault.
func Refuse(reason Reason, err error) error { return &RefusedError{Reason: reason, Err: err} }

// Refused reports whether err is the record's own fault, and returns that error.
func Refused(err error) (*RefusedError, bool) {
	if err == nil { // of most records: without it each would cost an allocation
		return nil, false
	}
	var r *RefusedError
	ok := errors.As(err, &r)
	return r, ok
}
