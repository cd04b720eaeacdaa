package kafka

import (
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// Place returns what the sink knows: the partition that the records share and its leader, and
// before that, or for several partitions, the only known broker.
func TestPlace(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Brokers = []string{"one:9092"}
	s, err := New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	rec := func(key string) *relay.Record { return &relay.Record{Topic: "T", RoutingKey: "other", Key: key} }
	want := func(what string, want relay.Place, batch ...*relay.Record) {
		t.Helper()
		want.System = "kafka"
		if got := s.Place(batch); got != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	if got := s.Destination(rec("a")); got != "T" {
		t.Errorf("destination %q", got)
	}
	want("a topic that is not known", relay.Place{Partition: -1, Host: "one", Port: 9092}, rec("a"))

	t1 := &topic{name: "T"}
	parts := make([]*partition, 4)
	for i := range parts {
		parts[i] = &partition{sink: s, topic: t1, index: int32(i), leader: 7}
	}
	t1.parts.Store(&parts)
	s.topics.live.Store("T", t1)
	at := partitionOf("a", 4)
	other := "b"
	for partitionOf(other, 4) == at {
		other += "b"
	}
	want("a leader whose address is not known", relay.Place{Partition: at, Host: "one", Port: 9092}, rec("a"))
	b := s.broker(7)
	b.mu.Lock()
	b.addr = "[2001:db8::7]:9093"
	b.mu.Unlock()
	want("one partition", relay.Place{Partition: at, Host: "2001:db8::7", Port: 9093}, rec("a"), rec("a"))
	want("two partitions", relay.Place{Partition: -1, Host: "one", Port: 9092}, rec("a"), rec(other))
	want("no key", relay.Place{Partition: -1, Host: "one", Port: 9092}, rec(""))
}
