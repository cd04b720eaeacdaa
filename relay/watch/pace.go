package watch

import (
	"math"
	"time"
)

const (
	paceWindow  = 5 * time.Second
	paceWindows = 12 // a minute
	// A bucket's upper bound is the one before it times 2^(1/4), so a percentile is at most 19 %
	// too high; the first ends at paceFirst, the last takes the rest, from 75 s on.
	paceFirst   = 100 * time.Microsecond
	paceBuckets = 80
)

// pace is how fast a sink takes events, in constant memory. Guarded by its owner.
type pace struct {
	total   uint64 // events acknowledged
	windows [paceWindows]paceCount
}

type paceCount struct {
	number int64 // of the window, since 1970
	events uint64
	by     [paceBuckets]uint32 // events by how long their batch took
}

func paceNumber(at time.Time) int64 { return at.UnixNano() / int64(paceWindow) }

// add counts a batch that was acknowledged.
func (p *pace) add(now time.Time, events int, took time.Duration) {
	p.total += uint64(events)
	n := paceNumber(now)
	w := &p.windows[n%paceWindows]
	if w.number != n {
		*w = paceCount{number: n}
	}
	w.events += uint64(events)
	w.by[paceBucket(took)] += uint32(events)
}

func paceBucket(took time.Duration) int {
	if took <= paceFirst {
		return 0
	}
	return min(paceBuckets-1, int(math.Ceil(4*math.Log2(float64(took)/float64(paceFirst)))))
}

// read returns the events a second over the last full 10 s, and the 99th percentile in seconds of
// how long an event's batch took, over the last minute; nil without any.
func (p *pace) read(now time.Time) (rate float64, p99 *float64) {
	n := paceNumber(now)
	var by [paceBuckets]uint64
	var all uint64
	for i := range p.windows {
		w := &p.windows[i]
		if w.number > n || w.number <= n-paceWindows {
			continue
		}
		if w.number == n-1 || w.number == n-2 {
			rate += float64(w.events) / (2 * paceWindow.Seconds())
		}
		for b, events := range w.by {
			by[b] += uint64(events)
			all += uint64(events)
		}
	}
	if all == 0 {
		return rate, nil
	}
	var below uint64
	for b := range by {
		below += by[b]
		if float64(below) >= 0.99*float64(all) {
			bound := paceFirst.Seconds() * math.Pow(2, float64(b)/4)
			return rate, &bound
		}
	}
	return rate, nil
}
