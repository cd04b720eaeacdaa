package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// steadyBytes is the size of a payload of the steady loads.
const steadyBytes = 500

// grace is how long a contestant may take, after a steady load, for what is left of it.
const grace = 15 * time.Second

// steady is a contestant that runs, and a consumer of what it publishes.
type steady struct {
	t      *site
	p      *process
	seen   *arrivals
	number int // of the last event that was committed
	finish func() error
}

// startSteady starts it, and waits until a first event has gone all the way.
func startSteady(ctx context.Context, t *site) (*steady, error) {
	s := &steady{t: t, seen: newArrivals(t.c.header)}
	cctx, cancel := context.WithCancel(ctx)
	ended, err := t.out.consume(cctx, s.seen.take)
	if err != nil {
		cancel()
		return nil, err
	}
	s.finish = func() error { cancel(); return <-ended }
	if s.p, err = t.start(); err == nil {
		err = s.probe(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *steady) close() error {
	if s.p != nil {
		s.p.stop()
	}
	return s.finish()
}

// probe commits an event and waits until all have arrived.
func (s *steady) probe(ctx context.Context) error {
	if _, err := s.commit(ctx, nil, 1, time.Second); err != nil {
		return err
	}
	if left := s.await(ctx, patience); left > 0 {
		if !s.p.Running() {
			return s.p.ended()
		}
		return fmt.Errorf("the first event has not arrived after %s", patience)
	}
	return nil
}

func (s *steady) commit(ctx context.Context, m *meter, rate int, during time.Duration) (*load, error) {
	l, err := s.t.commit(ctx, m, s.number, rate, during, steadyBytes)
	if err == nil {
		s.number += len(l.at)
	}
	return l, err
}

// await waits until all events have arrived, and returns how many have not.
func (s *steady) await(ctx context.Context, d time.Duration) int {
	deadline := time.Now().Add(d)
	for {
		_, distinct, _ := s.seen.counts()
		if distinct >= s.number || time.Now().After(deadline) || ctx.Err() != nil || !s.p.Running() {
			return s.number - distinct
		}
		time.Sleep(fineLook)
	}
}

// latency measures the time from the moment at which the statement that commits a row was sent to
// the moment at which a consumer of the broker has the message: at each rate for a while.
func latency(ctx context.Context, t *site, o options, write func(rate, rows int, f figures, err error)) error {
	s, err := startSteady(ctx, t)
	if err != nil {
		return err
	}
	defer s.close() //nolint:errcheck // all is measured
	for _, rate := range o.rates {
		if t.c.maxRate > 0 && rate > t.c.maxRate {
			continue
		}
		f, rows, err := s.latencyAt(ctx, rate, o.rateFor)
		write(rate, rows, f, err)
		if err != nil {
			return nil // what comes now would wait behind that
		}
	}
	return nil
}

func (s *steady) latencyAt(ctx context.Context, rate int, during time.Duration) (figures, int, error) {
	// Connections, caches and compilers are as warm as they get in a second.
	if _, err := s.commit(ctx, nil, rate, time.Second); err != nil {
		return nil, 0, err
	}
	s.await(ctx, grace)
	m := s.t.measure()
	defer m.stop()
	m.add(s.p.PID())
	m.rebase()
	l, err := s.commit(ctx, m, rate, during)
	if err != nil {
		return nil, len(l.at), err
	}
	left := s.await(ctx, grace)
	if !s.p.Running() {
		return nil, len(l.at), s.p.ended()
	}
	used := m.used()
	f := figures{"committed_per_second": float64(len(l.at)) / l.took.Seconds(), "undelivered": float64(left)}
	var took []time.Duration
	for i, sent := range l.at {
		if at, ok := s.seen.at(l.from + i + 1); ok {
			took = append(took, at.Sub(sent))
		}
	}
	if len(took) == 0 {
		return nil, len(l.at), errors.New("none of the events arrived")
	}
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[min(len(took)-1, int(q*float64(len(took))))]) / float64(time.Millisecond)
	}
	f["p50_ms"], f["p95_ms"], f["p99_ms"], f["max_ms"] = at(0.50), at(0.95), at(0.99), at(1)
	perMillion := 1e6 / float64(len(l.at))
	for _, group := range groups {
		if group != ofServer { // mostly the load's commits
			f["cpu_"+group] = used[group] * perMillion
		}
	}
	f["peak_bytes"] = peakMemory(s.p.PID())
	if left > 0 {
		return f, len(l.at), fmt.Errorf("%d of %d events have not arrived %s after the last commit", left, len(l.at), grace)
	}
	return f, len(l.at), nil
}

// recovery kills the contestant while events are committed at a steady rate, and starts it again at
// once. It measures the time from then to the next message, and counts what came twice or not at
// all.
func recovery(ctx context.Context, t *site, o options) (rows int, f figures, err error) {
	s, err := startSteady(ctx, t)
	if err != nil {
		return 0, nil, err
	}
	defer s.close() //nolint:errcheck // all is measured
	const before, during = 2500 * time.Millisecond, 5 * time.Second
	rate := o.killRateOf(t.c)
	type outcome struct {
		l   *load
		err error
	}
	committed := make(chan outcome, 1)
	go func() {
		l, err := s.t.commit(ctx, nil, s.number, rate, during, steadyBytes)
		committed <- outcome{l, err}
	}()
	select {
	case <-time.After(before):
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
	if err := s.p.Kill(); err != nil {
		return 0, nil, err
	}
	killed := time.Now()
	if s.p, err = t.start(); err != nil {
		return 0, nil, err
	}
	time.Sleep(30 * time.Millisecond) // for what the dead process had sent; none starts as fast as that
	total, _, _ := s.seen.counts()
	nctx, cancel := context.WithTimeout(ctx, patience)
	next, err := s.seen.next(nctx, total)
	cancel()
	if err != nil {
		return 0, nil, fmt.Errorf("until the next message after the kill: %w", err)
	}
	done := <-committed
	if done.err != nil {
		return 0, nil, done.err
	}
	s.number += len(done.l.at)
	// A contestant that is behind catches up; one that leaves events behind does not.
	lost := s.await(ctx, grace)
	time.Sleep(500 * time.Millisecond) // what comes twice may come late
	total, distinct, odd := s.seen.counts()
	if odd != "" {
		return s.number, nil, errors.New(odd)
	}
	return s.number, figures{
		"recovery_seconds": next.Sub(killed).Seconds(), "repeated": float64(total - distinct), "undelivered": float64(lost), "kill_rate": float64(rate),
	}, nil
}
