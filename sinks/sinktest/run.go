package sinktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/relay"
)

// Delivered is one record as a consumer of the broker got it.
type Delivered struct {
	Topic   string // Kafka topic, AMQP routing key
	Key     string // empty with Harness.NoKey
	Value   []byte
	Headers []relay.Header
}

// Target is one fresh sink and the place it delivers to.
type Target struct {
	Sink relay.Sink
	// Topic is what the suite writes into Record.Topic and Record.RoutingKey.
	Topic string
	// Consume returns everything that the broker holds for Topic, in the broker's order within each
	// partition or queue. The suite calls it once, after the last Publish has returned.
	Consume func(t testing.TB) []Delivered
	// Refused makes a record that the broker will never take, for Topic or another topic, and
	// returns the reason to expect. Nil when the broker takes everything.
	Refused func(key string) (*relay.Record, relay.Reason)
	// Stall makes the broker (or the way there) take nothing and answer nothing until resume is
	// called. Nil when that cannot be arranged.
	Stall func(t testing.TB) (resume func())
	// Faults are accidents that a sink survives by reconnecting: a restart, a cut connection. Each
	// returns when the broker can be reached again.
	Faults map[string]func(t testing.TB)
}

// Harness is how the suite reaches one kind of broker.
type Harness struct {
	// New makes a target. Its Sink is not yet closed when the test ends; the suite closes it. What
	// else New opens it ends by t.Cleanup, goroutines included: the suite looks for leaks after
	// that.
	New func(t testing.TB) *Target
	// NoKey is set when the broker does not carry Record.Key.
	NoKey bool
	// Deduplicates is set when the broker drops a record whose event it has already.
	Deduplicates bool
	// Soon is how long a Publish may take to return after its context ended, and Close to return
	// while the broker is stalled. 0 means 5 s.
	Soon time.Duration
	// NotOurs are goroutines that a fault starts and that are not the sink's: those of a restarted
	// broker.
	NotOurs []goleak.Option
	// Patience is how long the suite waits for what must come in the end. 0 means 60 s.
	Patience time.Duration
}

func (h Harness) withDefaults() Harness {
	if h.Soon == 0 {
		h.Soon = 5 * time.Second
	}
	if h.Patience == 0 {
		h.Patience = time.Minute
	}
	return h
}

// RunFaults runs the part of Run that is about Target.Faults.
func RunFaults(t *testing.T, h Harness) { testFaults(t, h.withDefaults()) }

// Run checks the contract of relay.Sink.
func Run(t *testing.T, h Harness) {
	h = h.withDefaults()
	for _, sub := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"EmptyBatch", testEmptyBatch},
		{"Fidelity", testFidelity},
		{"Order", testOrder},
		{"Lanes", testLanes},
		{"Refused", testRefused},
		{"RefusedAnywhere", testRefusedAnywhere},
		{"Fenced", testFenced},
		{"CancelledBefore", testCancelledBefore},
		{"CancelledDuring", testCancelledDuring},
		{"CancelledWhileStalled", testCancelledWhileStalled},
		{"CheckWhileStalled", testCheckWhileStalled},
		{"CloseUnused", testCloseUnused},
		{"CloseWhilePublishing", testCloseWhilePublishing},
		{"CloseWhileStalled", testCloseWhileStalled},
		{"PublishAfterClose", testPublishAfterClose},
		{"Tail", testTail},
		{"Faults", testFaults},
	} {
		t.Run(sub.name, func(t *testing.T) { sub.run(t, h) })
	}
}

// open makes a target whose sink is closed, and whose goroutines are looked for, when the test
// ends.
func (h Harness) open(t *testing.T) *Target {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { // runs last
		if err := goleak.Find(append(h.NotOurs, leaks)...); err != nil {
			t.Errorf("goroutines outlive Close: %v", err)
		}
	})
	target := h.New(t)
	target.Sink = &closeOnce{Sink: target.Sink}
	t.Cleanup(func() { _ = target.Sink.Close() }) // first of all, before what New opened goes away
	return target
}

// closeOnce lets a test close early although the suite closes at the end: the contract allows one
// call.
type closeOnce struct {
	relay.Sink
	once sync.Once
	err  error
}

func (c *closeOnce) Close() error {
	c.once.Do(func() { c.err = c.Sink.Close() })
	return c.err
}

func (h Harness) ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), h.Patience)
	t.Cleanup(cancel)
	return ctx
}

// within fails the test when f, which does what, takes longer than d.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		t.Fatalf("%s: still not done after %s", what, d)
	}
}

func testEmptyBatch(t *testing.T, h Harness) {
	target := h.open(t)
	for _, batch := range [][]*relay.Record{nil, {}} {
		if err := target.Sink.Publish(h.ctx(t), batch); err != nil {
			t.Errorf("publish of no records: %v", err)
		}
	}
	name := target.Sink.(*closeOnce).Name()
	if name == "" || name != target.Sink.Name() {
		t.Errorf("name %q: want one that stays and is not empty", name)
	}
}

func testFidelity(t *testing.T, h Harness) {
	target := h.open(t)
	ctx := h.ctx(t)
	if c, ok := target.Sink.(*closeOnce).Sink.(relay.Checker); ok {
		if err := c.Check(ctx); err != nil {
			t.Errorf("check of a broker that is up: %v", err)
		}
	}
	json := func(i, size int) []byte {
		body := fmt.Appendf(nil, `{"n": %d, "pad": "`, i)
		return append(append(body, bytes.Repeat([]byte("p"), max(0, size-len(body)-2))...), `"}`...)
	}
	headers := []relay.Header{{Key: "event_id", Value: "x"}, {Key: "ünïcödé", Value: "Überweisung 注文 ✓"}, {Key: "empty", Value: ""}, {Key: "quoted", Value: "a \"b\" \\ \n\t\x01"}}
	batch := []*relay.Record{
		bare(target.Topic, "k", []byte("7")),
		bare(target.Topic, "", json(1, 100)),
		bare(target.Topic, "Grüße-注文-✓", []byte(`{"name": "Jürgen 注文 \u0041 \"q\"", "amount": 12345678901234567890.1200}`)),
		bare(target.Topic, strings.Repeat("k", 255), json(2, 1000)),
		bare(target.Topic, "big", json(3, 200_000)),
		bare(target.Topic, "no json", []byte{0xff, 0x00, 0x0a, 0x80}),
		bare(target.Topic, "lines", []byte("{\"a\":\n 1}")),
		bare(target.Topic, "a key for the order", json(4, 100)),
		bare(target.Topic, "a key, and none in the message", json(5, 100)),
	}
	messageKey, none := "a message key", ""
	batch[len(batch)-2].OwnKey, batch[len(batch)-1].OwnKey = &messageKey, &none
	for i := range batch {
		if i != 1 { // one without any
			batch[i].Headers = headers
		}
	}
	before := make([]relay.Record, len(batch))
	for i, rec := range batch {
		before[i] = *rec
		before[i].Value, before[i].Headers = slices.Clone(rec.Value), slices.Clone(rec.Headers)
	}
	if err := target.Sink.Publish(ctx, batch); err != nil {
		t.Fatalf("publish: %v", err)
	}
	for i, rec := range batch {
		if !bytes.Equal(rec.Value, before[i].Value) || !slices.Equal(rec.Headers, before[i].Headers) || rec.Key != before[i].Key || rec.Topic != before[i].Topic {
			t.Errorf("record %d changed by Publish: records are shared and read-only", i)
		}
	}
	got := map[string]Delivered{}
	for _, d := range target.Consume(t) {
		got[string(d.Value)] = d
	}
	if len(got) != len(batch) {
		t.Errorf("got %d different bodies, want %d", len(got), len(batch))
	}
	for i, rec := range batch {
		d, ok := got[string(rec.Value)]
		if !ok {
			t.Errorf("record %d: body of %d bytes did not arrive as it was: %.60q", i, len(rec.Value), rec.Value)
			continue
		}
		if d.Topic != target.Topic {
			t.Errorf("record %d: topic %q, want %q", i, d.Topic, target.Topic)
		}
		if want := rec.MessageKey(); !h.NoKey && d.Key != want {
			t.Errorf("record %d: key %q, want %q", i, d.Key, want)
		}
		if !sameHeaders(d.Headers, rec.Headers) {
			t.Errorf("record %d: headers %q, want %q", i, d.Headers, rec.Headers)
		}
	}
}

func testOrder(t *testing.T, h Harness) {
	target := h.open(t)
	ctx := h.ctx(t)
	want := map[string]int{}
	for _, size := range []int{1, 2, 7, 100, 1, 33} { // per key and batch
		keys := [][]*relay.Record{}
		for _, key := range []string{"a", "b", "ü", ""} {
			keys = append(keys, Records(target.Topic, key, want[key], size))
			want[key] += size
		}
		if err := target.Sink.Publish(ctx, Interleave(keys...)); err != nil {
			t.Fatalf("publish: %v", err)
		}
	}
	got := target.Consume(t)
	if !h.NoKey { // without a key a broker is free to spread the records
		delete(want, "")
		got = slices.DeleteFunc(got, func(d Delivered) bool { return d.Key == "" })
	}
	CheckOrder(t, got, want, false)
}

func testLanes(t *testing.T, h Harness) {
	target := h.open(t)
	ctx := h.ctx(t)
	want := map[string]int{}
	var lanes sync.WaitGroup
	for lane := range 6 {
		keys := []string{fmt.Sprintf("lane%d-a", lane), fmt.Sprintf("lane%d-b", lane), fmt.Sprintf("lane%d-c", lane)}
		for _, key := range keys {
			want[key] = 200
		}
		lanes.Go(func() {
			for first := 0; first < 200; first += 20 {
				batch := Interleave(Records(target.Topic, keys[0], first, 20), Records(target.Topic, keys[1], first, 20), Records(target.Topic, keys[2], first, 20))
				if err := target.Sink.Publish(ctx, batch); err != nil {
					t.Errorf("lane %d: publish: %v", lane, err)
					return
				}
			}
		})
	}
	lanes.Wait()
	CheckOrder(t, target.Consume(t), want, false)
}

func testRefused(t *testing.T, h Harness) {
	target := h.open(t)
	if target.Refused == nil {
		t.Log("this broker takes every record: nothing to refuse")
		return
	}
	bad, reason := target.Refused("a")
	first, _ := target.Refused("c") // the first of its key, to a sink that knows nothing yet
	a, b, c := Records(target.Topic, "a", 0, 4), Records(target.Topic, "b", 0, 4), Records(target.Topic, "c", 0, 2)
	const taken, refused, behind = "acknowledged", "refused", "behind"
	batch := []*relay.Record{first, a[0], b[0], c[0], bad, a[1], b[1], a[2], c[1], b[2], a[3], b[3]}
	want := []string{refused, taken, taken, behind, refused, behind, taken, behind, behind, taken, behind, taken}
	const rounds = 3
	for round := range rounds { // the sink is as good after a refusal as before
		err := target.Sink.Publish(h.ctx(t), batch)
		var be *relay.BatchError
		if !errors.As(err, &be) || len(be.Errs) != len(batch) {
			t.Fatalf("round %d: got %v, want a BatchError with %d entries", round, err, len(batch))
		}
		for i, err := range be.Errs {
			got, r := taken, (*relay.RefusedError)(nil)
			switch is := false; {
			case errors.Is(err, relay.ErrBehind):
				got = behind
			case err != nil:
				got = err.Error()
				if r, is = relay.Refused(err); is {
					got = refused
				}
			}
			if got != want[i] {
				t.Errorf("round %d, record %d: %s, want it %s", round, i, got, want[i])
			}
			if r != nil && r.Reason != reason {
				t.Errorf("round %d, record %d: reason %q, want %q", round, i, r.Reason, reason)
			}
		}
		if err := target.Sink.Publish(h.ctx(t), []*relay.Record{bad}); err == nil {
			t.Errorf("round %d: refused record alone: acknowledged", round)
		}
	}
	// What waited can go once its turn has come.
	if err := target.Sink.Publish(h.ctx(t), append(a[1:], c...)); err != nil {
		t.Errorf("what was behind the refused ones: %v", err)
	}
	got := target.Consume(t)
	CheckOrder(t, got, map[string]int{"a": 4, "b": 4, "c": 2}, true) // each round sent a[0] and b
	arrivals := rounds*(1+4) + 5
	if h.Deduplicates {
		arrivals = 1 + 4 + 5
	}
	if len(got) != arrivals {
		t.Errorf("got %d records, want %d: nothing goes out that is behind a refused one", len(got), arrivals)
	}
}

// Batches with refused records at random places, and what was held offered again at the front of
// the next. Each record arrives once, in order.
func testRefusedAnywhere(t *testing.T, h Harness) {
	target := h.open(t)
	if target.Refused == nil {
		t.Log("this broker takes every record: nothing to refuse")
		return
	}
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	seqs, bad, again := map[string]int{}, map[*relay.Record]bool{}, []*relay.Record(nil)
	for round := 0; round < 25 || len(again) > 0; round++ {
		batch := again
		for range map[bool]int{true: rnd.IntN(60), false: 0}[round < 25] {
			key := string(rune('a' + rnd.IntN(6)))
			if rnd.IntN(6) == 0 {
				rec, _ := target.Refused(key)
				bad[rec] = true
				batch = append(batch, rec)
				continue
			}
			batch = append(batch, NewRecord(target.Topic, key, seqs[key], 20))
			seqs[key]++
		}
		if len(batch) == 0 {
			continue
		}
		err := target.Sink.Publish(h.ctx(t), batch)
		var be *relay.BatchError
		if err != nil && (!errors.As(err, &be) || len(be.Errs) != len(batch)) {
			t.Fatalf("seed %d, round %d: got %v, want a BatchError with %d entries", seed, round, err, len(batch))
		}
		again = nil
		held := map[string]bool{}
		for i, rec := range batch {
			var fate error
			if be != nil {
				fate = be.Errs[i]
			}
			_, refused := relay.Refused(fate)
			switch {
			case held[rec.Key]:
				if again = append(again, rec); !errors.Is(fate, relay.ErrBehind) {
					t.Fatalf("seed %d, round %d, record %d: %v, want it held behind a refused one", seed, round, i, fate)
				}
			case bad[rec]:
				if held[rec.Key] = true; !refused {
					t.Fatalf("seed %d, round %d, record %d: %v, want it refused", seed, round, i, fate)
				}
			case fate != nil:
				t.Fatalf("seed %d, round %d, record %d: %v, want it acknowledged", seed, round, i, fate)
			}
		}
	}
	CheckOrder(t, target.Consume(t), seqs, false)
}

func testCancelledBefore(t *testing.T, h Harness) {
	target := h.open(t)
	ctx, cancel := context.WithCancel(h.ctx(t))
	cancel()
	recs := Records(target.Topic, "a", 0, 5)
	within(t, h.Soon, "publish under a context that has ended", func() {
		if err := target.Sink.Publish(ctx, recs); err == nil {
			t.Error("publish under a context that has ended: no error")
		}
	})
	if _, err := Offer(h.ctx(t), target.Sink, recs); err != nil {
		t.Fatalf("publish afterwards: %v", err)
	}
	CheckOrder(t, target.Consume(t), map[string]int{"a": 5}, true)
}

// What may not be sent any more is not sent, whenever that becomes true; what was acknowledged
// before stays so.
func testFenced(t *testing.T, h Harness) {
	t.Run("Always", func(t *testing.T) {
		target := h.open(t)
		recs := Records(target.Topic, "a", 0, 50)
		for range 2 { // the first one finds no connection
			err := target.Sink.Publish(relay.WithFence(h.ctx(t), func() bool { return false }), recs)
			if again, refused := Failed(recs, err); len(again) != len(recs) || len(refused) > 0 {
				t.Errorf("behind the fence: %d of %d records failed, %d were refused: %v", len(again), len(recs), len(refused), err)
			}
		}
		if _, err := Offer(h.ctx(t), target.Sink, recs); err != nil {
			t.Fatalf("publish afterwards: %v", err)
		}
		CheckOrder(t, target.Consume(t), map[string]int{"a": 50}, false)
	})
	t.Run("Suddenly", func(t *testing.T) {
		target := h.open(t)
		want := map[string]int{}
		for _, yes := range []int64{1, 2, 3, 20, 100} {
			var keys [][]*relay.Record
			for _, key := range []string{"a", "b", "c"} {
				keys = append(keys, Records(target.Topic, key, want[key], 100))
				want[key] += 100
			}
			batch := Interleave(keys...)
			var left atomic.Int64
			left.Store(yes)
			err := target.Sink.Publish(relay.WithFence(h.ctx(t), func() bool { return left.Add(-1) >= 0 }), batch)
			again, refused := Failed(batch, err)
			if len(refused) > 0 {
				t.Fatalf("records refused because of a fence: %v", err)
			}
			if _, err := Offer(h.ctx(t), target.Sink, again); err != nil {
				t.Fatalf("publish afterwards: %v", err)
			}
		}
		CheckOrder(t, target.Consume(t), want, true)
	})
}

func testCancelledDuring(t *testing.T, h Harness) {
	target := h.open(t)
	want := map[string]int{}
	for round := range 10 {
		var keys [][]*relay.Record
		for _, key := range []string{"a", "b"} {
			keys = append(keys, Records(target.Topic, key, want[key], 300))
			want[key] += 300
		}
		batch := Interleave(keys...)
		ctx, cancel := context.WithCancel(h.ctx(t))
		result := make(chan error, 1)
		go func() { result <- target.Sink.Publish(ctx, batch) }()
		// Any moment will do, and each round another: what the sink returns must be true at all of
		// them.
		timer := time.AfterFunc(time.Duration(round)*500*time.Microsecond, cancel)
		var err error
		select {
		case err = <-result:
		case <-time.After(h.Patience):
			t.Fatalf("publish: not back %s after its context ended", h.Patience)
		}
		timer.Stop()
		cancel()
		// What is acknowledged is not offered again, so a false acknowledgement shows as a gap.
		again, refused := Failed(batch, err)
		if len(refused) > 0 {
			t.Fatalf("records refused because of a cancel: %v", err)
		}
		if _, err := Offer(h.ctx(t), target.Sink, again); err != nil {
			t.Fatalf("publish again: %v", err)
		}
	}
	CheckOrder(t, target.Consume(t), want, true)
}

func testCancelledWhileStalled(t *testing.T, h Harness) {
	target := h.open(t)
	if target.Stall == nil {
		t.Log("this broker cannot be stalled")
		return
	}
	// A connection that exists already, and one that is yet to be made.
	if err := target.Sink.Publish(h.ctx(t), Records(target.Topic, "a", 0, 5)); err != nil {
		t.Fatalf("publish: %v", err)
	}
	batch := Records(target.Topic, "a", 5, 50)
	resume := target.Stall(t)
	for range 2 { // the second finds what the first left behind
		ctx, cancel := context.WithTimeout(h.ctx(t), 300*time.Millisecond)
		var err error
		within(t, h.Soon+300*time.Millisecond, "publish to a stalled broker, context ended", func() { err = target.Sink.Publish(ctx, batch) })
		cancel()
		again, _ := Failed(batch, err)
		if len(again) != len(batch) {
			t.Errorf("%d of %d records count as failed although nothing can have been acknowledged: %v", len(again), len(batch), err)
		}
	}
	resume()
	if _, err := Offer(h.ctx(t), target.Sink, batch); err != nil {
		t.Fatalf("publish after the stall: %v", err)
	}
	CheckOrder(t, target.Consume(t), map[string]int{"a": 55}, true)
}

// A check obeys its context while the broker hangs, whatever a publish under way waits for.
func testCheckWhileStalled(t *testing.T, h Harness) {
	target := h.open(t)
	checker, ok := target.Sink.(*closeOnce).Sink.(relay.Checker)
	if target.Stall == nil || !ok {
		t.Log("this broker cannot be stalled, or its sink cannot be checked")
		return
	}
	recs := Records(target.Topic, "a", 0, 10)
	if err := target.Sink.Publish(h.ctx(t), recs[:5]); err != nil {
		t.Fatalf("publish: %v", err)
	}
	resume := target.Stall(t)
	defer resume()
	publishing, cancel := context.WithCancel(h.ctx(t))
	result := make(chan error, 1)
	go func() { result <- target.Sink.Publish(publishing, recs[5:]) }()
	for range 2 { // the second finds what the first left behind
		ctx, cancel := context.WithTimeout(h.ctx(t), 300*time.Millisecond)
		within(t, h.Soon+300*time.Millisecond, "check while the broker is stalled", func() { _ = checker.Check(ctx) })
		cancel()
	}
	cancel()
	within(t, h.Soon, "publish to a stalled broker, cancelled", func() { <-result })
	resume()
	if _, err := Offer(h.ctx(t), target.Sink, recs[5:]); err != nil {
		t.Fatalf("publish after the stall: %v", err)
	}
	CheckOrder(t, target.Consume(t), map[string]int{"a": 10}, true)
}

func testCloseUnused(t *testing.T, h Harness) {
	target := h.open(t)
	within(t, h.Soon, "close of an unused sink", func() {
		if err := target.Sink.Close(); err != nil {
			t.Errorf("close of an unused sink: %v", err)
		}
	})
}

func testCloseWhilePublishing(t *testing.T, h Harness) {
	target := h.open(t)
	ctx := h.ctx(t)
	var lanes sync.WaitGroup
	var mu sync.Mutex
	want := map[string]int{} // guarded by mu: acknowledged per key
	var rounds atomic.Int64
	underWay := make(chan struct{})
	for lane := range 4 {
		key := fmt.Sprintf("k%d", lane)
		lanes.Go(func() {
			for first := 0; ctx.Err() == nil; first += 50 {
				batch := Records(target.Topic, key, first, 50)
				err := target.Sink.Publish(ctx, batch)
				again, _ := Failed(batch, err)
				mu.Lock()
				want[key] += len(batch) - len(again)
				mu.Unlock()
				if rounds.Add(1) == 12 {
					close(underWay)
				}
				if err != nil {
					return
				}
			}
			t.Errorf("lane %d: no publish failed although the sink was closed", lane)
		})
	}
	select {
	case <-underWay:
	case <-ctx.Done():
		t.Fatal("no 12 batches published")
	}
	within(t, h.Soon, "close while publishing", func() {
		if err := target.Sink.Close(); err != nil {
			t.Logf("close while publishing: %v", err)
		}
	})
	within(t, h.Soon, "publish after close", lanes.Wait)
	got := target.Consume(t)
	// Of the batch that Close cut short more may have arrived than was acknowledged, but in order.
	CheckOrder(t, got, want, false)
}

func testCloseWhileStalled(t *testing.T, h Harness) {
	target := h.open(t)
	if target.Stall == nil {
		t.Log("this broker cannot be stalled")
		return
	}
	if err := target.Sink.Publish(h.ctx(t), Records(target.Topic, "a", 0, 5)); err != nil {
		t.Fatalf("publish: %v", err)
	}
	resume := target.Stall(t)
	defer resume()
	result := make(chan error, 1)
	ctx := h.ctx(t)
	go func() { result <- target.Sink.Publish(ctx, Records(target.Topic, "a", 5, 50)) }()
	within(t, h.Soon, "close while the broker is stalled", func() { _ = target.Sink.Close() })
	within(t, h.Soon, "publish when its sink was closed under it", func() {
		if err := <-result; err == nil {
			t.Error("publish to a stalled broker: no error after Close")
		}
	})
}

func testPublishAfterClose(t *testing.T, h Harness) {
	target := h.open(t)
	if err := target.Sink.Publish(h.ctx(t), Records(target.Topic, "a", 0, 1)); err != nil {
		t.Fatalf("publish: %v", err)
	}
	if err := target.Sink.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	within(t, h.Soon, "publish after close", func() {
		if err := target.Sink.Publish(h.ctx(t), Records(target.Topic, "a", 1, 1)); err == nil {
			t.Error("publish after close: no error")
		}
	})
	CheckOrder(t, target.Consume(t), map[string]int{"a": 1}, false)
}

func testFaults(t *testing.T, h Harness) {
	// The names come from a target of their own, so that each fault meets a fresh sink.
	names := slices.Sorted(maps.Keys(h.open(t).Faults))
	if len(names) == 0 {
		t.Log("no faults are arranged for this broker")
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) { testFault(t, h, name) })
	}
}

func testFault(t *testing.T, h Harness, name string) {
	target := h.open(t)
	ctx := h.ctx(t)
	var lanes sync.WaitGroup
	var mu sync.Mutex
	want, failures := map[string]int{}, 0 // guarded by mu
	over := make(chan struct{})           // closed when the fault is over
	var rounds atomic.Int64
	underWay := make(chan struct{})
	for lane := range 3 {
		keys := []string{fmt.Sprintf("lane%d-a", lane), fmt.Sprintf("lane%d-b", lane)}
		lanes.Go(func() {
			after := 0
			for first := 0; after < 5; first += 20 { // go on for some batches after the fault
				batch := Interleave(Records(target.Topic, keys[0], first, 20), Records(target.Topic, keys[1], first, 20))
				failed, err := Offer(ctx, target.Sink, batch)
				if err != nil {
					t.Errorf("lane %d: offer again until acknowledged: %v", lane, err)
					return
				}
				mu.Lock()
				want[keys[0]], want[keys[1]] = first+20, first+20
				failures += failed
				mu.Unlock()
				if rounds.Add(1) == 9 {
					close(underWay)
				}
				select {
				case <-over:
					after++
				default:
				}
			}
		})
	}
	select {
	case <-underWay:
	case <-ctx.Done():
		t.Fatal("no 9 batches published before the fault")
	}
	target.Faults[name](t)
	close(over)
	lanes.Wait()
	t.Logf("%d offers failed on the way", failures)
	CheckOrder(t, target.Consume(t), want, true)
}
