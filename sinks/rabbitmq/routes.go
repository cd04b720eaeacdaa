package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
)

var _ relay.RouteChecker = (*Sink)(nil)

// ErrBindingsUnknown is what CheckRoutes cannot find out.
var ErrBindingsUnknown = errors.New("whether a queue is bound for each routing key cannot be asked over AMQP, only tried with a message that its consumers would get: compare with rabbitmqctl list_bindings --vhost VHOST; events without a queue are refused as unroutable and wait in the ledger")

// CheckRoutes finds out whether the exchange is there and is as we declare it, and whether the user
// may publish to it with each routing key. It publishes nothing: it asks for the right to write by
// a message within a transaction that is rolled back, which RabbitMQ judges at once and routes
// nowhere. It makes no exchange either.
//
// AMQP has no question for bindings, and no way to have a message routed and not delivered. A queue
// that is bound may have a consumer, even for a message that expires at once. So when the exchange
// exists, the error is ErrBindingsUnknown, in addition to the problems. Without the exchange no
// binding exists, and every route has that problem.
func (s *Sink) CheckRoutes(ctx context.Context, routes []relay.Route) ([]relay.RouteProblem, error) {
	ctx, stop := s.join(ctx)
	defer stop()
	l, err := s.connected(ctx)
	if err != nil {
		return nil, err
	}
	c := routeCheck{link: l, cfg: s.cfg, patience: rpcTimeout}
	// amqp091's questions know no context
	defer context.AfterFunc(ctx, func() { l.kill("check routes: context ended") })()
	problems, err := c.run(routes)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return problems, err
}

type routeCheck struct {
	link     *link
	cfg      Config
	patience time.Duration // for each question
}

// ask runs a question on a channel of its own, since a refusal closes it. It returns the broker's
// refusal, and an error when no answer came.
func (c *routeCheck) ask(what string, question func(*amqp.Channel) error) (refusal *amqp.Error, err error) {
	timer := c.link.killAfter(c.patience, what)
	defer timer.Stop()
	ch, err := c.link.conn.Channel()
	if err != nil {
		return nil, c.link.lostOr(fmt.Errorf("open a channel: %w", reason(err)))
	}
	closes := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err = question(ch); err == nil {
		err = ch.Close()
	}
	if err == nil {
		return nil, nil
	}
	// A message is refused without an answer of its own: the next question finds the channel
	// closed.
	wait := time.NewTimer(c.patience)
	defer wait.Stop()
	select {
	case refusal = <-closes:
	case <-wait.C:
	}
	if refusal == nil && !errors.As(err, &refusal) || !refusal.Server || c.link.conn.IsClosed() {
		return nil, c.link.lostOr(fmt.Errorf("%s: %w", what, reason(err)))
	}
	return refusal, nil
}

func (c *routeCheck) run(routes []relay.Route) (problems []relay.RouteProblem, err error) {
	all := func(problem, fix string) []relay.RouteProblem {
		for _, r := range routes {
			problems = append(problems, relay.RouteProblem{Route: r, Problem: problem, Fix: fix})
		}
		return problems
	}
	refusal, err := c.passive()
	if err != nil {
		return nil, err
	}
	if refusal != nil {
		problem := fmt.Sprintf("exchange %q (%s): %v; no queue can be bound to it", c.cfg.Exchange, c.cfg.Said("RABBITMQ_EXCHANGE"), reason(refusal))
		declare := c.cfg.declareCommand()
		if c.cfg.Declare {
			declare += " (or start the relay, which declares it)"
		}
		for _, r := range routes {
			problems = append(problems, relay.RouteProblem{Route: r, Problem: problem, Fix: declare + "; then bind a queue: " + c.bind(r.RoutingKey)})
		}
		return problems, nil
	}
	if c.cfg.Declare { // it is there, so this changes nothing
		if refusal, err = c.compare(); err != nil {
			return nil, err
		}
		if refusal != nil {
			return all(c.cfg.declareError(refusal).Error(), "see the text: nothing is published until that is fixed"), ErrBindingsUnknown
		}
	}
	byKey := map[string]*amqp.Error{}
	for _, r := range routes {
		if len(r.RoutingKey) > maxShortString {
			problems = append(problems, relay.RouteProblem{
				Route: r, Problem: fmt.Sprintf("the routing key has %d bytes, AMQP allows 255", len(r.RoutingKey)),
				Fix: "shorten event_type, or change RELAY_ROUTING_KEY",
			})
			continue
		}
		refusal, asked := byKey[r.RoutingKey]
		if !asked {
			refusal, err = c.ask("ask for the right to publish", func(ch *amqp.Channel) error {
				if err := ch.Tx(); err != nil {
					return err
				}
				return c.tryWrite(ch, r.RoutingKey)
			})
			if err != nil {
				return nil, err
			}
			byKey[r.RoutingKey] = refusal
		}
		if refusal == nil {
			continue
		}
		p := relay.RouteProblem{
			Route: r, Problem: fmt.Sprintf("publish to exchange %q with routing key %q: %v", c.cfg.Exchange, r.RoutingKey, reason(refusal)),
			Fix: c.cfg.permit(c.cfg.vhost()) + c.cfg.Said(" (USER as in RABBITMQ_URL)"),
		}
		if topicText.MatchString(refusal.Reason) {
			p.Fix = fmt.Sprintf("rabbitmqctl set_topic_permissions --vhost %s USER %s PATTERN '^$' (USER as in %s, and a PATTERN for writing that matches %s)",
				term.Shell(c.cfg.vhost()), term.Shell(c.cfg.Exchange), c.cfg.Said("RABBITMQ_URL"), term.Shell(r.RoutingKey))
		}
		problems = append(problems, p)
	}
	return problems, ErrBindingsUnknown
}

// passive looks for the exchange.
func (c *routeCheck) passive() (refusal *amqp.Error, err error) {
	return c.ask("look for the exchange", func(ch *amqp.Channel) error {
		return ch.ExchangeDeclarePassive(c.cfg.Exchange, c.cfg.ExchangeType, true, false, false, false, nil)
	})
}

// compare has the broker compare an exchange that is there with ours, which changes nothing.
func (c *routeCheck) compare() (refusal *amqp.Error, err error) {
	return c.ask("compare the exchange", func(ch *amqp.Channel) error {
		return ch.ExchangeDeclare(c.cfg.Exchange, c.cfg.ExchangeType, true, false, false, false, nil)
	})
}

// exchange returns what is wrong with the exchange, if anything. It makes none: one that is missing
// and that we declare is well.
func (c *routeCheck) exchange() error {
	refusal, err := c.passive()
	switch {
	case err != nil:
		return err
	case refusal != nil && refusal.Code == amqp.NotFound && c.cfg.Declare:
		return nil
	case refusal == nil && c.cfg.Declare:
		if refusal, err = c.compare(); err != nil {
			return err
		}
	}
	if refusal != nil {
		return c.cfg.declareError(refusal)
	}
	return nil
}

// tryWrite has the broker judge a message that is never published, within a transaction that has
// begun.
func (c *routeCheck) tryWrite(ch *amqp.Channel, routingKey string) error {
	if err := ch.Publish(c.cfg.Exchange, routingKey, false, false, amqp.Publishing{}); err != nil {
		return err
	}
	return ch.TxRollback()
}

func (c *routeCheck) bind(routingKey string) string {
	return fmt.Sprintf("%s declare binding source=%s destination=QUEUE routing_key=%s", c.cfg.adminCommand(), term.Shell(c.cfg.Exchange), term.Shell(routingKey))
}

// adminCommand begins a command for the vhost.
func (c Config) adminCommand() string { return "rabbitmqadmin --vhost=" + term.Shell(c.vhost()) }

func (c Config) declareCommand() string {
	return fmt.Sprintf("%s declare exchange name=%s type=%s durable=true", c.adminCommand(), term.Shell(c.Exchange), term.Shell(c.ExchangeType))
}
