package rabbitmq

import (
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// anotherQueue makes another queue in the room, for another routing key.
func (r *room) anotherQueue(t testing.TB, routingKey string, args amqp.Table) *room {
	t.Helper()
	other := &room{url: r.url, name: r.name + "-" + routingKey, admin: r.admin}
	if _, err := r.admin.QueueDeclare(other.name, true, false, false, false, args); err != nil {
		t.Fatal(err)
	}
	if err := r.admin.QueueBind(other.name, routingKey, r.name, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin(t, r.url).QueueDelete(other.name, false, false, false); err != nil {
			t.Error(err)
		}
	})
	return other
}

// pairs makes a batch of two records for each of n keys: the first for one routing key, the second
// for another.
func pairs(n int, first, second string) []*relay.Record {
	var firsts, seconds []*relay.Record
	for i := range n {
		key := fmt.Sprintf("k%d", i)
		firsts = append(firsts, sinktest.NewRecord(first, key, 0, 0))
		seconds = append(seconds, sinktest.NewRecord(second, key, 1, 0))
	}
	return append(firsts, seconds...)
}

// The second event of a saga may be routable when the first is not. It waits, however many keys and
// events there are in one batch.
func TestUnroutableFirstEvent(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	s := newSink(t, r.config())
	for round := range 2 { // the second time the other route is known to be good
		batch := pairs(50, unbound, bound)
		for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
			if batch[i].RoutingKey == unbound {
				refused(t, err, relay.ReasonUnroutable)
			} else {
				behind(t, err)
			}
		}
		if got := r.depth(t); got != round {
			t.Fatalf("round %d: %d messages of keys whose first event came back", round, got-round)
		}
		if err := s.Publish(soon(t), sinktest.Records(bound, "good", round, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// A route that was good loses its queue: what was sent behind is offered again, and from then on
// nothing is sent behind.
func TestRouteGoesBad(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	other := r.anotherQueue(t, "Other", nil)
	s := newSink(t, r.config())
	warm := pairs(1, bound, "Other")
	if err := s.Publish(soon(t), warm); err != nil {
		t.Fatal(err)
	}
	if err := r.admin.QueueUnbind(r.name, bound, r.name, nil); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		before := other.depth(t)
		batch := pairs(20, bound, "Other")
		for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
			if i < 20 {
				refused(t, err, relay.ReasonUnroutable)
			} else {
				behind(t, err)
			}
		}
		if sent := other.depth(t) - before; round > 0 && sent > 0 {
			t.Errorf("%d records were sent behind ones that came back, though their route had given back others just before", sent)
		}
	}
	// What the route gave back does not slow it down for good, nor the others at all.
	r.bind(t)
	s.routes.of(bound).returned.Store(1)
	if err := s.Publish(soon(t), pairs(20, bound, "Other")); err != nil {
		t.Fatal(err)
	}
	if !s.routes.sure(s.routes.of(bound), s.routes.now()) {
		t.Error("the route counts as bad though it has taken 20 records since")
	}
}

// A nack counts against every route: nothing is sent behind a record that may be nacked, too.
func TestWaitsAfterNack(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, amqp.Table{"x-max-length": int32(1), "x-overflow": "reject-publish"})
	other := r.anotherQueue(t, "Other", nil)
	s := newSink(t, r.config())
	// the queue is full, both routes are good
	if err := s.Publish(soon(t), pairs(1, bound, "Other")); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		before := other.depth(t)
		batch := pairs(20, bound, "Other")
		for _, err := range fates(t, batch, s.Publish(soon(t), batch)) {
			transient(t, err, "nacked")
		}
		if sent := other.depth(t) - before; round > 0 && sent > 0 {
			t.Errorf("%d records were sent behind ones that were nacked", sent)
		}
	}
}

// An event that is nacked again and again is refused; its key waits behind it, and other keys go
// on.
func TestNackedAgainAndAgain(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, amqp.Table{"x-max-length": int32(1), "x-overflow": "reject-publish"})
	r.anotherQueue(t, "Other", nil)
	s := newSink(t, r.config())
	s.nacks.span = 0
	if err := s.Publish(soon(t), sinktest.Records(bound, "fill", 0, 1)); err != nil {
		t.Fatal(err)
	}
	batch := append(sinktest.Records(bound, "a", 0, 2), sinktest.NewRecord("Other", "b", 0, 0))
	offer := func(want bool) {
		t.Helper()
		got := fates(t, batch, s.Publish(soon(t), batch))
		if want {
			refused(t, got[0], relay.ReasonNacked, "nacked", bound)
			behind(t, got[1])
		} else {
			transient(t, got[0], "nacked")
			transient(t, got[1], "nacked")
		}
		if got[2] != nil {
			t.Errorf("another key: %v", got[2])
		}
	}
	for range 4 {
		offer(false)
	}
	offer(true)
	offer(true) // by the drainer
	next := sinktest.Records(bound, "c", 0, 1)
	refused(t, s.Publish(soon(t), next), relay.ReasonNacked) // its route is known to nack
	if _, err := r.admin.QueuePurge(r.name, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(soon(t), batch[:1]); err != nil { // and the queue is full again
		t.Fatal(err)
	}
	offer(false) // it counts from the beginning
	transient(t, s.Publish(soon(t), next), "nacked")
	s.nacks.span = time.Hour
	for range 10 {
		offer(false) // often enough, not for long enough
	}
}

func TestRoutes(t *testing.T) {
	rs := routes{started: time.Now()}
	a, b, now := rs.of("a"), rs.of("b"), rs.now()
	if rs.of("a") != a || a == b {
		t.Fatal("a route is one per routing key")
	}
	sure := func(to *route, at time.Duration, want bool, why string) {
		t.Helper()
		if got := rs.sure(to, now+int64(at)); got != want {
			t.Errorf("sure: %v, want %v: %s", got, want, why)
		}
	}
	sure(a, 0, false, "nothing is known")
	a.took(now)
	b.took(now)
	sure(a, 0, true, "it has just taken something")
	sure(a, lately-1, true, "it has taken something lately")
	sure(a, lately, false, "that was long ago")
	a.returned.Store(now)
	a.took(now + int64(lately)/2)
	sure(a, lately-1, false, "it gave one back lately")
	sure(a, lately, true, "that was long ago")
	sure(b, 1, true, "it has given nothing back")
	rs.nacked.Store(now)
	b.took(now + int64(lately)/2)
	sure(b, lately-1, false, "something was nacked lately")
	sure(b, lately, true, "that was long ago")
	rs.forget()
	if rs.of("a") == a {
		t.Error("a forgotten route is still known")
	}
	for i := range maxRemembered + 10 {
		rs.of(fmt.Sprint(i))
	}
	if len(rs.known) > maxRemembered {
		t.Errorf("%d routes remembered", len(rs.known))
	}
}
