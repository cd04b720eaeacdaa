package nats

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
)

var _ relay.RouteChecker = (*Sink)(nil)

// CheckRoutes finds out whether a stream listens on each subject, and acknowledges what it takes.
// It asks JetStream for the streams' names and configurations, which the user may have no right to;
// then it cannot be found out. It publishes nothing.
func (s *Sink) CheckRoutes(ctx context.Context, routes []relay.Route) (problems []relay.RouteProblem, err error) {
	ctx, stop := s.join(ctx)
	defer stop()
	l, err := s.connected(ctx)
	if err != nil {
		return nil, err
	}
	found := make(chan []relay.RouteProblem, 1)
	err = s.apart(ctx, func() error {
		c := routeCheck{sink: s, link: l, streams: make(map[string]*jetstream.StreamInfo)}
		problems, err := c.run(ctx, routes)
		found <- problems
		return err
	})
	select {
	case problems = <-found:
	default: // it goes on
	}
	return problems, err
}

type routeCheck struct {
	sink    *Sink
	link    *link
	streams map[string]*jetstream.StreamInfo // by name
}

func (c *routeCheck) run(ctx context.Context, routes []relay.Route) (problems []relay.RouteProblem, err error) {
	asked := make(map[string]relay.RouteProblem) // by subject
	for _, r := range routes {
		p, ok := asked[r.Topic]
		if !ok {
			if p, err = c.ask(ctx, r.Topic); err != nil {
				return problems, fmt.Errorf("ask JetStream for the stream of subject %.100q: %w (does the user have the right to publish to $JS.API.STREAM.NAMES and $JS.API.STREAM.INFO.*?)", r.Topic, err)
			}
			asked[r.Topic] = p
		}
		if p.Problem != "" {
			p.Route = r
			problems = append(problems, p)
		}
	}
	return problems, nil
}

func (c *routeCheck) ask(ctx context.Context, subject string) (p relay.RouteProblem, err error) {
	if problem := c.sink.cfg.forbidden(subject); problem != "" {
		return relay.RouteProblem{Problem: fmt.Sprintf("subject %.100q: %s", subject, problem), Fix: "change event_type, RELAY_TOPIC or the topic of its rule"}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	name, err := c.link.js.StreamNameBySubject(ctx, subject)
	if noStream(err) {
		return relay.RouteProblem{
			Problem: fmt.Sprintf("no stream has subject %.100q", subject),
			Fix:     fmt.Sprintf("add it to a stream: nats stream edit STREAM --subjects SUBJECTS,%s; or make one: nats stream add STREAM --subjects %s --defaults", term.Shell(subject), term.Shell(subject)),
		}, nil
	}
	if err != nil {
		return p, err
	}
	if want := c.sink.cfg.Stream; want != "" && name != want {
		return relay.RouteProblem{
			Problem: fmt.Sprintf("subject %.100q is stream %s's, not %s's", subject, name, want),
			Fix:     c.sink.cfg.Said("add it to that one's subjects, or change RELAY_NATS_STREAM"),
		}, nil
	}
	info := c.streams[name]
	if info == nil {
		stream, err := c.link.js.Stream(ctx, name)
		if err != nil {
			return p, err
		}
		info = stream.CachedInfo()
		c.streams[name] = info
	}
	switch cfg := info.Config; {
	case cfg.NoAck:
		p.Problem = fmt.Sprintf("stream %s acknowledges nothing (no_ack), so no event counts as delivered", name)
		p.Fix = fmt.Sprintf("nats stream edit %s --ack", name)
	case cfg.Sealed:
		p.Problem = fmt.Sprintf("stream %s is sealed", name)
		p.Fix = "take the subject out of its subjects, and make another stream for it"
	case cfg.Discard == jetstream.DiscardNew && (cfg.MaxMsgs > 0 && info.State.Msgs >= uint64(cfg.MaxMsgs) || cfg.MaxBytes > 0 && info.State.Bytes >= uint64(cfg.MaxBytes)):
		p.Problem = fmt.Sprintf("stream %s is full, and discards new messages", name)
		p.Note = "Its events wait until there is room."
		p.Fix = "raise its limits, or have its consumers acknowledge"
	}
	return p, nil
}

// errNoStreams is what ReadBack finds when no stream has any of the subjects.
var errNoStreams = errors.New("no stream has any of the events' subjects")
