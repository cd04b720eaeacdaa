package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// Several keys are under way at a time, as many as may be; of one key one request is.
func TestConcurrency(t *testing.T) {
	const most = 4
	r := newReceiver(t, nil)
	cfg := r.config()
	cfg.Concurrency = most
	s := open(t, cfg)
	var mu sync.Mutex
	full := make(chan struct{})
	underWay, peak, perKey := 0, 0, map[string]int{}
	r.set(func(w http.ResponseWriter, req *http.Request, _ []byte) bool {
		key := req.Header.Get("of-key")
		mu.Lock()
		underWay++
		perKey[key]++
		if peak = max(peak, underWay); underWay == most {
			select {
			case <-full:
			default:
				close(full)
			}
		}
		if perKey[key] > 1 {
			t.Errorf("key %s: %d requests at a time", key, perKey[key])
		}
		mu.Unlock()
		select {
		case <-full: // the first ones wait until as many are here as may be
		case <-time.After(patience):
			t.Error("no more requests came")
		}
		mu.Lock()
		defer mu.Unlock()
		underWay--
		perKey[key]--
		return true
	})
	want := map[string]int{}
	var lanes sync.WaitGroup
	for lane := range 3 {
		var keys [][]*relay.Record
		for n := range 4 {
			key := fmt.Sprintf("%d-%d", lane, n)
			recs := sinktest.Records("OrderCreated", key, 0, 10)
			for _, rec := range recs {
				rec.Headers = append(rec.Headers, relay.Header{Key: "of_key", Value: key})
			}
			keys, want[key] = append(keys, recs), 10
		}
		lanes.Go(func() {
			if err := s.Publish(soon(t), sinktest.Interleave(keys...)); err != nil {
				t.Error(err)
			}
		})
	}
	lanes.Wait()
	if peak != most {
		t.Errorf("%d requests at a time, want %d", peak, most)
	}
	var got []sinktest.Delivered
	for _, req := range r.got() {
		got = append(got, sinktest.Delivered{Value: req.body})
	}
	sinktest.CheckOrder(t, got, want, false)
}

// A slow receiver's batch comes back in parts, each with what was acknowledged, and no failure.
func TestLater(t *testing.T) {
	r := newReceiver(t, nil)
	cfg := r.config()
	cfg.slice = 50 * time.Millisecond
	s := open(t, cfg)
	r.set(func(http.ResponseWriter, *http.Request, []byte) bool {
		time.Sleep(20 * time.Millisecond) // what it is about: a receiver that takes its time
		return true
	})
	batch := sinktest.Interleave(sinktest.Records("OrderCreated", "a", 0, 12), sinktest.Records("OrderCreated", "b", 0, 2))
	offers := 0
	for left := batch; len(left) > 0; offers++ {
		errs := outcomes(t, len(left), s.Publish(soon(t), left))
		var again []*relay.Record
		for i, err := range errs {
			if err != nil && !errors.Is(err, relay.ErrLater) {
				t.Fatalf("offer %d, record %d: %v", offers, i, err)
			}
			if err != nil {
				again = append(again, left[i])
			}
		}
		if len(again) == len(left) {
			t.Fatalf("offer %d: nothing was sent", offers)
		}
		left = again
	}
	if offers < 2 {
		t.Errorf("%d offers, want several", offers)
	}
	sinktest.CheckOrder(t, r.consume(t), map[string]int{"a": 12, "b": 2}, false)
}

// What is under way when the context ends may finish for a moment, and its answer counts; nothing
// more begins.
func TestGrace(t *testing.T) {
	r := newReceiver(t, nil)
	s := open(t, r.config())
	ctx, cancel := context.WithCancelCause(soon(t))
	stopping := errors.New("the relay stops")
	r.set(func(http.ResponseWriter, *http.Request, []byte) bool {
		cancel(stopping)
		time.Sleep(50 * time.Millisecond) // the answer comes after the end
		return true
	})
	errs := outcomes(t, 3, s.Publish(ctx, sinktest.Records("OrderCreated", "a", 0, 3)))
	if errs[0] != nil || !errors.Is(errs[1], stopping) || !errors.Is(errs[2], stopping) || r.count() != 1 {
		t.Errorf("%v, %d requests, want the first one acknowledged and the cause for the others", errs, r.count())
	}
}

// The fence is asked when there is a connection, after every wait for it.
func TestFenceAfterConnecting(t *testing.T) {
	for _, body := range []string{"{}", ""} {
		r := newReceiver(t, nil)
		s := open(t, r.config())
		asked := 0
		ctx := relay.WithFence(soon(t), func() bool { asked++; return asked < 2 })
		rec := sinktest.NewRecord("OrderCreated", "a", 0, 0)
		rec.Value = []byte(body)
		err := outcomes(t, 1, s.Publish(ctx, []*relay.Record{rec}))[0]
		if !errors.Is(err, relay.ErrFence) || asked != 2 {
			t.Errorf("body %q: %v after %d questions, want ErrFence after 2", body, err, asked)
		}
		if r.count() > 0 {
			t.Errorf("body %q: a request arrived", body)
		}
	}
}
