package rabbitmq

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// fates returns the fate of each record.
func fates(t testing.TB, batch []*relay.Record, err error) []error {
	t.Helper()
	if err == nil {
		return make([]error, len(batch))
	}
	var be *relay.BatchError
	if !errors.As(err, &be) || len(be.Errs) != len(batch) {
		t.Fatalf("got %v, want a BatchError with %d entries", err, len(batch))
	}
	return be.Errs
}

// transient fails the test unless err is a transient error that mentions all of these.
func transient(t testing.TB, err error, mention ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that mentions %q", mention)
	}
	if r, refused := relay.Refused(err); refused {
		t.Errorf("%v: refused, want it to pass", r)
	}
	for _, m := range mention {
		if !strings.Contains(err.Error(), m) {
			t.Errorf("got %q, want it to mention %q", err, m)
		}
	}
}

// refused fails the test unless err refuses a record for this reason and mentions all of these.
func refused(t testing.TB, err error, reason relay.Reason, mention ...string) *relay.RefusedError {
	t.Helper()
	r, is := relay.Refused(err)
	if !is || r.Reason != reason {
		t.Fatalf("got %v, want it refused as %q", err, reason)
	}
	for _, m := range mention {
		if !strings.Contains(err.Error(), m) {
			t.Errorf("got %q, want it to mention %q", err, m)
		}
	}
	return r
}

// behind fails the test unless err means that the record waits for a refused one.
func behind(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, relay.ErrBehind) {
		t.Errorf("got %v, want it behind a refused record", err)
	}
}

func TestMessage(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	s := newSink(t, r.config())
	rec := sinktest.NewRecord(bound, "order-7", 0, 10)
	old := sinktest.NewRecord(bound, "order-7", 1, 10)
	old.Timestamp = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC) // -infinity
	// 200 characters fit the column, 400 bytes no AMQP property
	old.EventType = strings.Repeat("é", 200)
	if err := s.Publish(soon(t), []*relay.Record{rec, old}); err != nil {
		t.Fatal(err)
	}
	got := r.deliveries(t)
	if len(got) != 2 {
		t.Fatalf("got %d messages, want 2", len(got))
	}
	d := got[0]
	if d.MessageId != rec.EventID.String() || d.Type != rec.EventType || d.ContentType != "application/json" || d.DeliveryMode != amqp.Persistent || !d.Timestamp.Equal(rec.Timestamp.Truncate(time.Second)) {
		t.Errorf("got id %s, type %q, content type %q, mode %d, time %s", d.MessageId, d.Type, d.ContentType, d.DeliveryMode, d.Timestamp)
	}
	if d := got[1]; !d.Timestamp.IsZero() || d.Type != "" || d.MessageId != old.EventID.String() {
		t.Errorf("got time %s, type %q, id %s, want neither time nor type", d.Timestamp, d.Type, d.MessageId)
	}
}

func TestUnroutableAmongRoutable(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	s := newSink(t, r.config()) // a window of 1000
	var batch []*relay.Record
	want := map[string]int{}
	for i := range 6000 {
		key := fmt.Sprintf("k%d", i%7)
		if i%3 == 0 {
			// nothing is behind it
			batch = append(batch, sinktest.NewRecord(unbound, fmt.Sprintf("u%d", i), i, 200))
			continue
		}
		batch = append(batch, sinktest.NewRecord(bound, key, want[key], 200))
		want[key]++
	}
	for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
		if batch[i].RoutingKey == unbound {
			refused(t, err, relay.ReasonUnroutable, r.name, unbound, "bind", "NO_ROUTE")
		} else if err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	sinktest.CheckOrder(t, r.consume(t), want, false)
}

// An event may be in a batch more than once, after a redelivery. A return must not be taken for a
// later batch's.
func TestSameEventTwice(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	s := newSink(t, r.config())
	lost, found := sinktest.NewRecord(unbound, "k", 0, 0), sinktest.NewRecord(bound, "l", 0, 0)
	batch := []*relay.Record{lost, found, lost, found, lost}
	for range 20 { // on the same channel each time
		got := fates(t, batch, s.Publish(soon(t), batch))
		refused(t, got[0], relay.ReasonUnroutable)
		for _, i := range []int{2, 4} {
			behind(t, got[i])
		}
		for _, i := range []int{1, 3} {
			if got[i] != nil {
				t.Fatalf("record %d: %v", i, got[i])
			}
		}
	}
	if got := r.depth(t); got != 40 {
		t.Errorf("%d messages, want 40", got)
	}
}

// A return does not show which of two messages of one event came back. It is taken for the oldest
// without a confirm, and whatever is behind it is offered again.
func TestReturnOfOneOfTwo(t *testing.T) {
	rec := sinktest.NewRecord(unbound, "k", 0, 0)
	batch := []*relay.Record{rec, rec}
	for _, first := range []bool{true, false} { // which one was resolved when the return is read
		s := newSink(t, DefaultConfig())
		b := newBatch(t.Context(), s, nil, batch)
		a := attempt{batch: b, sent: []sent{{at: 0}, {at: 1}}}
		if first {
			b.fates[0] = nil
			a.head = 1
		}
		a.noteReturn(amqp.Return{MessageId: rec.EventID.String(), RoutingKey: unbound, ReplyText: "NO_ROUTE"})
		returned := map[bool]int{false: 0, true: 1}[first]
		if got := a.sent[returned].returned; got != "NO_ROUTE" {
			t.Errorf("first resolved %v: the return went to the other message", first)
		}
		b.fates[0], b.fates[1] = nil, nil
		b.refuse(returned, unroutable("x", unbound, "NO_ROUTE"))
		got := fates(t, batch, b.result())
		refused(t, got[returned], relay.ReasonUnroutable)
		if first && got[0] != nil {
			t.Errorf("acknowledged before the other came back: %v", got[0])
		} else if !first {
			behind(t, got[1])
		}
	}
}

func TestNack(t *testing.T) {
	for _, kind := range []string{"classic", "quorum"} {
		t.Run(kind, func(t *testing.T) {
			r := newRoom(t, brokertest.RabbitMQ(t).URL, amqp.Table{"x-queue-type": kind, "x-max-length": int32(10), "x-overflow": "reject-publish"})
			s := newSink(t, r.config())
			batch := sinktest.Interleave(sinktest.Records(bound, "a", 0, 100), sinktest.Records(bound, "b", 0, 100))
			first := map[string]bool{}
			acked := 0
			// which learns that it is full behind the messages, so fill it before
			if kind == "quorum" {
				eventually(t, "a full queue", func() bool { return s.Publish(soon(t), sinktest.Records(bound, "fill", 0, 1)) != nil })
			}
			for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
				key := batch[i].Key
				switch {
				case err == nil && first[key]:
					t.Errorf("record %d of key %s counts as acknowledged behind one that failed", i, key)
				case err == nil:
					acked++
				default:
					transient(t, err, "nacked", "reject-publish")
					first[key] = true
				}
			}
			if len(first) != 2 || kind == "classic" && acked < 10 {
				t.Errorf("%d acknowledged, %d keys failed, want 10 or more and 2", acked, len(first))
			}
			// With the queue drained all the time, everything comes through in the end.
			got := drainWhile(t, r, func() {
				if _, err := sinktest.Offer(soon(t), s, batch); err != nil {
					t.Error(err)
				}
			})
			checkLast(t, got, map[string]int{"a": 100, "b": 100})
		})
	}
}

// drainWhile consumes from the room's queue while f runs and until it is empty after that.
func drainWhile(t *testing.T, r *room, f func()) []sinktest.Delivered {
	t.Helper()
	ch := admin(t, r.url)
	in, err := ch.Consume(r.name, "drain", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []sinktest.Delivered
	var consumer sync.WaitGroup
	consumer.Go(func() {
		for d := range in {
			got = append(got, sinktest.Delivered{Topic: d.RoutingKey, Value: d.Body})
		}
	})
	f()
	eventually(t, "queue drained", func() bool { return r.depth(t) == 0 })
	// what was delivered before is handed over before
	if err := ch.Cancel("drain", false); err != nil {
		t.Fatal(err)
	}
	consumer.Wait()
	return got
}

// checkLast checks what a nack in the middle leaves of order. Of each key all are there, and the
// last of each came in order, since what failed is offered again with everything behind it.
func checkLast(t *testing.T, got []sinktest.Delivered, want map[string]int) {
	t.Helper()
	last := map[string]map[int]int{}
	for n, d := range got {
		var p struct {
			Key string
			Seq int
		}
		if err := json.Unmarshal(d.Value, &p); err != nil {
			t.Fatal(err)
		}
		if last[p.Key] == nil {
			last[p.Key] = map[int]int{}
		}
		last[p.Key][p.Seq] = n
	}
	for key, n := range want {
		for seq := range n {
			at, ok := last[key][seq]
			if !ok {
				t.Errorf("key %s: %d did not arrive", key, seq)
			}
			if seq > 0 && at < last[key][seq-1] {
				t.Errorf("key %s: %d last came at %d, before %d at %d", key, seq, at, seq-1, last[key][seq-1])
			}
		}
	}
}

func TestWindow(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	p, url := newProxy(t, r.url)
	cfg := r.config()
	cfg.URL, cfg.Window = url, 10
	s := newSink(t, cfg)
	if err := s.Publish(soon(t), sinktest.Records(bound, "k", 0, 1)); err != nil {
		t.Fatal(err)
	}
	p.stall(toSink)
	ctx, cancel := context.WithCancel(soon(t))
	result := make(chan error, 1)
	go func() { result <- s.Publish(ctx, sinktest.Records(bound, "k", 1, 100)) }()
	eventually(t, "a window of messages", func() bool { return r.depth(t) == 11 })
	// Without a window all would be sent at once; ask often enough that the broker would have seen
	// more.
	for range 50 {
		if got := r.depth(t); got != 11 {
			t.Fatalf("%d messages arrived, want 1 and a window of 10", got)
		}
	}
	p.resume()
	if err := <-result; err != nil {
		t.Error(err)
	}
	cancel()
	sinktest.CheckOrder(t, r.consume(t), map[string]int{"k": 101}, false)
}

func TestConfirmTimeout(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	p, url := newProxy(t, r.url)
	cfg := r.config()
	cfg.URL, cfg.ConfirmTimeout = url, 300*time.Millisecond
	s := newSink(t, cfg)
	if err := s.Publish(soon(t), sinktest.Records(bound, "k", 0, 5)); err != nil {
		t.Fatal(err)
	}
	p.stall(toSink)
	batch := sinktest.Records(bound, "k", 5, 50)
	start := time.Now()
	for _, err := range fates(t, batch, s.Publish(soon(t), batch)) {
		transient(t, err, "RELAY_RABBITMQ_CONFIRM_TIMEOUT", "300ms")
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	// Nothing may overtake what has no known fate: until its channel is closed nothing else is
	// sent.
	ctx, cancel := context.WithTimeout(soon(t), 200*time.Millisecond)
	defer cancel()
	if err := s.Publish(ctx, sinktest.Records(bound, "other", 0, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("publish while a channel has missing confirms: got %v", err)
	}
	p.resume()
	if _, err := sinktest.Offer(soon(t), s, batch); err != nil {
		t.Fatal(err)
	}
	sinktest.CheckOrder(t, r.consume(t), map[string]int{"k": 55}, true)
}

// When not even the close of the channel is answered, the connection goes.
func TestConfirmTimeoutDropsConnection(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	p, url := newProxy(t, r.url)
	cfg := r.config()
	cfg.URL, cfg.ConfirmTimeout = url, 300*time.Millisecond
	s := newSink(t, cfg)
	if err := s.Publish(soon(t), sinktest.Records(bound, "k", 0, 5)); err != nil {
		t.Fatal(err)
	}
	p.stall(toSink)
	batch := sinktest.Records(bound, "k", 5, 50)
	transient(t, s.Publish(soon(t), batch), "RELAY_RABBITMQ_CONFIRM_TIMEOUT")
	// The next waits for the channel, which does not close.
	transient(t, s.Publish(soon(t), batch), "connection dropped", "missing confirms")
	p.resume()
	if _, err := sinktest.Offer(soon(t), s, batch); err != nil {
		t.Fatal(err)
	}
	sinktest.CheckOrder(t, r.consume(t), map[string]int{"k": 55}, true)
}

// A peer that stops reading must not block a lane for longer than the timeout, though the socket is
// full.
func TestWriteBlocked(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	p, url := newProxy(t, r.url)
	cfg := r.config()
	cfg.URL, cfg.ConfirmTimeout = url, time.Second
	s := newSink(t, cfg)
	if err := s.Publish(soon(t), sinktest.Records(bound, "k", 0, 1)); err != nil {
		t.Fatal(err)
	}
	p.stall(toBroker)
	// more than both sockets take
	batch := []*relay.Record{sinktest.NewRecord(bound, "k", 1, 40_000_000)}
	start := time.Now()
	transient(t, s.Publish(soon(t), batch), "write", "i/o timeout")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	p.cut()
	p.resume()
	// The same with a context that ends before the timeout.
	cfg.ConfirmTimeout = patience
	s = newSink(t, cfg)
	if err := s.Publish(soon(t), sinktest.Records(bound, "k", 1, 1)); err != nil {
		t.Fatal(err)
	}
	p.stall(toBroker)
	ctx, cancel := context.WithTimeout(soon(t), 300*time.Millisecond)
	defer cancel()
	start = time.Now()
	if err := s.Publish(ctx, batch); err == nil {
		t.Error("no error")
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %s after its context ended", took)
	}
}

func TestBlockedConnection(t *testing.T) {
	broker := ownBroker(t)
	r := newRoom(t, broker.URL, nil)
	cfg := r.config()
	cfg.ConfirmTimeout = 2 * time.Second
	s, log := newLoggedSink(t, cfg)
	slow := cfg
	slow.ConfirmTimeout = patience
	waits := newSink(t, slow)
	want := map[string]int{"a": 5, "b": 5}
	for key, sink := range map[string]*Sink{"a": s, "b": waits} {
		if err := sink.Publish(soon(t), sinktest.Records(bound, key, 0, 5)); err != nil {
			t.Fatal(err)
		}
	}
	alarm := func(on bool) {
		if err := broker.SetMemoryAlarm(soon(t), on); err != nil {
			t.Fatal(err)
		}
	}
	alarm(true)
	defer alarm(false)
	a, b := sinktest.Records(bound, "a", 5, 50), sinktest.Records(bound, "b", 5, 50)
	want["a"], want["b"] = 55, 55
	// The broker sends "blocked" to a connection when it publishes, so the first call has messages
	// under way and waits for the confirm timeout.
	transient(t, s.Publish(soon(t), a), "blocked", "memory")
	result := make(chan error, 1)
	go func() { result <- waits.Publish(soon(t), b) }()
	// The next have sent nothing, and return soon.
	start := time.Now()
	transient(t, s.Publish(soon(t), a), "blocked", "memory")
	transient(t, s.Check(soon(t)), "blocked", "memory")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	select {
	case err := <-result:
		t.Errorf("publish over a blocked connection: %v, want it to wait", err)
	default:
	}
	alarm(false)
	if err := <-result; err != nil {
		t.Errorf("publish when the connection was unblocked under it: %v", err)
	}
	if _, err := sinktest.Offer(soon(t), s, a); err != nil {
		t.Fatal(err)
	}
	sinktest.CheckOrder(t, r.consume(t), want, true)
	if got := log.String(); strings.Count(got, "connected") != 1 || !strings.Contains(got, "connection blocked") || !strings.Contains(got, "connection unblocked") {
		t.Errorf("want one connection, blocked and unblocked: the log is\n%s", got)
	}
}

// What AMQP cannot carry would end the whole connection.
func TestRefusedBeforeSending(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	if err := r.admin.QueueBind(r.name, "#", r.name, false, nil); err != nil {
		t.Fatal(err)
	}
	s, log := newLoggedSink(t, r.config())
	keys := 0
	with := func(f func(*relay.Record)) *relay.Record {
		keys++
		rec := sinktest.NewRecord(bound, fmt.Sprintf("k%d", keys), 0, 10)
		f(rec)
		return rec
	}
	header := func(k, v string) func(*relay.Record) {
		return func(rec *relay.Record) { rec.Headers = append(rec.Headers, relay.Header{Key: k, Value: v}) }
	}
	batch := []*relay.Record{
		with(func(rec *relay.Record) { rec.RoutingKey = strings.Repeat("k", 255) }),
		with(func(rec *relay.Record) { rec.RoutingKey = strings.Repeat("k", 256) }),
		// 128 characters, 256 bytes
		with(func(rec *relay.Record) { rec.RoutingKey = strings.Repeat("é", 128) }),
		with(header(strings.Repeat("h", 255), "v")),
		with(header(strings.Repeat("h", 256), "v")),
		with(func(rec *relay.Record) { rec.ContentType = strings.Repeat("c", 256) }),
		with(header("big", strings.Repeat("v", 130_000))),
		with(header("big", strings.Repeat("v", 131_072))),
		with(func(rec *relay.Record) { rec.RoutingKey = "" }),
	}
	after := *batch[0]
	after.Key = batch[1].Key
	batch = append(batch, &after)
	got := fates(t, batch, s.Publish(soon(t), batch))
	behind(t, got[9])
	for _, i := range []int{0, 3, 6, 8} {
		if got[i] != nil {
			t.Errorf("record %d: %v", i, got[i])
		}
	}
	refused(t, got[1], relay.ReasonEncode, "routing key", "256", "RELAY_ROUTING_KEY")
	refused(t, got[2], relay.ReasonEncode, "routing key", "256")
	refused(t, got[4], relay.ReasonEncode, "header", "256")
	refused(t, got[5], relay.ReasonEncode, "content type")
	if e := refused(t, got[7], relay.ReasonTooLarge, "frame_max"); e.Limit != 131_072 || e.Size <= e.Limit {
		t.Errorf("size %d, limit %d, want more than 131072 of them", e.Size, e.Limit)
	}
	if n := r.depth(t); n != 4 || strings.Count(log.String(), "connected") != 1 {
		t.Errorf("%d messages over %d connections, want 4 over one", n, strings.Count(log.String(), "connected"))
	}
}

// The largest headers that check lets through are no larger than what the broker takes.
func TestHeaderFrameLimit(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	s, log := newLoggedSink(t, r.config())
	if err := s.Check(soon(t)); err != nil { // connects, so that the limit is known
		t.Fatal(err)
	}
	a := attempt{batch: newBatch(t.Context(), s, s.link, nil)}
	rec := sinktest.NewRecord(bound, "k", 0, 10)
	rec.Headers = append(rec.Headers, relay.Header{Key: "big"})
	n := 0
	for step := 1 << 17; step > 0; step /= 2 {
		rec.Headers[len(rec.Headers)-1].Value = strings.Repeat("v", n+step)
		if a.check(rec) == nil {
			n += step
		}
	}
	rec.Headers[len(rec.Headers)-1].Value = strings.Repeat("v", n)
	if err := s.Publish(soon(t), []*relay.Record{rec}); err != nil {
		t.Errorf("a header of %d bytes: %v", n, err)
	}
	if strings.Count(log.String(), "connected") != 1 {
		t.Error("the connection was lost")
	}
}

func TestLargePayload(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	s := newSink(t, r.config())
	batch := []*relay.Record{sinktest.NewRecord(bound, "k", 0, 10), sinktest.NewRecord(bound, "k", 1, 20<<20), sinktest.NewRecord(bound, "k", 2, 10)}
	if err := s.Publish(soon(t), batch); err != nil {
		t.Fatal(err)
	}
	got := r.consume(t)
	if len(got) != len(batch) {
		t.Fatalf("got %d messages, want %d", len(got), len(batch))
	}
	for i := range got {
		if !bytes.Equal(got[i].Value, batch[i].Value) {
			t.Errorf("record %d: got %d bytes that are not the %d sent", i, len(got[i].Value), len(batch[i].Value))
		}
	}
}

// RabbitMQ 4 takes 16 MB by default; a broker of an older version can be set to that.
func TestTooLargeForBroker(t *testing.T) {
	broker := ownBroker(t)
	limit := func(bytes int) {
		if _, err := broker.Ctl(soon(t), "eval", fmt.Sprintf("application:set_env(rabbit, max_message_size, %d).", bytes)); err != nil {
			t.Fatal(err)
		}
	}
	limit(16 << 20)
	defer limit(128 << 20)
	r := newRoom(t, broker.URL, nil)
	s, log := newLoggedSink(t, r.config())
	big := sinktest.NewRecord(bound, "a", 999, 20<<20)
	bigger := sinktest.NewRecord(bound, "b", 999, 21<<20)
	a, b, c := sinktest.Records(bound, "a", 0, 30), sinktest.Records(bound, "b", 0, 30), sinktest.Records(bound, "c", 0, 30)
	batch := slices.Concat(sinktest.Interleave(a[:10], b[:10], c[:10]), []*relay.Record{big}, sinktest.Interleave(a[10:20], b[10:20], c[10:20]), []*relay.Record{bigger}, sinktest.Interleave(a[20:], b[20:], c[20:]))
	for round := range 2 {
		waits := map[string]bool{}
		start := time.Now()
		for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
			if rec := batch[i]; rec == big || rec == bigger {
				if e := refused(t, err, relay.ReasonTooLarge, "max_message_size"); e.Size != int64(len(rec.Value)) || e.Limit != 16<<20 {
					t.Errorf("size %d, limit %d, want %d and %d", e.Size, e.Limit, len(rec.Value), 16<<20)
				}
				waits[rec.Key] = true
			} else if waits[rec.Key] {
				behind(t, err)
			} else if err != nil {
				t.Errorf("round %d, record %d: %v", round, i, err)
			}
		}
		t.Logf("round %d took %s", round, time.Since(start))
	}
	if n := strings.Count(log.String(), "connected"); n != 1 {
		t.Errorf("%d connections, want one: a channel exception is not the connection's", n)
	}
	if err := s.Publish(soon(t), slices.Concat(a[10:], b[20:])); err != nil {
		t.Fatal(err)
	}
	got := r.consume(t)
	sinktest.CheckOrder(t, got, map[string]int{"a": 30, "b": 30, "c": 30}, true)
}

// A routing key that topic permissions forbid concerns that record only; no permission to write
// concerns all.
func TestPermissions(t *testing.T) {
	broker := ownBroker(t)
	ctl := func(args ...string) {
		t.Helper()
		if _, err := broker.Ctl(soon(t), args...); err != nil {
			t.Fatal(err)
		}
	}
	r := newRoom(t, broker.URL, nil)
	ctl("add_user", "limited", "limited-secret")
	defer ctl("delete_user", "limited")
	ctl("set_permissions", "limited", ".*", ".*", ".*")
	ctl("set_topic_permissions", "limited", r.name, "^"+bound+"$", ".*")
	cfg := r.config()
	cfg.URL = strings.Replace(cfg.URL, broker.User+":"+broker.Password, "limited:limited-secret", 1)
	s := newSink(t, cfg)
	good := sinktest.Records(bound, "k", 0, 4)
	batch := []*relay.Record{good[0], sinktest.NewRecord("forbidden.a", "a", 9, 0), good[1], sinktest.NewRecord("forbidden.b", "b", 9, 0), good[2], sinktest.NewRecord("forbidden.a", "k", 9, 0), good[3]}
	for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
		switch {
		case i == 6:
			behind(t, err)
		case i%2 == 1:
			refused(t, err, relay.ReasonRejected, "topic permission", r.name, batch[i].RoutingKey)
		case err != nil:
			t.Errorf("record %d: %v", i, err)
		}
	}
	if err := s.Publish(soon(t), good[3:]); err != nil {
		t.Error(err)
	}
	sinktest.CheckOrder(t, r.consume(t), map[string]int{"k": 4}, true)

	ctl("set_permissions", "limited", ".*", "^$", ".*")
	s = newSink(t, cfg) // permissions are cached per channel
	transient(t, s.Publish(soon(t), good), "permission to write", "ACCESS_REFUSED", r.name)
	ctl("set_permissions", "limited", "^$", ".*", ".*")
	s = newSink(t, cfg)
	transient(t, s.Publish(soon(t), good), "RELAY_RABBITMQ_DECLARE=false", "ACCESS_REFUSED", r.name)
	cfg.Declare = false
	if err := newSink(t, cfg).Publish(soon(t), good); err != nil {
		t.Errorf("without the permission to configure and without declaring: %v", err)
	}
}

func TestExchangeDeletedWhileRunning(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	s := newSink(t, r.config())
	batch := sinktest.Records(bound, "k", 0, 5)
	if err := s.Publish(soon(t), batch); err != nil {
		t.Fatal(err)
	}
	if err := r.admin.ExchangeDelete(r.name, false, false); err != nil {
		t.Fatal(err)
	}
	transient(t, s.Publish(soon(t), batch), r.name, "NOT_FOUND")
	// It is there again, without its bindings, which are not ours.
	for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
		if i == 0 {
			refused(t, err, relay.ReasonUnroutable)
		} else {
			behind(t, err)
		}
	}
	r.bind(t)
	if err := s.Publish(soon(t), batch); err != nil {
		t.Fatal(err)
	}
	if got := r.depth(t); got != 10 {
		t.Errorf("%d messages, want 10", got)
	}
}

func TestExchangeDeclaration(t *testing.T) {
	url := brokertest.RabbitMQ(t).URL
	r := newRoom(t, url, nil) // a topic exchange
	recs := sinktest.Records(bound, "k", 0, 1)
	cfg := r.config()
	cfg.ExchangeType = "direct"
	s := newSink(t, cfg)
	for range 2 { // as clear the second time
		transient(t, s.Publish(soon(t), recs), "RABBITMQ_EXCHANGE_TYPE", "RELAY_RABBITMQ_DECLARE=false", r.name, "direct")
		transient(t, s.Check(soon(t)), "RABBITMQ_EXCHANGE_TYPE")
	}
	cfg.Declare = false
	if err := newSink(t, cfg).Publish(soon(t), recs); err != nil {
		t.Errorf("taking the exchange as it is: %v", err)
	}
	cfg.Exchange = r.name + "-missing"
	transient(t, newSink(t, cfg).Publish(soon(t), recs), "RELAY_RABBITMQ_DECLARE=true", cfg.Exchange)
	cfg.Declare, cfg.ExchangeType = true, "no-such-type"
	transient(t, newSink(t, cfg).Publish(soon(t), recs), "RABBITMQ_EXCHANGE_TYPE=no-such-type")

	cfg = r.config()
	cfg.Exchange = r.name + "-new"
	s = newSink(t, cfg)
	if _, is := relay.Refused(s.Publish(soon(t), recs)); !is { // it has no queue yet
		t.Error("a message to a new exchange was not refused")
	}
	if err := r.admin.ExchangeDeclarePassive(cfg.Exchange, "topic", true, false, false, false, nil); err != nil {
		t.Errorf("exchange was not declared: %v", err)
	}
	if err := r.admin.ExchangeDelete(cfg.Exchange, false, false); err != nil {
		t.Error(err)
	}
}

func TestConnectionName(t *testing.T) {
	broker := ownBroker(t)
	r := newRoom(t, broker.URL, nil)
	cfg := r.config()
	cfg.WorkerID = "worker-7"
	if err := newSink(t, cfg).Check(soon(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection is listed", func() bool {
		out, err := broker.Ctl(soon(t), "list_connections", "client_properties", "timeout")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, `"sagaz-relay worker-7"`) {
				return strings.HasSuffix(strings.TrimSpace(line), "\t10") // the heartbeat
			}
		}
		return false
	})
}

// Lanes that come while the broker is away share one attempt to connect, and all get its error.
func TestNoBroker(t *testing.T) {
	cfg := DefaultConfig()
	cfg.URL = "amqp://user:hidden-secret@127.0.0.1:1/"
	s, log := newLoggedSink(t, cfg)
	var lanes sync.WaitGroup
	for range 8 {
		lanes.Go(func() {
			err := s.Publish(soon(t), sinktest.Records(bound, "k", 0, 1))
			transient(t, err, "127.0.0.1:1", "refused")
			noSecret(t, err.Error())
		})
	}
	lanes.Wait()
	err := s.Check(soon(t))
	transient(t, err, "127.0.0.1:1")
	noSecret(t, err.Error()+log.String())
}

func noSecret(t testing.TB, text string) {
	t.Helper()
	for _, secret := range []string{"hidden", "secret", "guest:guest"} {
		if strings.Contains(text, secret) {
			t.Errorf("a credential shows in %q", text)
		}
	}
}

// Random accidents under load from several lanes, each with keys of its own.
func TestNemesis(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	p, url := newProxy(t, r.url)
	cfg := r.config()
	cfg.URL, cfg.Window, cfg.ConfirmTimeout = url, 50, 200*time.Millisecond
	s := newSink(t, cfg)
	ctx := soon(t)
	want := map[string]int{}
	var mu sync.Mutex // guards want
	stop := make(chan struct{})
	var lanes sync.WaitGroup
	for lane := range 4 {
		lanes.Go(func() {
			key := fmt.Sprintf("lane%d", lane)
			for at := 0; ; at += 30 {
				if _, err := sinktest.Offer(ctx, s, sinktest.Records(bound, key, at, 30)); err != nil {
					t.Errorf("lane %d: %v", lane, err)
					return
				}
				mu.Lock()
				want[key] = at + 30
				mu.Unlock()
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	published := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, w := range want {
			n += w
		}
		return n
	}
	for range 25 {
		// An accident after each some hundred records.
		from := published()
		next := from + 100 + random.IntN(400)
		eventually(t, "more records", func() bool { return published() >= next || t.Failed() })
		switch random.IntN(4) {
		case 0:
			p.cut()
		case 1: // confirms late, but before the timeout or after it
			p.stall(toSink)
			pause(ctx, time.Duration(random.IntN(400))*time.Millisecond)
			p.resume()
		case 2:
			p.stall(toBroker)
			pause(ctx, time.Duration(random.IntN(400))*time.Millisecond)
			p.resume()
		case 3: // cut with bytes on the way
			p.stall(toBroker, toSink)
			pause(ctx, time.Duration(random.IntN(100))*time.Millisecond)
			p.cut()
			p.resume()
		}
	}
	close(stop)
	lanes.Wait()
	checkFirst(t, r.consume(t), want)
}

// pause is how long an accident lasts; nothing waits for it.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// checkFirst checks that nothing is missing and that the first deliveries are in order. A
// connection that was cut may bring a late repeat, so the repeats' own order is not checked.
func checkFirst(t *testing.T, got []sinktest.Delivered, want map[string]int) {
	t.Helper()
	next := map[string]int{}
	for _, d := range got {
		var p struct {
			Key string
			Seq int
		}
		if err := json.Unmarshal(d.Value, &p); err != nil {
			t.Fatal(err)
		}
		if p.Seq > next[p.Key] {
			t.Fatalf("key %s: %d came when %d was the next", p.Key, p.Seq, next[p.Key])
		}
		next[p.Key] = max(next[p.Key], p.Seq+1)
	}
	for key, n := range want {
		if next[key] < n {
			t.Errorf("key %s: %d of %d acknowledged records arrived", key, next[key], n)
		}
	}
}
