package kafka

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// startBroker starts a broker that the test may kill.
func startBroker(t *testing.T) *brokertest.KafkaServer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	k, err := brokertest.StartKafka(ctx, brokertest.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

// A broker is stopped, then killed, under load; it comes back each time. Lanes offer again what
// failed. In the log each key is in order, with no gap, and only what had no known fate is there
// twice.
func TestBrokerRestarts(t *testing.T) {
	k := startBroker(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	topics := []string{createTopic(t, k.Plaintext, 3), createTopic(t, k.Plaintext, 1)}
	s := newSink(t, k.Plaintext)

	var (
		mu sync.Mutex
		// guarded by mu: acknowledged
		want     = map[string]map[string]int{topics[0]: {}, topics[1]: {}}
		failures int // guarded by mu
		wg       sync.WaitGroup
		stop     = make(chan struct{})
		acked    = make(chan struct{}, 1)
	)
	for lane := range 4 {
		wg.Go(func() {
			for first := 0; ; first += 10 {
				var keys [][]*relay.Record
				for _, topic := range topics {
					for i := range 3 {
						keys = append(keys, sinktest.Records(topic, fmt.Sprintf("%d-%d", lane, i), first, 10))
					}
				}
				failed, err := sinktest.Offer(ctx, s, sinktest.Interleave(keys...))
				if err != nil {
					t.Errorf("lane %d: %v", lane, err)
					return
				}
				mu.Lock()
				failures += failed
				for _, topic := range topics {
					for i := range 3 {
						want[topic][fmt.Sprintf("%d-%d", lane, i)] = first + 10
					}
				}
				mu.Unlock()
				relay.Wake(acked)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	flowing := func() { // several batches after this moment
		for range 20 {
			select {
			case <-acked:
			case <-ctx.Done():
				t.Fatal("nothing is acknowledged any more")
			}
		}
	}
	for _, down := range []func() error{func() error { return k.Stop(ctx) }, k.Kill} {
		flowing()
		if err := down(); err != nil {
			t.Fatal(err)
		}
		if err := k.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	flowing()
	close(stop)
	wg.Wait()
	total, sent := 0, 0
	for _, topic := range topics {
		got := consume(t, k.Plaintext, topic)
		sinktest.CheckOrder(t, delivereds(got), want[topic], true)
		total += len(got)
		for _, n := range want[topic] {
			sent += n
		}
	}
	t.Logf("%d records, %d offers failed, %d records repeated", sent, failures, total-sent)
	if failures == 0 {
		t.Error("no offer failed although the broker was away twice")
	}
	// Each failed offer repeats at most its batch of 60.
	if total-sent > failures*60 {
		t.Errorf("%d records repeated by %d failed offers of 60", total-sent, failures)
	}
}

// A sink that starts before its broker, and one that sits through an outage without traffic.
func TestBrokerDownAtStart(t *testing.T) {
	k := startBroker(t)
	ctx := testContext(t)
	topic := createTopic(t, k.Plaintext, 2)
	idle := newSink(t, k.Plaintext)
	if err := idle.Publish(ctx, sinktest.Records(topic, "idle", 0, 1)); err != nil {
		t.Fatal(err)
	}
	if err := k.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	early := newSink(t, k.Plaintext)
	if err := early.Check(ctx); err == nil {
		t.Error("check passed without a broker")
	}
	for _, s := range []*Sink{early, idle} {
		batch := sinktest.Records(topic, "x", 0, 1)
		if got := outcome(batch, s.Publish(ctx, batch)); got[0] != "again" {
			t.Errorf("without a broker: %v", got)
		}
	}
	if err := k.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := sinktest.Offer(ctx, early, sinktest.Records(topic, "early", 0, 10)); err != nil {
		t.Error(err)
	}
	if _, err := sinktest.Offer(ctx, idle, sinktest.Records(topic, "idle", 1, 9)); err != nil {
		t.Error(err)
	}
	if err := early.Check(ctx); err != nil {
		t.Errorf("check: %v", err)
	}
	sinktest.CheckOrder(t, delivereds(consume(t, k.Plaintext, topic)), map[string]int{"early": 10, "idle": 10}, true)
}
