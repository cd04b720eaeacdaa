package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// plan is everything that a round's seed decides.
type plan struct {
	seed   uint64
	sinks  []string          // file, or kafka and rabbitmq; or names
	kinds  map[string]string // of sinks with names of their own
	relays int
	shards int      // slots of the table, at first
	env    settings // of each relay
	steps  []step   // by time
	skew   []time.Duration
	// letters is what becomes of events that a sink cannot take.
	letters letters
}

// letters is what becomes of refused events.
type letters string

const (
	lettersFixed letters = "fixed" // they are offered until what is wrong is fixed
	lettersDead  letters = "dead"  // they are dead letters in the end, and stay so
	// they are dead letters, what is wrong is fixed, and a person retries them
	lettersRetried   letters = "retried"
	lettersDiscarded letters = "discarded" // they are dead letters, and a person gives them up
)

// step is one fault.
type step struct {
	fault *fault
	at    time.Duration // from the round's start
	hold  time.Duration // until it ends
	seat  int           // which relay, if it is about one; whoever owns the (picked) slot then, if negative
	pick  uint64        // for what else is to be chosen
	to    int           // slots that the table is to have
}

func (s step) String() string {
	text := fmt.Sprintf("%s at %.1fs for %.1fs", s.fault.name, s.at.Seconds(), s.hold.Seconds())
	switch {
	case s.to > 0:
		text += fmt.Sprintf(" (to %d slots)", s.to)
	case !s.fault.seat:
	case s.seat < 0:
		text += " (the owner)"
	default:
		text += fmt.Sprintf(" (relay %d)", s.seat)
	}
	return text
}

const (
	maxRelays = 3
	maxPods   = 16 // relays of a crowd
	// inflight bounds what a crash may repeat.
	inflight = 400
	keys     = 24
)

// Limits for relays in rounds: short, so that a round sees the end of what they are for.
const (
	leaseTTL   = 4 * time.Second
	maxRetries = 4 // where dead letters are wanted
)

// newPlan decides a round from its seed: faults of the given kinds, sinks as wanted ("file",
// "brokers", or "" for either).
func newPlan(seed uint64, faults []*fault, sinks string) *plan {
	rnd := rand.New(rand.NewPCG(seed, 0))
	p := &plan{seed: seed, shards: 1}
	chance := func(percent int) bool { return rnd.IntN(100) < percent }
	between := func(low, high time.Duration) time.Duration { return low + time.Duration(rnd.Int64N(int64(high-low))) }

	if brokers := chance(70); sinks == "file" || sinks == "" && !brokers {
		p.sinks = []string{"file"}
	} else {
		p.sinks = []string{"kafka", "rabbitmq"}
	}
	p.relays = 1 + rnd.IntN(maxRelays)
	for i := range keys {
		// Clocks that are hours off, that differ as those of good hosts do, and that are at the
		// edge of what the relay takes for new.
		around, by := time.Duration(0), 2*time.Hour
		switch i % 4 {
		case 1:
			by = time.Second
		case 2:
			around, by = -2*time.Minute, 2*time.Second
		}
		p.skew = append(p.skew, around+between(-by, by))
	}
	p.env = settings{
		"BROKER_TYPE":                    strings.Join(p.sinks, ","),
		"RELAY_INFLIGHT_EVENTS":          fmt.Sprint(inflight),
		"RELAY_LEASE_TTL":                leaseTTL.String(),
		"RELAY_WAL_SENDER_TIMEOUT":       "4s",
		"RELAY_BACKOFF_MAX":              "500ms",
		"RELAY_DRAIN_TIMEOUT":            "8s",
		"INITIAL_RETRY_DELAY_SECONDS":    "0.1",
		"MAX_RETRY_DELAY_SECONDS":        "1",
		"MAX_RETRIES":                    "1000000",
		"RELAY_UNROUTABLE_PATIENCE":      "0s",
		"RELAY_FILE_FSYNC":               "false", // no machine crashes here
		"RELAY_PUBLISH_TIMEOUT":          "8s",
		"RELAY_KAFKA_REQUEST_TIMEOUT":    "3s",
		"RELAY_KAFKA_DIAL_TIMEOUT":       "1s",
		"RELAY_KAFKA_METADATA_TTL":       "1s",
		"RELAY_KAFKA_TOPIC_WAIT":         "200ms",
		"RELAY_RABBITMQ_CONFIRM_TIMEOUT": "3s",
		"RELAY_LANES":                    fmt.Sprint(1 + rnd.IntN(6)),
		"BATCH_SIZE":                     fmt.Sprint(20 + rnd.IntN(400)),
		"RELAY_MARK_BATCH":               fmt.Sprint(10 + rnd.IntN(400)),
		"POLL_INTERVAL":                  between(100*time.Millisecond, time.Second).String(),
	}
	if chance(60) {
		p.env["RELAY_SINK_ISOLATION"] = between(1500*time.Millisecond, 5*time.Second).String()
	}
	switch n := rnd.IntN(100); {
	case n < 50:
		p.letters = lettersFixed
	case n < 65:
		p.letters = lettersDead
	case n < 90:
		p.letters = lettersRetried
	default:
		p.letters = lettersDiscarded
	}
	if p.letters != lettersFixed {
		p.env["MAX_RETRIES"] = fmt.Sprint(maxRetries)
	}
	if hold := chance(60); hold && (p.letters == lettersRetried || p.letters == lettersDiscarded) {
		p.env["RELAY_DEAD_LETTER"] = "hold"
	}
	if chance(50) {
		p.env["RELAY_WAL_BUDGET"] = fmt.Sprint(1<<20 + rnd.IntN(4<<20))
	}
	if chance(15) {
		p.env["RELAY_MODE"] = "polling"
	}
	switch n := rnd.IntN(100); {
	case n < 10:
		p.env["RELAY_MARK"] = "delete"
	case n < 20:
		p.env["RELAY_MARK"] = "archive"
	}

	var usable []*fault
	total := 0
	for _, f := range faults {
		if !f.brokers || len(p.sinks) > 1 {
			usable = append(usable, f)
			total += f.weight
		}
	}
	if total == 0 {
		return p
	}
	at := time.Duration(0)
	for range 3 + rnd.IntN(6) {
		n := rnd.IntN(total)
		i := slices.IndexFunc(usable, func(f *fault) bool {
			n -= f.weight
			return n < 0
		})
		f := usable[i]
		if f.once && slices.ContainsFunc(p.steps, func(s step) bool { return s.fault.once && s.fault.repeats == f.repeats }) {
			continue // a broker takes long to come back, on a busy machine most of a minute
		}
		at += between(200*time.Millisecond, 2500*time.Millisecond)
		s := step{fault: f, at: at, hold: between(f.least, f.most), seat: rnd.IntN(p.relays), pick: rnd.Uint64()}
		if chance(60) {
			s.seat = -1
		}
		p.steps = append(p.steps, s)
	}
	return p
}

// kind is what a sink is.
func (p *plan) kind(sink string) string {
	if kind := p.kinds[sink]; kind != "" {
		return kind
	}
	return sink
}

// divide makes it the plan of a table that is divided among so many slots, which as many relays as
// may be share.
func (p *plan) divide(shards int) {
	p.shards, p.relays = shards, maxRelays
	p.env = p.env.with(settings{"RELAY_SHARDS": fmt.Sprint(shards)})
}

// String is the plan for people, as a failure reports it.
func (p *plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d relays into %s", p.seed, p.relays, strings.Join(p.sinks, "+"))
	if p.shards > 1 {
		fmt.Fprintf(&b, " from %d slots", p.shards)
	}
	fmt.Fprintf(&b, ", refused events are %s", p.letters)
	for _, name := range []string{"RELAY_MODE", "RELAY_MARK", "RELAY_DEAD_LETTER", "RELAY_SINK_ISOLATION", "RELAY_WAL_BUDGET"} {
		if value := p.env[name]; value != "" {
			fmt.Fprintf(&b, ", %s=%s", name, value)
		}
	}
	for _, s := range p.steps {
		fmt.Fprintf(&b, "; %s", s)
	}
	return b.String()
}
