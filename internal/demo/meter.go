package demo

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// stopwatch takes, for each event, the time from the moment its COMMIT is sent to the moment the
// sink has acknowledged it. Both are read off one clock. The database's own sync to disk is in it;
// the way back of COMMIT's answer is not.
type stopwatch struct {
	mu      sync.Mutex // guards what follows
	sent    map[relay.UUID]time.Time
	times   durations
	arrived int // records acknowledged
}

func newStopwatch() *stopwatch { return &stopwatch{sent: make(map[relay.UUID]time.Time)} }

// start is called right before COMMIT.
func (w *stopwatch) start(ids []relay.UUID) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		w.sent[id] = now
	}
}

// stop is called when the sink has acknowledged; errs is nil, or has one entry for each record.
func (w *stopwatch) stop(batch []*relay.Record, errs []error) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, rec := range batch {
		if errs != nil && errs[i] != nil {
			continue
		}
		w.arrived++
		if at, ok := w.sent[rec.EventID]; ok {
			w.times.add(now.Sub(at))
			delete(w.sent, rec.EventID)
		}
	}
}

// look returns the number of acknowledged records and all times so far.
func (w *stopwatch) look() (int, durations) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.arrived, w.times
}

// timedSink stops the watch for what the sink acknowledges.
type timedSink struct {
	relay.Sink
	watch *stopwatch
}

func (s *timedSink) Publish(ctx context.Context, batch []*relay.Record) error {
	err := s.Sink.Publish(ctx, batch)
	var some *relay.BatchError
	switch {
	case err == nil:
		s.watch.stop(batch, nil)
	case errors.As(err, &some):
		s.watch.stop(batch, some.Errs)
	}
	return err
}

// durations counts durations in classes that are 3 % wide, from 10 µs to minutes.
type durations struct {
	classes [560]int64
	n       int64
	longest time.Duration
}

const (
	shortestClass = 10 * time.Microsecond
	classWidth    = 1.03
)

func (d *durations) add(took time.Duration) {
	class := 0
	if took > shortestClass {
		class = int(math.Log(float64(took)/float64(shortestClass)) / math.Log(classWidth))
	}
	d.classes[min(class, len(d.classes)-1)]++
	d.n++
	d.longest = max(d.longest, took)
}

// quantile returns the upper end of the class that the q-th part of all reaches; 0 for no
// durations.
func (d *durations) quantile(q float64) time.Duration {
	left := int64(math.Ceil(q * float64(d.n)))
	for class, n := range d.classes {
		if left -= n; left <= 0 && n > 0 {
			return min(time.Duration(float64(shortestClass)*math.Pow(classWidth, float64(class+1))), d.longest)
		}
	}
	return 0
}

// since returns what was added after earlier, a copy taken before. Its longest is that of all.
func (d *durations) since(earlier *durations) durations {
	diff := *d
	for class, n := range earlier.classes {
		diff.classes[class] -= n
	}
	diff.n -= earlier.n
	return diff
}
