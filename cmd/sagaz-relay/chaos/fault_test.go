package chaos

import (
	"fmt"
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
	// repeats says to which sinks events may be delivered again because of it: "" to none, "all", or one sink's name. It is the smallest
	// set that relay/sink.go and the promises of DESIGN.md allow: after a crash, or when the fate of an offer is not known.
	repeats string
	// stops says that it stops relays cleanly. What a broker does not take meanwhile the stopped one leaves unmarked, for all sinks.
	stops bool
	locks bool // locks rows; see evidence.locked
	// do makes it happen, mends it, and returns. An error means that the suite itself does not work.
	do func(*round, step) error
}

const allSinks = "all"

// faults are all kinds.
func allFaults() []*fault {
	return slices.Concat(processFaults(), databaseFaults(), linkFaults(), brokerFaults(), slotFaults(), rowFaults())
}

// chosenFaults are those with the names, separated by commas; all without names. A name may be the beginning of several: "kafka".
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

// excuses tells for each sink which faults of the round may have repeated deliveries.
func (r *round) excuses() map[string][]string {
	all := make(map[string][]string)
	stops, troubled := "", ""
	for f, n := range r.done {
		for range n {
			for _, sink := range r.plan.sinks {
				if f.repeats == allSinks || f.repeats == sink {
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
	if stops != "" && troubled != "" {
		for _, sink := range r.plan.sinks {
			all[sink] = append(all[sink], stops+" while "+troubled)
		}
	}
	return all
}
