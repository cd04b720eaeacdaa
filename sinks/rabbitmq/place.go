package rabbitmq

import "github.com/sagaz-relay/relay/relay"

var _ relay.Placer = (*Sink)(nil)

// Destination is exchange and routing key, as OpenTelemetry's conventions for RabbitMQ write them.
func (s *Sink) Destination(rec *relay.Record) string { return s.cfg.Exchange + ":" + rec.RoutingKey }

// Place returns the broker's address.
func (s *Sink) Place(batch []*relay.Record) relay.Place {
	place := relay.Place{System: "rabbitmq", RoutingKey: batch[0].RoutingKey, Partition: -1}
	if uri, err := s.cfg.uri(); err == nil { // it was valid when the sink was made
		place.Host, place.Port = uri.Host, uri.Port
	}
	return place
}
