package e2e

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
)

// cluster are three nodes of RabbitMQ.
type cluster struct {
	t     testing.TB
	nodes []*brokertest.RabbitMQServer
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c := &cluster{t: t}
	for range 3 {
		var opts brokertest.RabbitMQOptions
		if len(c.nodes) > 0 {
			opts.Join = c.nodes[0]
		}
		node, err := brokertest.StartRabbitMQ(ctx, opts)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = node.Close() })
		c.nodes = append(c.nodes, node)
	}
	return c
}

func (c *cluster) host(i int) string {
	u, err := url.Parse(c.nodes[i].URL)
	if err != nil {
		c.t.Fatal("the URL is none")
	}
	return u.Host
}

// ctl runs rabbitmqctl on the first node that runs.
func (c *cluster) ctl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for _, node := range c.nodes {
		if node.Running() {
			return node.Ctl(ctx, args...)
		}
	}
	c.t.Fatal("no node runs")
	return "", nil
}

// leader waits until a quorum queue has a leader that runs, other than not, and returns which node
// that is.
func (c *cluster) leader(queue string, not int) (leader int) {
	c.t.Helper()
	eventually(c.t, patience, "the queue has a leader", func() string {
		out, err := c.ctl("-q", "list_queues", "name", "leader")
		if err != nil {
			return err.Error()
		}
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == queue {
				leader = slices.IndexFunc(c.nodes, func(n *brokertest.RabbitMQServer) bool { return n.Node == f[1] && n.Running() })
				if leader >= 0 && leader != not {
					return ""
				}
			}
		}
		return out
	})
	return leader
}

// Under load the leader of a quorum queue moves to each of three nodes, then its node is killed, and
// the one that the relay is connected to. The relay goes on with another node; nothing is lost, each
// key stays in order, and what had no confirm is there twice at most.
func TestRabbitMQCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	w := newWorld(t)
	q := &queue{t: t, url: c.nodes[0].URL, name: newTopicName()}
	q.on(func(ch *amqp.Channel) error {
		if err := ch.ExchangeDeclare(q.name, "topic", true, false, false, false, nil); err != nil {
			return err
		}
		if _, err := ch.QueueDeclare(q.name, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
			return err
		}
		return ch.QueueBind(q.name, "#", q.name, false, nil)
	})
	l := w.load(loadOptions{topic: "order.created", rate: 300})
	p := w.relay("relay", q.env().with(settings{"RELAY_RABBITMQ_HOSTS": c.host(1) + "," + c.host(2), "RELAY_RABBITMQ_CONFIRM_TIMEOUT": "5s", "RELAY_BACKOFF_MAX": "500ms"}))
	p.waitStreaming()
	l.waitCommitted(100)

	member := func(i int) string { return fmt.Sprintf("{'%%2F_%s', '%s'}", q.name, c.nodes[i].Node) }
	at := c.leader(q.name, -1)
	for range 3 {
		next := (at + 1) % 3
		if out, err := c.ctl("eval", fmt.Sprintf("ra:transfer_leadership(%s, %s).", member(at), member(next))); err != nil || strings.TrimSpace(out) != "ok" {
			t.Errorf("the leader does not move from %s to %s: %v %s", member(at), member(next), err, out)
		}
		at = c.leader(q.name, at)
		l.waitCommitted(100)
	}
	lose := func(i int) {
		t.Helper()
		t.Logf("node %d is killed, the leader is %d, the relay at %s", i, at, p.connectedTo())
		if err := c.nodes[i].Kill(); err != nil {
			t.Fatal(err)
		}
		at = c.leader(q.name, i)
		l.waitCommitted(200)
		w.db.Until(t, `SELECT status = 'sent' FROM saga_outbox WHERE event_id = $1`, [16]byte(l.probe()))
		ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
		defer cancel()
		if err := c.nodes[i].Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	lose(at)
	for i := range c.nodes {
		if strings.Contains(p.connectedTo(), c.host(i)) {
			lose(i)
			if to := p.connectedTo(); strings.Contains(to, c.host(i)) {
				t.Errorf("the relay is connected to %s, which was killed", to)
			}
			break
		}
	}
	l.settle(p, "rabbitmq")
	p.stop()
	l.judge("rabbitmq", messageEvents(t, q.drain()), 2*16384)
}

// connectedTo is the broker that the process has connected to last.
func (p *process) connectedTo() string {
	p.t.Helper()
	all := p.logged("connected")
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1].text("broker")
}
