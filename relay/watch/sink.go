package watch

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// sinkWatch is what is known of one sink.
type sinkWatch struct {
	sink    string
	log     hclog.Logger
	metrics *sinkMetrics
	changes *changeLog

	mu        sync.Mutex // guards what follows
	up        bool       // it takes what it is offered, and all of that is offered to it
	lastError string
	erred     time.Time // when
	changed   time.Time // when up or isolated last changed; zero: never
	pace      pace
}

var _ relay.SinkObserver = (*sinkWatch)(nil)

// Refused implements relay.SinkObserver.
func (s *sinkWatch) Refused(refusals []relay.Refusal, offers int) {
	for _, r := range refusals {
		s.metrics.refused(r)
		logRefused(s.log, s.sink, r.Flight, offers, r.Err)
	}
}

// Answered implements relay.SinkObserver.
func (s *sinkWatch) Answered(a relay.Answer) {
	s.metrics.offered(a.Events, a.Took)
	for _, err := range a.Failed {
		s.metrics.failed(err)
	}
	if len(a.Acked) == 0 {
		return
	}
	s.metrics.acked(a.Acked, a.Took)
	s.mu.Lock()
	s.pace.add(time.Now(), len(a.Acked), a.Took)
	s.mu.Unlock()
	logPublished(s.log, s.sink, a.Acked, a.Offers, a.Took)
}

// Routed implements relay.SinkObserver.
func (s *sinkWatch) Routed(counts []relay.RuleCount) { s.metrics.routed(counts) }

// Again implements relay.SinkObserver.
func (s *sinkWatch) Again(batch []*relay.Flight, offers int, err error) {
	s.metrics.retry(len(batch))
	logNotTaken(s.log, s.sink, batch, offers, err)
}

// TailRead implements relay.SinkObserver.
func (s *sinkWatch) TailRead(records, unread int) {
	s.metrics.tailRead.Add(float64(records))
	s.metrics.tailUnread.Add(float64(unread))
}

// Arrived implements relay.SinkObserver.
func (s *sinkWatch) Arrived(batch []*relay.Flight) {
	s.metrics.arrived.Add(float64(len(batch)))
	logArrived(s.log, s.sink, batch)
}

// Trouble implements relay.SinkObserver.
func (s *sinkWatch) Trouble(err error) {
	text := shown(err.Error())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastError, s.erred = text, time.Now()
}

// Turned implements relay.SinkObserver.
func (s *sinkWatch) Turned(up, isolated bool, c relay.Change) {
	s.metrics.up.Set(oneIf(up))
	s.metrics.isolated.Set(oneIf(isolated))
	s.mu.Lock()
	s.up, s.changed = up, time.Now()
	s.mu.Unlock()
	s.changes.add(c)
}

// status is for the status page.
func (s *sinkWatch) status() SinkStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := SinkStatus{Sink: s.sink, Up: s.up, LastError: shown(s.lastError), Acked: s.pace.total}
	if !s.erred.IsZero() {
		at := s.erred
		st.LastErrorAt = &at
	}
	if !s.changed.IsZero() {
		at := s.changed
		st.Since = &at
	}
	st.Rate, st.P99 = s.pace.read(time.Now())
	return st
}
