package sinktest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// testTail is the contract of relay.TailReader: what was acknowledged is found, as it would be sent
// again, in order, and nothing older.
func testTail(t *testing.T, h Harness) {
	target := h.open(t)
	sink, ok := target.Sink.(*closeOnce).Sink.(relay.TailReader)
	if !ok || !sink.ReadsTail() {
		t.Log("this broker cannot be read back")
		return
	}
	ctx := h.ctx(t)
	read := func(since time.Time, most int) (got []relay.Record, n int) {
		t.Helper()
		report, err := sink.ReadTail(ctx, relay.TailQuery{Topics: []string{target.Topic, "never-written-to"}, Since: since, Most: most}, func(rec *relay.Record) {
			own := *rec
			own.Value, own.Headers = slices.Clone(rec.Value), slices.Clone(rec.Headers)
			got = append(got, own)
		})
		if err != nil {
			t.Fatalf("read the tail: %v", err)
		}
		for _, u := range report.Unread {
			if most > 1000 {
				t.Errorf("%s is unread: %v", u.Place, u.Err)
			}
		}
		return got, report.Records
	}
	publish := func(from, n int) []*relay.Record {
		t.Helper()
		var keys [][]*relay.Record
		for _, key := range []string{"a", "b", "ü", "d", "e"} {
			keys = append(keys, Records(target.Topic, key, from, n))
		}
		batch := Interleave(keys...)
		noID := bare(target.Topic, "a", []byte(`{"of": "another client"}`))
		if err := target.Sink.Publish(ctx, append(slices.Clone(batch), noID)); err != nil {
			t.Fatalf("publish: %v", err)
		}
		return batch
	}
	want := func(what string, got []relay.Record, batch []*relay.Record) {
		t.Helper()
		if len(got) != len(batch) {
			t.Errorf("%s: %d records, want %d", what, len(got), len(batch))
		}
		sent, last := make(map[relay.UUID]int), make(map[string]int)
		for i, rec := range batch {
			sent[rec.EventID] = i
		}
		for i := range got {
			rec := &got[i]
			at, ok := sent[rec.EventID]
			if !ok {
				t.Fatalf("%s: event %s was not sent", what, rec.EventID)
			}
			if own := batch[at]; rec.Topic != own.Topic || rec.Key != own.Key || !bytes.Equal(rec.Value, own.Value) || !slices.Equal(rec.Headers, own.Headers) {
				t.Errorf("%s: record %d is not as it was sent: %+v", what, at, rec)
			}
			if before, ok := last[rec.Key]; ok && before > at {
				t.Errorf("%s: key %q out of order", what, rec.Key)
			}
			last[rec.Key] = at
		}
	}
	begin := time.Now()
	if got, _ := read(begin, 1<<20); len(got) != 0 {
		t.Errorf("%d records in a topic that has none", len(got))
	}
	first := publish(0, 40)
	got, n := read(begin, 1<<20)
	want("all", got, first)
	if n != len(first)+1 {
		t.Errorf("%d records were read, want %d and the one without an event's id", n, len(first))
	}
	time.Sleep(5 * time.Millisecond) // times have milliseconds
	middle := time.Now()
	second := publish(40, 10)
	got, _ = read(middle, 1<<20)
	want("the later ones", got, second)
	if got, _ := read(begin, 3); len(got) == 0 || len(got) >= len(first) {
		t.Errorf("%d records, want the last ones only", len(got))
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	within(t, h.Soon, "read the tail under a context that has ended", func() {
		report, err := sink.ReadTail(ended, relay.TailQuery{Topics: []string{target.Topic}, Since: begin, Most: 1 << 20}, func(*relay.Record) {})
		if err == nil && len(report.Unread) == 0 {
			t.Error("under a context that has ended: neither an error nor anything unread")
		}
	})
	if err := target.Sink.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sink.ReadTail(ctx, relay.TailQuery{Topics: []string{target.Topic}, Since: begin, Most: 1}, nil); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("after Close: %v, want an error", err)
	}
}
