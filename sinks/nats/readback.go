package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sagaz-relay/relay/relay"
)

// Stored is a message as a stream has it.
type Stored struct {
	Subject string
	EventID string // as Nats-Msg-Id has it; empty for a message of another client
	Value   []byte
	Headers []relay.Header
}

// ReadBack gives f the messages that the streams of these subjects got from since on, by the
// servers' clock, stream by stream in its order, up to the ends that they have at the beginning. It
// changes nothing: it makes a consumer for each stream that has no state there, and is gone at the
// end. What a stream's limits or consumers have deleted is not there. It stops at f's first error.
func ReadBack(ctx context.Context, cfg Config, subjects []string, since time.Time, f func(Stored) error) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	l, err := connect(ctx, cfg, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	defer l.close()
	of := make(map[string][]string) // subjects by stream
	for _, subject := range subjects {
		if legalSubject(subject) != "" {
			continue
		}
		name, err := l.js.StreamNameBySubject(ctx, subject)
		if noStream(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("ask JetStream for the stream of subject %.100q: %w", subject, err)
		}
		of[name] = append(of[name], subject)
	}
	if len(of) == 0 && len(subjects) > 0 {
		return errNoStreams
	}
	for name, subjects := range of {
		if err := l.readStream(ctx, name, subjects, since, f); err != nil {
			return fmt.Errorf("read back stream %s: %w", name, err)
		}
	}
	return nil
}

// eventID takes off a message's id what message has added to the event's.
func eventID(messageID string) string {
	if i := strings.IndexAny(messageID, "/@"); i >= 0 {
		return messageID[:i]
	}
	return messageID
}

func (l *link) readStream(ctx context.Context, name string, subjects []string, since time.Time, f func(Stored) error) error {
	stream, err := l.js.Stream(ctx, name)
	if err != nil {
		return err
	}
	end := stream.CachedInfo().State.LastSeq
	slices.Sort(subjects)
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		FilterSubjects: slices.Compact(subjects), DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since,
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()
	if consumer.CachedInfo().NumPending == 0 {
		return nil
	}
	for {
		m, err := messages.Next()
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Stream > end { // it came meanwhile
			return nil
		}
		headers, err := Headers(m.Headers())
		if err == nil {
			err = f(Stored{Subject: m.Subject(), EventID: eventID(m.Headers().Get(msgIDHeader)), Value: m.Data(), Headers: headers})
		}
		if err = errors.Join(err, ctx.Err()); err != nil || meta.NumPending == 0 {
			return err
		}
	}
}
