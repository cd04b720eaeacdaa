package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/internal/variables"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
)

// sinksByDefault returns nil where BROKER_TYPE is set. Where it is not, the sinks are a default
// that nobody may have wanted: a Deployment that set the variable was replaced by one that does
// not. The error is for what the other settings show by themselves; the rest depends on what the
// database knows, and the relay asks that.
func (s *settings) sinksByDefault() (*relay.SinksByDefault, error) {
	const name = "BROKER_TYPE"
	if s.sources[name] != "" || len(s.program.NamedSinks) > 0 || !slices.Equal(s.program.Sinks, defaultProgramConfig().Sinks) {
		return nil, nil
	}
	hint, other := "", "" // a setting, and the sink that reads it
	for i := range sinkKinds {
		if kind := &sinkKinds[i]; hint == "" && !slices.Contains(s.program.Sinks, kind.name) {
			hint, other = s.settingOf(kind.name), kind.name
		}
	}
	address := s.sources["KAFKA_BOOTSTRAP_SERVERS"]
	if hint != "" && (address == "" || strings.HasPrefix(address, "BROKER_URL") && s.brokerURL() == "rabbitmq") {
		return nil, fmt.Errorf("%s: not set, which means %s, but the address is one of another broker (%s): want %s=%s, or whichever it is",
			name, strings.Join(s.program.Sinks, ","), hint, name, other)
	}
	return &relay.SinksByDefault{Types: sinkNames(), Hint: hint}, nil
}

// settingOf is a setting that only that kind of sink reads and that has a value, or empty.
func (s *settings) settingOf(kind string) string {
	for _, f := range variables.Fields(s.sinks[kind]) {
		name := f.Names[0]
		source := s.sources[name]
		switch {
		case source == "" || !strings.Contains(name, strings.ToUpper(kind)):
		case strings.HasPrefix(source, "BROKER_URL"): // either broker's address
			if s.brokerURL() == kind {
				return source
			}
		default:
			return source
		}
	}
	return ""
}

// brokerURL is the kind of broker that the address in BROKER_URL is one of, or empty where it does
// not show that.
func (s *settings) brokerURL() string {
	url := s.sinks["rabbitmq"].(*rabbitmq.Config).URL
	if strings.HasPrefix(url, "amqp://") || strings.HasPrefix(url, "amqps://") {
		return "rabbitmq"
	}
	return "kafka"
}
