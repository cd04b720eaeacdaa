//go:build nonats || noredis || noaws

package main

import (
	"fmt"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// leftOutSink is a kind that this build does not have: its name is known, and cannot be used.
func leftOutSink(name, tag string) []sinkKind {
	left := fmt.Errorf("BROKER_TYPE=%s: this build has no such sink (it was built with -tags %s): want another build, or another broker", name, tag)
	return []sinkKind{{
		name: name, config: func() any { return new(unset) }, validate: func(any) error { return left },
		open: func(any, hclog.Logger) (relay.Sink, error) { return nil, left },
	}}
}
