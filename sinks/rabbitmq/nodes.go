package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"
	amqp "github.com/rabbitmq/amqp091-go"

	brokeraddress "github.com/sagaz-relay/relay/internal/address"
)

// A cluster has several nodes, and any of them will do: a queue's leader gets what comes in at
// another. So each connect tries all of them, and an order by chance divides the relays among them.
// What was under way on a node that is lost has no confirm and is offered again on another one. If
// the lost node still works off what it had read, both carry the same records in the same order, as
// with two connections to one node (see the package comment).

// node is one place to connect to.
type node struct {
	uri amqp.URI
	url string // with user and password
}

// nodes are the host of URL and those of Hosts. uri is URL.
func (c Config) nodes(uri amqp.URI) ([]node, error) {
	all := []node{{uri, c.URL}}
	if err := brokeraddress.Hosts(c.Hosts); err != nil {
		return nil, fmt.Errorf("RELAY_RABBITMQ_HOSTS: %w", err)
	}
	for _, host := range c.Hosts {
		n := node{uri: uri}
		n.uri.Host = strings.Trim(strings.TrimSpace(host), "[]")
		if name, port, err := net.SplitHostPort(strings.TrimSpace(host)); err == nil {
			n.uri.Host = name
			if port != "" {
				n.uri.Port, _ = strconv.Atoi(port) // a number, as Hosts has found
			}
		}
		if slices.ContainsFunc(all, func(other node) bool { return other.uri.Host == n.uri.Host && other.uri.Port == n.uri.Port }) {
			continue // URL's own, most likely
		}
		u, err := url.Parse(c.URL)
		if err != nil {
			return nil, errors.New("RABBITMQ_URL: no URL") // the error has the password
		}
		u.Host = net.JoinHostPort(n.uri.Host, strconv.Itoa(n.uri.Port))
		n.url = u.String()
		all = append(all, n)
	}
	return all, nil
}

// connect makes a connection to one of the nodes and does not declare the exchange yet. When ctx
// ends it gives up at once.
func connect(ctx context.Context, cfg Config, log hclog.Logger) (*link, error) {
	uri, err := cfg.uri()
	if err != nil {
		return nil, err
	}
	all, err := cfg.nodes(uri)
	if err != nil {
		return nil, err
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i, n := range all {
		var l *link
		var why error
		if l, why = connectTo(ctx, cfg, n, log); why == nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return nil, why
		}
		if err == nil {
			err = why
		} else {
			err = fmt.Errorf("%w; %w", err, why)
		}
		if i < len(all)-1 {
			log.Warn("the node takes no connection, trying another", "broker", address(n.uri), "error", why)
		}
	}
	return nil, err
}
