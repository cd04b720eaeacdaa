package kafka

import (
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// Two clusters have a topic of one name. A sink reads back what it has sent to its own, and only while
// no other sink may write there: neither one with another address of the same cluster, nor one whose
// cluster does not answer.
func TestTailBesideOtherSinks(t *testing.T) {
	near, far := brokertest.Kafka(t), startBroker(t)
	topic := createTopic(t, near.Plaintext, 2)
	since := time.Now()
	here, there := newSink(t, near.Plaintext), newSink(t, far.Plaintext)
	ours, theirs := sinktest.Records(topic, "a", 0, 5), sinktest.Records(topic, "a", 5, 7)
	for s, recs := range map[*Sink][]*relay.Record{here: ours, there: theirs} {
		if failed, err := sinktest.Offer(testContext(t), s, recs); err != nil {
			t.Fatal(failed, err)
		}
	}
	found := func(s *Sink, want ...*relay.Record) {
		t.Helper()
		ids, report := readTail(t, s, since, topic)
		if wantFound(t, ids, want...); len(report.Unread) > 0 {
			t.Errorf("unread: %v", report.Unread)
		}
	}
	unread := func(s *Sink, why string) {
		t.Helper()
		_, err := s.ReadTail(testContext(t), relay.TailQuery{Topics: []string{topic}, Since: since, Most: 100}, func(rec *relay.Record) { t.Errorf("found %s", rec.EventID) })
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("got %v, want an error with %q", err, why)
		}
	}
	Apart(here)
	found(here, ours...)
	Apart(here, there)
	found(here, ours...)
	found(there, theirs...)

	_, port, _ := strings.Cut(near.Plaintext, ":")
	same := newSink(t, "localhost:"+port)
	Apart(here, there, same)
	unread(here, "sink kafka may be of the same cluster")
	unread(same, "sink kafka may be of the same cluster")
	found(there, theirs...)

	silent := newSink(t, "127.0.0.1:1")
	Apart(here, silent)
	unread(here, "whether sink kafka is of the same cluster is not known")

	net := newProxy(t)
	later := newSink(t, far.Plaintext, net.use)
	if err := later.Check(testContext(t)); err != nil {
		t.Fatal(err)
	}
	Apart(here, later)
	resume := net.stall() // what it was is known from before
	defer resume()
	found(here, ours...)
}
