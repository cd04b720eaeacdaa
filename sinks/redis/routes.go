package redis

import (
	"context"
	"errors"
	"fmt"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
)

var _ relay.RouteChecker = (*Sink)(nil)

// CheckRoute reports a topic that no stream can be called.
func (c *Config) CheckRoute(r relay.Route) error {
	if r.Topic == "" {
		return errors.New("the stream's name is empty")
	}
	return nil
}

// CheckRoutes asks Redis of what type each stream's key is. It changes nothing.
func (s *Sink) CheckRoutes(ctx context.Context, routes []relay.Route) (problems []relay.RouteProblem, err error) {
	c, ctx, give, err := s.take(ctx)
	if err != nil {
		return nil, err
	}
	defer give()
	defer c.interruptible(ctx)()
	types := make(map[string]string)
	for _, r := range routes {
		is, ok := types[r.Topic]
		if !ok {
			if is, err = c.rdb.Type(ctx, r.Topic).Result(); err != nil {
				return problems, fmt.Errorf("ask for the type of key %.100q: %w (does the user have the right to the command TYPE?)", r.Topic, err)
			}
			types[r.Topic] = is
		}
		switch {
		case is == "none" && !s.cfg.MakeStreams:
			problems = append(problems, relay.RouteProblem{
				Route: r, Problem: fmt.Sprintf("there is no stream %.100q, and %s", r.Topic, s.cfg.Said("RELAY_REDIS_MAKE_STREAMS=false")),
				Fix: "make it with its consumer group: redis-cli XGROUP CREATE " + term.Shell(r.Topic) + " GROUP $ MKSTREAM",
			})
		case is != "none" && is != "stream":
			problems = append(problems, relay.RouteProblem{
				Route: r, Problem: fmt.Sprintf("key %.100q is a %s, no stream", r.Topic, is),
				Fix: "change RELAY_TOPIC, or rename that key",
			})
		}
	}
	return problems, nil
}
