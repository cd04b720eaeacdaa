package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// evidence is what is known at the end of a round.
type evidence struct {
	check *verify.Checker           // knows the commits
	got   map[string][]verify.Event // by sink, in the order in which a consumer sees each key
	dead  map[string]ids            // by sink: dead letters in the ledger
	// by sink: events that it could not take when they were committed
	poison   map[string]ids
	replayed ids // set back to pending by hand
	// by sink: events without an order: in a place of their own, or passed as dead letters and
	// retried
	apart map[string]ids
	// excuses are, by sink, the faults for which deliveries may have been repeated, each as often
	// as it happened; a name may be there more than once.
	excuses map[string][]string
	// locked: somebody has locked rows. Their marks come late then, and those of later rows of
	// their keys do not wait. After a crash the locked rows alone are delivered again, not
	// everything behind them.
	locked bool
}

type ids map[relay.UUID]bool

func (s ids) list() []relay.UUID { return slices.Collect(maps.Keys(s)) }

// comparison is what was committed and what arrived, compared.
type comparison struct {
	problems   []string
	events     int
	lost       int
	disordered int
	duplicates map[string]int // by what explains them
	deadLeft   int            // dead letters, meant to be
	replays    int            // second deliveries that were asked for
	// of the duplicates: those that were not followed by the rest of their key
	partial int
}

// maxRepeated is how many deliveries to one sink a fault may cause: what was in flight, more than
// once where a lane tried again while the fault lasted.
const maxRepeated = 4 * inflight

// judge compares.
func (e *evidence) judge() *comparison {
	v := &comparison{duplicates: make(map[string]int)}
	problem := func(format string, args ...any) { v.problems = append(v.problems, fmt.Sprintf(format, args...)) }
	arrived := make(map[string]ids)
	for sink, got := range e.got {
		e.check.Deliver(sink, got...)
		arrived[sink] = make(ids, len(got))
		for i := range got {
			arrived[sink][got[i].ID] = true
		}
		// Those come early or late, as often as was asked for. That they come at all is seen to
		// below.
		e.check.DeadLetter(sink, e.replayed.list()...)
		e.check.DeadLetter(sink, e.dead[sink].list()...)
		e.check.DeadLetter(sink, e.apart[sink].list()...)
	}
	report := e.check.Report()
	v.events = report.Committed
	for i := range report.Sinks {
		s := &report.Sinks[i]
		s.OutOfOrder = slices.DeleteFunc(s.OutOfOrder, func(d verify.Disorder) bool {
			excused := e.locked && d.Kind != verify.Overtook
			if excused {
				v.partial++
			}
			return excused
		})
	}
	if err := report.Err(); err != nil {
		problem("%v", err)
	}
	if len(report.Sinks) != len(e.got) {
		problem("%d sinks in the report, want %d", len(report.Sinks), len(e.got))
	}
	for i := range report.Sinks {
		s := &report.Sinks[i]
		v.lost += len(s.Missing)
		v.disordered += len(s.OutOfOrder)
		for id := range e.dead[s.Sink] {
			if v.deadLeft++; !e.poison[s.Sink][id] {
				problem("sink %s: event %s is a dead letter, and nothing was wrong with it", s.Sink, id)
			}
		}
		for what, set := range map[string]ids{"was set back to pending": e.replayed, "has no order to keep": e.apart[s.Sink]} {
			for id := range set {
				if !arrived[s.Sink][id] && !e.dead[s.Sink][id] {
					v.lost++
					problem("sink %s: event %s %s and never came", s.Sink, id, what)
				}
			}
		}
		var again []verify.Event
		for _, d := range s.Duplicates {
			if e.replayed[d.ID] {
				v.replays++
			} else {
				again = append(again, d)
			}
		}
		excuses := e.excuses[s.Sink]
		switch {
		case len(again) == 0:
			continue
		case len(excuses) == 0:
			problem("sink %s: %d events came again, and no fault of this round explains it, such as %s", s.Sink, len(again), again[0])
		case len(again) > maxRepeated*len(excuses):
			problem("sink %s: %d events came again, and %s explains %d at most", s.Sink, len(again), strings.Join(excuses, ", "), maxRepeated*len(excuses))
		}
		names := slices.Compact(slices.Sorted(slices.Values(excuses)))
		v.duplicates[cmp.Or(strings.Join(names, "+"), "nothing")] += len(again)
	}
	return v
}

func (v *comparison) String() string {
	total := 0
	var why []string
	for _, cause := range slices.Sorted(maps.Keys(v.duplicates)) {
		total += v.duplicates[cause]
		why = append(why, fmt.Sprintf("%d by %s", v.duplicates[cause], cause))
	}
	text := fmt.Sprintf("%d events, %d lost, %d out of order, %d duplicates", v.events, v.lost, v.disordered, total)
	if len(why) > 0 {
		text += " (" + strings.Join(why, "; ") + ")"
	}
	if v.replays > 0 {
		text += fmt.Sprintf(", %d replays", v.replays)
	}
	if v.partial > 0 {
		text += fmt.Sprintf(", %d of rows that were locked, alone", v.partial)
	}
	if v.deadLeft > 0 {
		text += fmt.Sprintf(", %d dead letters", v.deadLeft)
	}
	return text
}
