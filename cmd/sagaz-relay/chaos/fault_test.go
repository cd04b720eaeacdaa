package chaos

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// fault is a kind of accident.
type fault struct {
	name        string
	weight      int // how often it is picked, against the others
	least, most time.Duration
	brokers     bool // needs Kafka and RabbitMQ
	seat        bool // is about one relay
	// repeats is to which sinks events may be delivered again because of it: "" to none, "all", or
	// one sink's name. It is the smallest set that relay/sink.go and the promises of DESIGN.md
	// allow: after a crash, or when the fate of an offer is not known.
	repeats string
	// stops: it stops relays cleanly. What a broker does not take meanwhile the stopped one leaves
	// unmarked, for all sinks.
	stops bool
	once  bool // at most once in a round for the same sink
	locks bool // locks rows; see evidence.locked
	// do makes it happen, ends it, and returns. An error means that the suite itself does not work.
	do func(*round, step) error
}

const allSinks = "all"

// faults are all kinds.
func allFaults() []*fault {
	return slices.Concat(processFaults(), databaseFaults(), linkFaults(), brokerFaults(), slotFaults(), rowFaults(), stuckFaults())
}

// chosenFaults are those with the names, separated by commas; all without names. A name may be the
// beginning of several: "kafka".
func chosenFaults(names string) ([]*fault, error) {
	if names == "" {
		return allFaults(), nil
	}
	var chosen []*fault
	for _, name := range strings.Split(names, ",") {
		before := len(chosen)
		for _, f := range allFaults() {
			if f.name == name || strings.HasPrefix(f.name, name+"-") {
				chosen = append(chosen, f)
			}
		}
		if len(chosen) == before {
			var known []string
			for _, f := range allFaults() {
				known = append(known, f.name)
			}
			return nil, fmt.Errorf("CHAOS_FAULTS: no fault %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

// excuses returns for each sink which faults of the round may have repeated deliveries.
func (r *round) excuses() map[string][]string {
	all := make(map[string][]string)
	stops, troubled := "", ""
	for f, n := range r.done {
		for range n {
			for _, sink := range r.plan.sinks {
				if f.repeats == allSinks || f.repeats == r.plan.kind(sink) {
					all[sink] = append(all[sink], f.name)
				}
			}
		}
		if f.stops {
			stops = f.name
		}
		if f.brokers && f.repeats != "" {
			troubled = f.name
		}
	}
	for _, sink := range r.unanswered() {
		all[sink] = append(all[sink], "no answer in time")
		troubled = "no answer in time"
	}
	if stops != "" && troubled != "" {
		for _, sink := range r.plan.sinks {
			all[sink] = append(all[sink], stops+" while "+troubled)
		}
	}
	return all
}

// unanswered are the sinks of which a relay has logged that an offer was not answered in time. On a
// machine that has too much to do that comes without a fault, and the fate of the offer is not
// known.
func (r *round) unanswered() (sinks []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, sink := range r.plan.sinks {
		if slices.ContainsFunc(r.processes, func(p *process) bool {
			text, _ := os.ReadFile(p.log.Name()) // endAll reads them all again
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, `"relay.sink.`+sink+`"`) && (strings.Contains(line, "no answer within") || strings.Contains(line, `"sink isolated`)) {
					return true
				}
			}
			return false
		}) {
			sinks = append(sinks, sink)
		}
	}
	return sinks
}
