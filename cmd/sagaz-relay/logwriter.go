package main

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// logPatience is how long a line of the log may take to be written before the relay goes on
// without. It is well below the lease's RELAY_LEASE_TTL, since whoever renews the lease writes
// lines too.
const logPatience = 2 * time.Second

// patientWriter writes one line at a time, and waits for it no longer than its patience: a pipe
// that nobody reads any more must not stop the relay. Lines that come while a write hangs are
// dropped; when it ends, a line has their number.
type patientWriter struct {
	w        io.Writer
	patience time.Duration
	lost     func(lines int64) []byte // makes that line

	turn    chan struct{} // holds a token while a write is under way
	since   atomic.Int64  // when that began, in Unix nanoseconds; 0: none is
	dropped atomic.Int64  // lines since the last write that ended
}

func newPatientWriter(w io.Writer, patience time.Duration, lost func(lines int64) []byte) *patientWriter {
	return &patientWriter{w: w, patience: patience, lost: lost, turn: make(chan struct{}, 1)}
}

// write returns when the line is written, or when it took too long. The line is not used afterwards
// by the caller.
func (p *patientWriter) write(line []byte) {
	if since := p.since.Load(); since != 0 && time.Since(time.Unix(0, since)) >= p.patience {
		p.dropped.Add(1) // it hangs, and its patience is spent
		return
	}
	timer := time.NewTimer(p.patience)
	defer timer.Stop()
	select {
	case p.turn <- struct{}{}:
	case <-timer.C:
		p.dropped.Add(1)
		return
	}
	p.since.Store(time.Now().UnixNano())
	done := make(chan struct{})
	go func() { // it may outlive us, and then ends with the process
		defer close(done)
		_, _ = p.w.Write(line) // a log that cannot be written has no place to report that
		if n := p.dropped.Swap(0); n > 0 {
			_, _ = p.w.Write(p.lost(n))
		}
		p.since.Store(0)
		<-p.turn
	}()
	select {
	case <-done:
	case <-timer.C:
	}
}

// lastWords writes a last text to people, who may have stopped reading.
func lastWords(w io.Writer, text string) {
	newPatientWriter(w, logPatience, func(int64) []byte { return nil }).write(fmt.Appendln(nil, text))
}
