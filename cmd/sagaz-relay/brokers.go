package main

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// sinksByDefault returns nil where BROKER_TYPE is set. Where it is not, the sinks are a default that nobody may have wanted: a Deployment that set
// the variable was replaced by one that does not. The error is for what the other settings tell by themselves; the rest depends on what the
// database knows, and the relay asks that.
func (s *settings) sinksByDefault() (*relay.SinksByDefault, error) {
	const name = "BROKER_TYPE"
	if s.sources[name] != "" || !slices.Equal(s.program.Sinks, defaultProgramConfig().Sinks) {
		return nil, nil
	}
	hint := ""
	for i := range sinkKinds {
		if kind := &sinkKinds[i]; hint == "" && !slices.Contains(s.program.Sinks, kind.name) {
			hint = s.settingOf(kind.name)
		}
	}
	address := s.sources["KAFKA_BOOTSTRAP_SERVERS"]
	if hint != "" && (address == "" || strings.HasPrefix(address, "BROKER_URL") && s.brokerURL() == "rabbitmq") {
		return nil, fmt.Errorf("%s: not set, which means %s, but the address is one of another broker (%s): want %s=rabbitmq, or whichever it is",
			name, strings.Join(s.program.Sinks, ","), hint, name)
	}
	return &relay.SinksByDefault{Hint: hint}, nil
}

// settingOf is a setting that only that kind of sink reads and that has a value, or empty.
func (s *settings) settingOf(kind string) string {
	config := reflect.TypeOf(s.sinks[kind]).Elem()
	for i := range config.NumField() {
		name, _, _ := strings.Cut(config.Field(i).Tag.Get("env"), ",")
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

// brokerURL is the kind of broker that the address in BROKER_URL is one of, as far as it tells.
func (s *settings) brokerURL() string {
	config := reflect.ValueOf(s.sinks["rabbitmq"]).Elem().FieldByName("URL")
	if url := config.String(); strings.HasPrefix(url, "amqp://") || strings.HasPrefix(url, "amqps://") {
		return "rabbitmq"
	}
	return "kafka"
}
