package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// lane carries the events of its keys to one sink, in order, one batch at a time.
//
// Its queue is not bounded by itself: everything in it is in flight, so the in-flight budget bounds it, and whoever
// pushes never waits.
type lane struct {
	sink    Sink
	health  *sinkHealth
	cfg     *Config
	log     hclog.Logger
	valid   func() bool // the lease's; asked before every offer
	settle  func(sink string, batch []*flight, errs []error)
	metrics *sinkMetrics

	wake chan struct{} // capacity one: "the queue was empty and is not any more"

	failing bool // the last offer was not taken; owned by run, known to health

	mu    sync.Mutex // guards queue
	queue []*flight
}

// push puts events behind all others.
func (l *lane) push(flights []*flight) {
	l.mu.Lock()
	wasEmpty := len(l.queue) == 0
	l.queue = append(l.queue, flights...)
	l.mu.Unlock()
	if wasEmpty {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// take moves the front of the queue, up to the batch limits, into buf.
func (l *lane) take(buf []*flight) []*flight {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, size := 0, 0
	for n < len(l.queue) && n < l.cfg.BatchSize {
		size += l.queue[n].size
		if n > 0 && size > l.cfg.BatchBytes {
			break
		}
		n++
	}
	buf = append(buf, l.queue[:n]...)
	rest := copy(l.queue, l.queue[n:])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]
	return buf
}

// run publishes until ctx ends. It returns ErrLeaseLost when the lease is past its time: whatever has not been
// acknowledged by then belongs to the next owner.
func (l *lane) run(ctx context.Context) error {
	var (
		batch   []*flight
		records []*Record
		backoff = Backoff{Min: l.cfg.BackoffMin, Max: l.cfg.BackoffMax}
	)
	defer func() {
		if l.failing {
			l.health.left()
		}
	}()
	for {
		// What failed is offered again alone, before anything behind it.
		if len(batch) == 0 {
			batch = l.take(batch)
		}
		if len(batch) == 0 {
			select {
			case <-l.wake:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if !l.valid() {
			return ErrLeaseLost
		}

		records = records[:0]
		for _, f := range batch {
			records = append(records, &f.rec)
		}
		started := time.Now()
		pctx, cancel := context.WithTimeoutCause(ctx, l.cfg.PublishTimeout,
			fmt.Errorf("publish to %s: no answer within %s", l.sink.Name(), l.cfg.PublishTimeout))
		err := l.sink.Publish(WithFence(pctx, l.valid), records)
		cancel()
		took := time.Since(started)
		clear(records)

		rest := l.outcome(batch, err, took)
		if len(rest) == 0 {
			backoff.Reset()
			if l.failing {
				l.failing = false
				l.health.recovered(l.log)
			}
			clear(batch)
			batch = batch[:0]
			continue
		}
		clear(batch[len(rest):])
		batch = rest
		if ctx.Err() != nil {
			return nil // a cancelled offer says nothing about the sink
		}
		if !l.valid() {
			return ErrLeaseLost // nor does one that was fenced
		}
		wait := backoff.Next()
		l.metrics.retry(len(rest))
		l.health.failed(l.log, !l.failing, err, len(rest), wait)
		l.failing = true
		Sleep(ctx, wait)
	}
}

// outcome reports what became of a batch, and returns what is to be offered again, at the front of batch's own memory.
func (l *lane) outcome(batch []*flight, err error, took time.Duration) (rest []*flight) {
	if err == nil {
		l.metrics.acked(batch, took)
		l.settle(l.sink.Name(), batch, nil)
		return nil
	}
	var perRecord *BatchError
	if !errors.As(err, &perRecord) {
		return batch
	}
	if len(perRecord.Errs) != len(batch) {
		panic(fmt.Sprintf("sink %s told the fate of %d records of %d", l.sink.Name(), len(perRecord.Errs), len(batch)))
	}
	settled := make([]*flight, 0, len(batch))
	errs := make([]error, 0, len(batch))
	acked := make([]*flight, 0, len(batch))
	rest = batch[:0]
	for i, f := range batch {
		e := perRecord.Errs[i]
		if _, refused := Refused(e); e != nil && !refused {
			rest = append(rest, f)
			continue
		}
		settled, errs = append(settled, f), append(errs, e)
		if e == nil {
			acked = append(acked, f)
		} else {
			l.metrics.refused(f, e)
			l.log.Warn("event refused", "sink", l.sink.Name(), "event_id", f.rec.EventID, "error", e)
		}
	}
	l.metrics.acked(acked, took)
	l.settle(l.sink.Name(), settled, errs)
	return rest
}

// sinkHealth is what the lanes of one sink know together of its broker: it is down while any lane has to offer
// again. It keeps the log quiet: the first trouble, then one line at intervals, then the recovery.
type sinkHealth struct {
	metrics *sinkMetrics

	mu        sync.Mutex // guards what follows
	failing   int        // lanes
	attempts  int        // since the sink was last up
	since     time.Time
	logged    time.Time
	lastError string
}

const healthLogInterval = 30 * time.Second

// failed notes an offer that was not taken; first says that the lane's offer before it was.
func (h *sinkHealth) failed(log hclog.Logger, first bool, err error, events int, wait time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.failing == 0 {
		h.since, h.logged, h.attempts = now, time.Time{}, 0
		h.metrics.up.Set(0)
	}
	if first {
		h.failing++
	}
	h.attempts++
	h.lastError = err.Error()
	if now.Sub(h.logged) >= healthLogInterval {
		h.logged = now
		log.Warn("publish did not succeed, offering again", "events", events, "attempt", h.attempts, "backoff", wait, "error", err)
	}
}

// recovered notes that a lane which had failed got its batch through.
func (h *sinkHealth) recovered(log hclog.Logger) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failing--
	if h.failing == 0 {
		log.Info("sink recovered", "attempts", h.attempts, "after", time.Since(h.since).Round(time.Millisecond))
		h.metrics.up.Set(1)
	}
}

// left notes that a failing lane has ended, with its pipeline. Nothing is being offered again then, so the sink counts as up
// until the next trouble: nobody else would say so.
func (h *sinkHealth) left() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failing--
	if h.failing == 0 {
		h.metrics.up.Set(1)
	}
}

// state is for the status page.
func (h *sinkHealth) state() (up bool, lastError string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failing == 0, h.lastError
}
