package kafka

import (
	"net"
	"strconv"

	"github.com/sagaz-relay/relay/relay"
)

var _ relay.Placer = (*Sink)(nil)

// Destination is the record's topic.
func (s *Sink) Destination(rec *relay.Record) string { return rec.Topic }

// Place returns the partition of records that share one, and the address of its leader, or of the
// only known broker. It asks no broker, and for a partition that has moved meanwhile it may return
// the new place.
func (s *Sink) Place(batch []*relay.Record) relay.Place {
	place := relay.Place{System: "kafka", Partition: -1}
	if len(s.addrs) == 1 {
		setAddress(&place, s.addrs[0])
	}
	v, ok := s.topics.live.Load(batch[0].Topic)
	if !ok {
		return place
	}
	parts := *v.(*topic).parts.Load()
	at := -1
	for _, rec := range batch {
		index, chosen, err := s.partitionOf(rec, len(parts))
		if err != nil || !chosen && rec.MessageKey() == "" { // it is refused, or they are spread
			return place
		}
		p := int(index)
		if at >= 0 && p != at {
			return place
		}
		at = p
	}
	place.Partition = at
	p := parts[at]
	p.mu.Lock()
	leader := p.leader
	p.mu.Unlock()
	s.mu.Lock()
	b := s.brokers[leader]
	s.mu.Unlock()
	if b != nil {
		if addr := b.address(); addr != "" {
			setAddress(&place, addr)
		}
	}
	return place
}

func setAddress(place *relay.Place, addr string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return
	}
	place.Host = host
	place.Port, _ = strconv.Atoi(port)
}
