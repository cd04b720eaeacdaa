package relay

import (
	"fmt"
	"slices"
	"strings"
)

// Nobody's broker changes in silence. A relay whose BROKER_TYPE is not set delivers to Kafka, and
// that may be the mistake: the variable was in a Deployment that another one has replaced. So such
// a relay asks the table first where events went before, and refuses to deliver elsewhere. It asks
// when it starts, so that a rolling update stops at the first new pod while the old ones go on, and
// again with each lease, before it notes its own sinks: somebody else may have had the slot
// meanwhile. With BROKER_TYPE set the change is somebody's will, and is only logged.

// Before is what the database knows of deliveries by others than this process.
type Before struct {
	// Of the slot's last owner, else of the last owner of any other slot; none when nobody has
	// noted any.
	Sinks []string
	Sent  bool // no relay has had a slot here yet, and still there are rows that were sent
}

// SinksByDefault: BROKER_TYPE is not set.
type SinksByDefault struct {
	// Types are the sinks that BROKER_TYPE can name; see SinksSetting.
	Types []string
	// Hint is a setting that only another sink reads, such as RABBITMQ_URL; empty for none.
	Hint string
}

// SinksSetting is how the settings name sinks: those that types has in BROKER_TYPE, others in
// RELAY_SINKS. Without types all are of BROKER_TYPE.
func SinksSetting(sinks, types []string) string {
	var brokers, named []string
	for _, sink := range sinks {
		if types == nil || slices.Contains(types, sink) {
			brokers = append(brokers, sink)
		} else {
			named = append(named, sink)
		}
	}
	var settings []string
	if brokers != nil {
		settings = append(settings, "BROKER_TYPE="+strings.Join(brokers, ","))
	}
	if named != nil {
		settings = append(settings, "RELAY_SINKS="+strings.Join(named, ","))
	}
	return strings.Join(settings, " and ")
}

// CheckSinks returns a *SetupError when the sinks that a relay has by default are not, or may not
// be, where events went before.
func CheckSinks(now []string, by SinksByDefault, before Before) error {
	problem := ""
	fix := "set BROKER_TYPE to the broker that this table's events go to"
	switch {
	case len(before.Sinks) > 0:
		if !slices.ContainsFunc(before.Sinks, func(s string) bool { return !slices.Contains(now, s) }) {
			return nil
		}
		were := strings.Join(before.Sinks, ",")
		problem = fmt.Sprintf("but the relay before this one delivered to %s", were)
		fix = fmt.Sprintf("set %s to go on as before, or BROKER_TYPE=%s to deliver there from now on", SinksSetting(before.Sinks, by.Types), strings.Join(now, ","))
	case by.Hint != "":
		problem = fmt.Sprintf("but %s is set, which only another broker needs", by.Hint)
	case before.Sent:
		problem = "and another worker has sent rows of saga_outbox before, nothing here says where to"
		fix += ": that worker's environment has it"
	default:
		return nil
	}
	return &SetupError{Problem: fmt.Sprintf("BROKER_TYPE is not set, which means %s, %s", strings.Join(now, ","), problem), Fix: fix}
}
