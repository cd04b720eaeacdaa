package encode

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Config is what can be set of the encoder.
type Config struct {
	// Topic and RoutingKey are templates over {event_type}, {aggregate_type}, {aggregate_id},
	// {saga_id} and {header:NAME}. An event without that header is refused, unless the template has
	// another text for it: {header:NAME|FALLBACK}.
	//
	// Default "{event_type}". RELAY_TOPIC, RELAY_ROUTING_KEY.
	Topic      string `env:"RELAY_TOPIC"`
	RoutingKey string `env:"RELAY_ROUTING_KEY"`

	// Envelope is what a message looks like: sagaz, cloudevents, cloudevents-structured, debezium or
	// raw (docs/messages.md). CloudEventsSource is the attribute source of CloudEvents, a URI or its
	// path: where the events come from.
	//
	// Defaults sagaz, /saga_outbox. RELAY_ENVELOPE, RELAY_CLOUDEVENTS_SOURCE.
	Envelope          string `env:"RELAY_ENVELOPE"`
	CloudEventsSource string `env:"RELAY_CLOUDEVENTS_SOURCE"`
}

// DefaultConfig returns every default.
func DefaultConfig() Config {
	return Config{
		Topic:             "{event_type}",
		RoutingKey:        "{event_type}",
		Envelope:          EnvelopeSagaz,
		CloudEventsSource: "/saga_outbox",
	}
}

// Validate reports everything that is wrong at once, by the names the user typed.
func (c *Config) Validate() error {
	var errs []error
	for _, t := range []struct{ name, text string }{{"RELAY_TOPIC", c.Topic}, {"RELAY_ROUTING_KEY", c.RoutingKey}} {
		if _, err := ParseTemplate(t.text); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
		}
	}
	if !slices.Contains(envelopes, c.Envelope) {
		last := len(envelopes) - 1
		errs = append(errs, fmt.Errorf("RELAY_ENVELOPE=%s: want %s or %s", c.Envelope, strings.Join(envelopes[:last], ", "), envelopes[last]))
	}
	if err := checkSource(c.CloudEventsSource); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
