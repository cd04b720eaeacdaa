package watch

import (
	"encoding/hex"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// What is logged of single events, in one place. An event's way is logged at DEBUG, a line a stage:
//
//	received ─▶ published (a line a sink) ───────────▶ marked
//	       │       ▲
//	       │       ├── not taken, to be offered again
//	       │       └── arrived: an owner that died has sent it ─▶ marked
//	       └──▶ refused (WARNING), parked ───────────▶ marked
//	                                                     │
//	       resolved ◀── published, or refused again ◀── retried
//	           └ … and in the end given up (ERROR)
//
// Each line has saga_id, and correlation_id, saga_name, step_name, and trace_id and span_id of a
// traceparent where the row's headers have them, so any of these finds the whole way of a saga.
// Whoever writes one asks IsDebug first: at INFO a batch costs the question.

// factsOf are the pairs that identify an event, with more behind them. Of the row's headers only
// those four are logged.
func factsOf(f *relay.Flight, more ...any) []any {
	return facts(f.Record.EventID, f.Record.EventType, f.SagaID, f.Record.Key, f.Record.Headers, more)
}

// factsOfRow are the pairs that identify an event which has no flight.
func factsOfRow(e *relay.Event, enc relay.Encoder, more ...any) []any {
	return facts(e.ID, e.EventType, e.SagaID, e.AggregateID, enc.RowHeaders(e), more)
}

func facts(id relay.UUID, eventType, saga, key string, headers []relay.Header, more []any) []any {
	pairs := append(make([]any, 0, 18+len(more)), "saga_id", relay.Short(saga), "event_id", id, "event_type", relay.Short(eventType), "key", relay.Short(key))
	for _, h := range headers {
		switch h.Key {
		case "correlation_id", "saga_name", "step_name":
			pairs = append(pairs, h.Key, relay.Short(h.Value))
		case relay.TraceParent:
			if c, ok := relay.ParseTraceParent(h.Value); ok {
				pairs = append(pairs, "trace_id", hex.EncodeToString(c.TraceID[:]), "span_id", hex.EncodeToString(c.SpanID[:]))
			}
		}
	}
	return append(pairs, more...)
}

// logReceived logs events that have been taken.
func logReceived(log hclog.Logger, flights []*relay.Flight) {
	if !log.IsDebug() {
		return
	}
	for _, f := range flights {
		if f.Swept {
			log.Debug("event received", factsOf(f, "from", "table")...)
		} else {
			log.Debug("event received", factsOf(f, "from", "slot", "lsn", f.CommitLSN)...)
		}
	}
}

// logPublished logs events that a sink has taken.
func logPublished(log hclog.Logger, sink string, batch []*relay.Flight, offers int, took time.Duration) {
	if !log.IsDebug() {
		return
	}
	for _, f := range batch {
		log.Debug("event published", factsOf(f, "sink", sink, "attempt", attempt(f, offers), "duration_ms", milliseconds(took))...)
	}
}

// logNotTaken logs events that a sink did not take for a reason of its own.
func logNotTaken(log hclog.Logger, sink string, batch []*relay.Flight, offers int, err error) {
	if !log.IsDebug() {
		return
	}
	for _, f := range batch {
		log.Debug("event not taken, to be offered again", factsOf(f, "sink", sink, "attempt", attempt(f, offers), "error_type", failureOf(err))...)
	}
}

// logArrived logs events that a sink has from an owner that died.
func logArrived(log hclog.Logger, sink string, batch []*relay.Flight) {
	if !log.IsDebug() {
		return
	}
	for _, f := range batch {
		log.Debug("event had arrived, and is not sent again", factsOf(f, "sink", sink)...)
	}
}

// logRefused logs an event that a sink refused for its own fault, or that cannot be offered to it.
func logRefused(log hclog.Logger, sink string, f *relay.Flight, offers int, err error) {
	log.Warn("event refused", factsOf(f, "sink", sink, "attempt", attempt(f, offers), "error_type", failureOf(err), "error", shown(err.Error()))...)
}

// logParked logs events for which entries in the ledger are made.
func logParked(log hclog.Logger, batch []*relay.Flight, parks []*relay.Parked) {
	if !log.IsDebug() {
		return
	}
	for i, f := range batch {
		if p := parks[i]; p != nil {
			reason := p.Reason
			if reason == "" {
				reason = parkedBehind
			}
			log.Debug("event parked", factsOf(f, "sink", p.Sink, "state", string(p.State), "error_type", string(reason), "retry_count", p.Attempts)...)
		}
	}
}

// logMarked logs events whose rows, and ledger, are written. A dead letter is logged at any level:
// it is work for a person.
func logMarked(log hclog.Logger, batch []*relay.Flight) {
	debug := log.IsDebug()
	for _, f := range batch {
		fate := "sent"
		for i := range f.Parked {
			switch p := &f.Parked[i]; p.State {
			case relay.StateDead:
				fate = "dead_letter"
				logDead(log, p.Sink, factsOf(f, "retry_count", p.Attempts, "error_type", string(p.Reason), "error", shown(p.Error)))
			case relay.StateRetry:
				fate = "failed"
			case relay.StateHeld:
				if fate == "sent" {
					fate = "pending"
				}
			}
		}
		if debug {
			log.Debug("event marked", factsOf(f, "status", fate)...)
		}
	}
}

func logDead(log hclog.Logger, sink string, facts []any) {
	log.Error("event given up: it is a dead letter", append(facts, "sink", sink, "fix", "sagaz-relay dead-letter show, then retry or discard")...)
}

// logRetried logs ledger entries that are offered.
func logRetried(log hclog.Logger, sink string, flights []*relay.Flight) {
	if !log.IsDebug() {
		return
	}
	for _, f := range flights {
		log.Debug("event retried", factsOf(f, "sink", sink, "retry_count", f.Entry.Attempts)...)
	}
}

// fates are the words for an Outcome.
var fates = [...]string{relay.FateDelivered: "delivered", relay.FateRefused: "refused", relay.FateDead: "dead", relay.FateDropped: "dropped"}

// logResolved logs what became of ledger entries, now that it is written.
func logResolved(log hclog.Logger, enc relay.Encoder, sink string, outcomes []relay.Outcome) {
	debug := log.IsDebug()
	for i := range outcomes {
		o := &outcomes[i]
		if o.Fate == relay.FateDead {
			logDead(log, sink, factsOfRow(&o.Entry.Event, enc, "retry_count", o.Attempts, "error_type", string(o.Reason), "error", shown(o.Error)))
		}
		if debug {
			log.Debug("event resolved", factsOfRow(&o.Entry.Event, enc, "sink", sink, "fate", fates[o.Fate], "retry_count", o.Attempts)...)
		}
	}
}

// goneLogged are logged one by one in a round: somebody who deletes rows may delete millions.
const goneLogged = 10

// logGone logs entries that are dropped because somebody has deleted their rows.
func logGone(log hclog.Logger, enc relay.Encoder, sink string, gone []*relay.Entry) {
	for _, e := range gone[:min(goneLogged, len(gone))] {
		log.Warn("ledger entry dropped: its row is not in the table any more", factsOfRow(&e.Event, enc, "sink", sink)...)
	}
	if more := len(gone) - goneLogged; more > 0 {
		log.Warn("more ledger entries dropped: their rows are not in the table any more", "sink", sink, "entries", more)
	}
}

// attempt is how often the event has been offered to one sink, this time included, if its lane has
// offered it so often.
func attempt(f *relay.Flight, offers int) int {
	if f.Entry != nil {
		return f.Entry.Attempts + 1
	}
	return offers
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
