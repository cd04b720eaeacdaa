package relay

import (
	"encoding/hex"
	"time"

	"github.com/hashicorp/go-hclog"
)

// What is logged of single events, in one place. An event's way is told at DEBUG, a line a stage:
//
//	received ─▶ published (a line a sink) ───────────▶ marked
//	       │       ▲
//	       │       └── not taken, to be offered again
//	       └──▶ refused (WARNING), parked ───────────▶ marked ─▶ retried ─▶ published, or refused again ─▶ resolved
//	                                                                          … and in the end given up (ERROR)
//
// Each line has saga_id, and correlation_id, saga_name, step_name, and trace_id and span_id of a traceparent where the row's headers have them, so any of
// these finds the whole way of a saga. Whoever writes one asks IsDebug first: at INFO a batch costs the question.

// facts are the pairs that tell an event, with more behind them. Of the row's headers only those four are told.
func (f *flight) facts(more ...any) []any {
	return facts(f.rec.EventID, f.rec.EventType, f.sagaID, f.rec.Key, f.rec.Headers, more)
}

// facts are the pairs that tell an event which has no flight.
func (e *Event) facts(enc Encoder, more ...any) []any {
	return facts(e.ID, e.EventType, e.SagaID, e.AggregateID, enc.RowHeaders(e), more)
}

func facts(id UUID, eventType, saga, key string, headers []Header, more []any) []any {
	pairs := append(make([]any, 0, 18+len(more)), "saga_id", Short(saga), "event_id", id, "event_type", Short(eventType), "key", Short(key))
	for _, h := range headers {
		switch h.Key {
		case "correlation_id", "saga_name", "step_name":
			pairs = append(pairs, h.Key, Short(h.Value))
		case TraceParent:
			if c, ok := ParseTraceParent(h.Value); ok {
				pairs = append(pairs, "trace_id", hex.EncodeToString(c.TraceID[:]), "span_id", hex.EncodeToString(c.SpanID[:]))
			}
		}
	}
	return append(pairs, more...)
}

// logReceived tells of events that have been taken.
func logReceived(log hclog.Logger, flights []*flight) {
	if !log.IsDebug() {
		return
	}
	for _, f := range flights {
		if f.swept {
			log.Debug("event received", f.facts("from", "table")...)
		} else {
			log.Debug("event received", f.facts("from", "slot", "lsn", f.commitLSN)...)
		}
	}
}

// logPublished tells of events that a sink has taken.
func logPublished(log hclog.Logger, sink string, batch []*flight, offers int, took time.Duration) {
	if !log.IsDebug() {
		return
	}
	for _, f := range batch {
		log.Debug("event published", f.facts("sink", sink, "attempt", f.attempt(offers), "duration_ms", milliseconds(took))...)
	}
}

// logNotTaken tells of events that a sink did not take for a reason of its own.
func logNotTaken(log hclog.Logger, sink string, batch []*flight, offers int, err error) {
	if !log.IsDebug() {
		return
	}
	for _, f := range batch {
		log.Debug("event not taken, to be offered again", f.facts("sink", sink, "attempt", f.attempt(offers), "error_type", failureOf(err))...)
	}
}

// logRefused tells of an event that a sink refused for its own fault, or that cannot be offered to it.
func logRefused(log hclog.Logger, sink string, f *flight, offers int, err error) {
	log.Warn("event refused", f.facts("sink", sink, "attempt", f.attempt(offers), "error_type", failureOf(err), "error", shown(err.Error()))...)
}

// logParked tells of events for which entries in the ledger are made.
func logParked(log hclog.Logger, batch []*flight, parks []*Parked) {
	if !log.IsDebug() {
		return
	}
	for i, f := range batch {
		if p := parks[i]; p != nil {
			reason := p.Reason
			if reason == "" {
				reason = parkedBehind
			}
			log.Debug("event parked", f.facts("sink", p.Sink, "state", string(p.State), "error_type", string(reason), "retry_count", p.Attempts)...)
		}
	}
}

// logMarked tells of events whose rows, and ledger, are written. A dead letter is told at any level: it is work for a person.
func logMarked(log hclog.Logger, batch []*flight) {
	debug := log.IsDebug()
	for _, f := range batch {
		fate := "sent"
		for i := range f.parked {
			switch p := &f.parked[i]; p.State {
			case StateDead:
				fate = "dead_letter"
				logDead(log, p.Sink, f.facts("retry_count", p.Attempts, "error_type", string(p.Reason), "error", shown(p.Error)))
			case StateRetry:
				fate = "failed"
			case StateHeld:
				if fate == "sent" {
					fate = "pending"
				}
			}
		}
		if debug {
			log.Debug("event marked", f.facts("status", fate)...)
		}
	}
}

func logDead(log hclog.Logger, sink string, facts []any) {
	log.Error("event given up: it is a dead letter", append(facts, "sink", sink, "fix", "sagaz-relay dead-letter show, then retry or discard")...)
}

// logRetried tells of ledger entries that are offered.
func logRetried(log hclog.Logger, sink string, flights []*flight) {
	if !log.IsDebug() {
		return
	}
	for _, f := range flights {
		log.Debug("event retried", f.facts("sink", sink, "retry_count", f.entry.Attempts)...)
	}
}

// fates are what an Outcome says, for people.
var fates = [...]string{FateDelivered: "delivered", FateRefused: "refused", FateDead: "dead", FateDropped: "dropped"}

// logResolved tells what became of ledger entries, now that it is written.
func logResolved(log hclog.Logger, enc Encoder, sink string, outcomes []Outcome) {
	debug := log.IsDebug()
	for i := range outcomes {
		o := &outcomes[i]
		if o.Fate == FateDead {
			logDead(log, sink, o.Entry.Event.facts(enc, "retry_count", o.Attempts, "error_type", string(o.Reason), "error", shown(o.Error)))
		}
		if debug {
			log.Debug("event resolved", o.Entry.Event.facts(enc, "sink", sink, "fate", fates[o.Fate], "retry_count", o.Attempts)...)
		}
	}
}

// goneTold are told one by one in a round: somebody who deletes rows may delete millions.
const goneTold = 10

// logGone tells of entries that are dropped because somebody has deleted their rows.
func logGone(log hclog.Logger, enc Encoder, sink string, gone []*Entry) {
	for _, e := range gone[:min(goneTold, len(gone))] {
		log.Warn("ledger entry dropped: its row is not in the table any more", e.Event.facts(enc, "sink", sink)...)
	}
	if more := len(gone) - goneTold; more > 0 {
		log.Warn("more ledger entries dropped: their rows are not in the table any more", "sink", sink, "entries", more)
	}
}

// attempt is how often the event has been offered to one sink, this time included, if its lane has offered it so often.
func (f *flight) attempt(offers int) int {
	if f.entry != nil {
		return f.entry.Attempts + 1
	}
	return offers
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
