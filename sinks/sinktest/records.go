package sinktest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// place is the position of a record of the suite in the order of its key. It travels in the body,
// because a broker need not carry the key (AMQP does not).
type place struct {
	Key string `json:"key"`
	Seq int    `json:"seq"`
	Pad string `json:"pad,omitempty"`
}

// NewRecord makes a record for topic whose body has its key and its place in that key's order, for
// CheckOrder. Seq starts at 0.
func NewRecord(topic, key string, seq, pad int) *relay.Record {
	value, err := json.Marshal(place{Key: key, Seq: seq, Pad: strings.Repeat("x", pad)})
	if err != nil {
		panic(fmt.Sprintf("sinktest: encode %q %d: %v", key, seq, err))
	}
	rec := bare(topic, key, value)
	rec.Headers = []relay.Header{
		{Key: "event_id", Value: rec.EventID.String()},
		{Key: "event_type", Value: rec.EventType},
		{Key: "content_type", Value: rec.ContentType},
	}
	return rec
}

// Records makes n records for one key, first to first+n-1.
func Records(topic, key string, first, n int) []*relay.Record {
	recs := make([]*relay.Record, n)
	for i := range recs {
		recs[i] = NewRecord(topic, key, first+i, 100)
	}
	return recs
}

// Interleave mixes the keys' records into one batch, keeping each key's order.
func Interleave(perKey ...[]*relay.Record) []*relay.Record {
	var out []*relay.Record
	for i, more := 0, true; more; i++ {
		more = false
		for _, recs := range perKey {
			if i < len(recs) {
				out, more = append(out, recs[i]), true
			}
		}
	}
	return out
}

func bare(topic, key string, value []byte) *relay.Record {
	var id relay.UUID
	_, _ = rand.Read(id[:]) // never fails
	return &relay.Record{
		EventID:     id,
		EventType:   "OrderCreated",
		Topic:       topic,
		RoutingKey:  topic,
		Key:         key,
		Value:       value,
		ContentType: "application/json",
		Timestamp:   time.Date(2026, 11, 23, 7, 46, 59, 123456000, time.UTC),
	}
}

// Failed returns the records of the batch that err leaves to be offered again, in order, and those
// that it refuses. An error that is no *relay.BatchError leaves all of them.
func Failed(batch []*relay.Record, err error) (again, refused []*relay.Record) {
	if err == nil {
		return nil, nil
	}
	var be *relay.BatchError
	if !errors.As(err, &be) {
		return batch, nil
	}
	for i, rec := range batch {
		if i >= len(be.Errs) || be.Errs[i] == nil {
			continue
		}
		if _, ok := relay.Refused(be.Errs[i]); ok {
			refused = append(refused, rec)
		} else {
			again = append(again, rec)
		}
	}
	return again, refused
}

// Offer publishes the batch as a lane does: what has a transient error is offered again, in the
// same order, until ctx ends. It returns the number of failed offers and an error when ctx ended
// first or a record was refused.
func Offer(ctx context.Context, sink relay.Sink, batch []*relay.Record) (failures int, err error) {
	var last error // but for what the end of ctx itself brings
	for len(batch) > 0 {
		err := sink.Publish(ctx, batch)
		if ctx.Err() == nil {
			last = err
		}
		again, refused := Failed(batch, err)
		if len(refused) > 0 {
			return failures, fmt.Errorf("%d records refused: %w", len(refused), err)
		}
		if batch = again; len(batch) == 0 {
			return failures, nil
		}
		failures++
		select {
		case <-ctx.Done():
			return failures, fmt.Errorf("%d records not acknowledged: %w, last: %w", len(batch), context.Cause(ctx), last)
		case <-time.After(20 * time.Millisecond):
			// the lane's backoff: without it a broker that is away is asked in a busy loop
		}
	}
	return failures, nil
}

// CheckOrder fails the test unless each key's first `want[key]` places are all there and, per key,
// no record comes before its predecessor. Each is at most one further than the one before it. With
// repeats false each also comes once only.
func CheckOrder(t testing.TB, got []Delivered, want map[string]int, repeats bool) {
	t.Helper()
	perKey := map[string][]int{}
	for _, d := range got {
		var p place
		if err := json.Unmarshal(d.Value, &p); err != nil {
			t.Errorf("delivered body %.80q is none of the suite's: %v", d.Value, err)
			continue
		}
		perKey[p.Key] = append(perKey[p.Key], p.Seq)
	}
	for key, n := range want {
		seqs, last, highest := perKey[key], -1, -1
		for i, seq := range seqs {
			if seq > last+1 {
				t.Errorf("key %q: place %d came after %d: %v", key, seq, last, window(seqs, i))
				break
			}
			if !repeats && seq != last+1 {
				t.Errorf("key %q: place %d came again after %d: %v", key, seq, last, window(seqs, i))
				break
			}
			last, highest = seq, max(highest, seq)
		}
		if highest+1 < n {
			t.Errorf("key %q: got the first %d of %d acknowledged records", key, highest+1, n)
		}
		if last != highest {
			t.Errorf("key %q: ends at place %d after %d was there: a repeat stops short of the end", key, last, highest)
		}
	}
	for key := range perKey {
		if _, ok := want[key]; !ok {
			t.Errorf("key %q: delivered, never offered", key)
		}
	}
}

func window(seqs []int, i int) []int { return seqs[max(0, i-5):min(len(seqs), i+6)] }

// sameHeaders ignores the order, since an AMQP table has none.
func sameHeaders(a, b []relay.Header) bool {
	byKey := func(x, y relay.Header) int { return strings.Compare(x.Key, y.Key) }
	return slices.Equal(slices.SortedFunc(slices.Values(a), byKey), slices.SortedFunc(slices.Values(b), byKey))
}
