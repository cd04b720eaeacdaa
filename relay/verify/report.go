package verify

import (
	"errors"
	"fmt"
	"strings"
)

// Report is what the checker found.
type Report struct {
	Committed int // events
	Keys      int // that had commits
	Sinks     []SinkReport

	opts Options
}

// SinkReport is what one sink got, and what was wrong with it.
type SinkReport struct {
	Sink        string
	Delivered   int     // deliveries, repetitions included
	DeadLetters int     // events that did not arrive and are dead letters
	Missing     []Event // committed, and never arrived; in commit order for each key
	// Arrived, and never committed: of a transaction that was rolled back, for one.
	Unknown    []Event
	WrongKey   []WrongKey // arrived under another key than they were committed under
	Duplicates []Event    // one entry for each repetition
	OutOfOrder []Disorder
}

// WrongKey is a delivery under another key than the event's.
type WrongKey struct {
	Event Event
	Got   string
}

func (w WrongKey) String() string { return fmt.Sprintf("%s under key %q", w.Event, w.Got) }

// Kind is how order was broken.
type Kind string

// Kinds of disorder.
const (
	// Overtook: it came for the first time before one that was committed before it.
	Overtook Kind = "overtook one committed before it"
	// LeftOut: a redelivery that had begun further back left out events before it.
	LeftOut Kind = "came in a redelivery that left out events before it"
	// Stopped: a redelivery ended with it, short of what had arrived before.
	Stopped Kind = "was the end of a redelivery, and events after it were not repeated"
)

// Disorder is a delivery out of order. Positions count the key's commits from 0.
type Disorder struct {
	Event    Event
	Position int
	// After is what arrived just before under the same key, zero for the first arrival and for
	// Stopped.
	After         Event
	AfterPosition int
	Kind          Kind
}

func (d Disorder) String() string {
	s := fmt.Sprintf("%s, no. %d of its key, %s", d.Event, d.Position, d.Kind)
	if d.After != (Event{}) {
		s += fmt.Sprintf(" (just before it came %s, no. %d)", d.After.ID, d.AfterPosition)
	}
	return s
}

// Err returns which promises are broken and by which events, a few of each; nil means that all are
// kept.
func (r *Report) Err() error {
	if len(r.Sinks) == 0 && r.Committed > 0 {
		return fmt.Errorf("%d events committed, and no sink to look at", r.Committed)
	}
	var errs []error
	for i := range r.Sinks {
		errs = append(errs, r.Sinks[i].err(r.opts))
	}
	return errors.Join(errs...)
}

func (s *SinkReport) err(opts Options) error {
	errs := []error{
		examples(s.Sink, "missing", s.Missing),
		examples(s.Sink, "delivered but never committed", s.Unknown),
		examples(s.Sink, "delivered under another key", s.WrongKey),
		examples(s.Sink, "out of order", s.OutOfOrder),
	}
	if opts.MaxDuplicates != AnyNumber && len(s.Duplicates) > opts.MaxDuplicates {
		errs = append(errs, examples(s.Sink, fmt.Sprintf("delivered again, %d allowed", opts.MaxDuplicates), s.Duplicates))
	}
	return errors.Join(errs...)
}

const shownExamples = 3

func examples[T fmt.Stringer](sink, what string, list []T) error {
	if len(list) == 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "sink %s: %d %s: ", sink, len(list), what)
	for i, e := range list[:min(len(list), shownExamples)] {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(e.String())
	}
	if more := len(list) - shownExamples; more > 0 {
		fmt.Fprintf(&b, "; and %d more", more)
	}
	return errors.New(b.String())
}

// String is a line for each sink.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d events committed under %d keys", r.Committed, r.Keys)
	for _, s := range r.Sinks {
		fmt.Fprintf(&b, "\nsink %s: %d deliveries, %d missing, %d unknown, %d under another key, %d duplicates, %d out of order, %d dead letters",
			s.Sink, s.Delivered, len(s.Missing), len(s.Unknown), len(s.WrongKey), len(s.Duplicates), len(s.OutOfOrder), s.DeadLetters)
	}
	return b.String()
}
