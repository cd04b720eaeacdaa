package main

import (
	"context"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/file"
	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
	"github.com/sagaz-relay/relay/sinks/stdout"
	"github.com/sagaz-relay/relay/sinks/webhook"
)

// sinkKinds are the sinks that BROKER_TYPE can name. A new one is one line here, or a file of its own
// (sink_nats.go) where a build may leave it out.
var sinkKinds = slices.Concat([]sinkKind{
	kind("kafka", kafka.DefaultConfig, kafka.New),
	kind("rabbitmq", rabbitmq.DefaultConfig, rabbitmq.New),
	kind("file", file.DefaultConfig, file.New),
	kind("stdout", noConfig, func(c unset, _ hclog.Logger) (relay.Sink, error) {
		return stdout.New(c.Called("stdout"), os.Stdout), nil
	}),
	kind("webhook", webhook.DefaultConfig, webhook.New),
}, natsKind, awsKinds, redisKind)

// unset is the Config of a sink that has no settings.
type unset struct{ relay.Named }

func noConfig() unset { return unset{} }

// Validate finds nothing.
func (unset) Validate() error { return nil }

// sinkKind makes the sinks of one package. config returns a pointer to its Config with the
// defaults, for the loader to fill; the others take it.
type sinkKind struct {
	name     string
	config   func() any
	validate func(config any) error
	open     func(config any, log hclog.Logger) (relay.Sink, error)

	// The rest may be missing.

	// address is where events go, without what may be secret: for the command sinks.
	address func(config any) string
	// variable is the setting with the broker's address, for advice.
	variable string
	// readBack is for verify: it gives f what the broker holds of these topics from since on, each
	// topic in its order.
	readBack func(ctx context.Context, config any, topics []string, since time.Time, f func(readMessage) error) error
}

// readMessage is a message that was read back from a broker.
type readMessage struct {
	headers []relay.Header
	eventID string // what the broker has as the message's id; empty for none
	body    []byte
}

// kind ties a package's Config to its sinks.
func kind[C interface{ Validate() error }, S relay.Sink](name string, defaults func() C, open func(C, hclog.Logger) (S, error)) sinkKind {
	return sinkKind{
		name:     name,
		config:   func() any { c := defaults(); return &c },
		validate: func(config any) error { return (*config.(*C)).Validate() },
		open:     func(config any, log hclog.Logger) (relay.Sink, error) { return open(*config.(*C), log) },
	}
}

func sinkKindOf(name string) *sinkKind {
	for i := range sinkKinds {
		if sinkKinds[i].name == name {
			return &sinkKinds[i]
		}
	}
	return nil
}

func sinkNames() []string {
	var names []string
	for _, k := range sinkKinds {
		names = append(names, k.name)
	}
	return names
}
