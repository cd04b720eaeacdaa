package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// target is where a contestant's messages go: a topic, or an exchange with one queue.
type target interface {
	// stored is how many messages the broker has taken, while nobody consumes them.
	stored(ctx context.Context) (int, error)
	// consume hands every message to each, from the first one on, until ctx ends. It returns when
	// it listens; each is called by one goroutine at a time, with all header names.
	consume(ctx context.Context, each func(body []byte, headers []string)) (ended <-chan error, err error)
	close(ctx context.Context) error
}

func (t *site) openTarget(ctx context.Context) (target, error) {
	if t.c.broker == "rabbitmq" {
		return openQueue(t.rabbit.URL, t.name)
	}
	return openTopic(ctx, t.kafka.Plaintext, t.name)
}

// arrivals are the messages that a consumer has seen.
type arrivals struct {
	mu    sync.Mutex // guards what follows
	first map[int]time.Time
	total int
	odd   string // what was wrong with a message
	last  time.Time
	more  chan struct{} // closed at the next message
	head  string        // a header that each must have
}

func newArrivals(header string) *arrivals {
	return &arrivals{first: make(map[int]time.Time), more: make(chan struct{}), head: header}
}

// take notes one message.
func (a *arrivals) take(body []byte, headers []string) {
	now := time.Now()
	n, ok := number(body)
	found := false
	for _, h := range headers {
		found = found || h == a.head
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total++
	a.last = now
	switch {
	case !ok:
		a.odd = fmt.Sprintf("a message of %d bytes has no event's number", len(body))
	case !found:
		a.odd = fmt.Sprintf("a message has the headers %v, and not %s", headers, a.head)
	default:
		if _, again := a.first[n]; !again {
			a.first[n] = now
		}
	}
	close(a.more)
	a.more = make(chan struct{})
}

func (a *arrivals) counts() (total, distinct int, odd string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.total, len(a.first), a.odd
}

func (a *arrivals) at(n int) (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.first[n]
	return at, ok
}

// next waits for the message after the n-th, and returns when it came.
func (a *arrivals) next(ctx context.Context, n int) (time.Time, error) {
	for {
		a.mu.Lock()
		total, last, more := a.total, a.last, a.more
		a.mu.Unlock()
		if total > n {
			return last, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
}

// numbered is how an event's number is written in its payload, so that it is found in whatever
// surrounds that.
const numbered = "event-%010d"

var mark = []byte("event-")

// number finds the event's number in a message.
func number(body []byte) (int, bool) {
	for {
		i := bytes.Index(body, mark)
		if i < 0 || len(body) < i+len(mark)+10 {
			return 0, false
		}
		body = body[i+len(mark):]
		if n, err := strconv.Atoi(string(body[:10])); err == nil {
			return n, true
		}
	}
}
