package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

func TestMain(m *testing.M) {
	natstest.Main()
	pgtest.Main(m)
}

// shortRun is how long rounds are begun for in make test.
const shortRun = 45 * time.Second

// TestChaos is the suite. CHAOS_DURATION is for how long rounds are begun, CHAOS_SEED which is the
// first, CHAOS_FAULTS which kinds of faults there are, CHAOS_SINKS whether into file or brokers only,
// or into named sinks and no others (named_test.go), CHAOS_DIR where all logs stay. CHAOS_SHARDS is
// among how many slots the table is divided; where it is not set that is one, and five in one more
// round into brokers. CHAOS_PODS is how many relays share them in one round as long as
// CHAOS_DURATION; see crowd_test.go.
func TestChaos(t *testing.T) {
	length, err := time.ParseDuration(cmp.Or(os.Getenv("CHAOS_DURATION"), shortRun.String()))
	if err != nil {
		t.Fatalf("CHAOS_DURATION: %v", err)
	}
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("CHAOS_SEED"), strconv.Itoa(rand.IntN(1e9))), 10, 64)
	if err != nil {
		t.Fatalf("CHAOS_SEED: %v", err)
	}
	pods, err := strconv.Atoi(cmp.Or(os.Getenv("CHAOS_PODS"), "0"))
	if err != nil || pods < 0 || pods > maxPods {
		t.Fatalf("CHAOS_PODS=%s: want 1 to %d", os.Getenv("CHAOS_PODS"), maxPods)
	}
	chosen := os.Getenv("CHAOS_FAULTS")
	if pods > 0 {
		chosen = cmp.Or(chosen, crowdFaults)
	}
	faults, err := chosenFaults(chosen)
	if err != nil {
		t.Fatal(err)
	}
	sinks := os.Getenv("CHAOS_SINKS")
	if !slices.Contains([]string{"", "file", "brokers", "named"}, sinks) {
		t.Fatalf("CHAOS_SINKS=%s: want file, brokers or named, or nothing for the first two", sinks)
	}
	shards, err := strconv.Atoi(cmp.Or(os.Getenv("CHAOS_SHARDS"), "0"))
	if err != nil || shards < 0 || shards > relay.MaxShards || shards > 1 && sinks == "file" {
		t.Fatalf("CHAOS_SHARDS=%s: want 1 to %d, and brokers for several", os.Getenv("CHAOS_SHARDS"), relay.MaxShards)
	}
	if shards > 1 || pods > 0 {
		sinks = "brokers"
	}
	t.Logf("CHAOS_SEED=%d", seed)
	testbed := newTestbed(t, sinks != "file")
	var sum totals
	start := time.Now()
	for n, last := uint64(0), false; !last; n++ {
		last = n > 0 && time.Since(start) >= length || pods > 0
		p := newPlan(seed+n, faults, sinks)
		switch {
		case pods > 0:
			p = newCrowd(seed, faults, max(shards, 1), pods, length)
		case last && (shards > 0 || sinks == "file" || sinks == "named"):
			continue
		case sinks == "named":
			p = newNamed(seed + n)
		case last:
			p = newPlan(seed+n, faults, "brokers")
			p.divide(5)
		case shards > 1:
			p.divide(shards)
		}
		t.Run(fmt.Sprint(p.seed), func(t *testing.T) {
			t.Log(p)
			begun := time.Now()
			v, done := runRound(t, testbed, p)
			t.Logf("CHAOS_SEED=%d: %s, in %s", p.seed, v, time.Since(begun).Round(100*time.Millisecond))
			sum.add(v, done)
		})
	}
	t.Logf("%s of chaos from CHAOS_SEED=%d on: %s", time.Since(start).Round(time.Second), seed, &sum)
}

// totals are the sums over rounds.
type totals struct {
	rounds                   int
	events, lost, disordered int
	deadLetters, replays     int
	duplicates, faults       map[string]int
}

func (s *totals) add(v *comparison, done map[string]int) {
	if s.faults == nil {
		s.faults, s.duplicates = make(map[string]int), make(map[string]int)
	}
	s.rounds++
	s.events += v.events
	s.lost += v.lost
	s.disordered += v.disordered
	s.deadLetters += v.deadLeft
	s.replays += v.replays
	for name, n := range v.duplicates {
		s.duplicates[name] += n
	}
	for name, n := range done {
		s.faults[name] += n
	}
}

func (s *totals) String() string {
	list := func(counts map[string]int) string {
		var all []string
		for _, name := range slices.Sorted(maps.Keys(counts)) {
			all = append(all, fmt.Sprintf("%d %s", counts[name], name))
		}
		return cmp.Or(strings.Join(all, ", "), "none")
	}
	return fmt.Sprintf("%d rounds, %d events, %d lost, %d out of order, %d dead letters that were meant to be, %d replays\nfaults: %s\nduplicates, by what explains them: %s",
		s.rounds, s.events, s.lost, s.disordered, s.deadLetters, s.replays, list(s.faults), list(s.duplicates))
}

// The same seed is the same plan, and other seeds are others; over many seeds each fault has its
// turn.
func TestPlan(t *testing.T) {
	t.Parallel()
	faults := allFaults()
	seen := make(map[string]bool)
	plans := make(map[string]bool)
	for seed := range uint64(300) {
		p := newPlan(seed, faults, "")
		if again := newPlan(seed, allFaults(), "").String(); again != p.String() {
			t.Fatalf("seed %d: %s\nand then %s", seed, p, again)
		}
		plans[p.String()] = true
		for i, s := range p.steps {
			seen[s.fault.name] = true
			if s.fault.brokers && len(p.sinks) == 1 {
				t.Errorf("seed %d: %s without brokers", seed, s)
			}
			if s.seat < -1 || s.seat >= p.relays || s.hold < s.fault.least || s.hold > s.fault.most || i > 0 && s.at < p.steps[i-1].at {
				t.Errorf("seed %d: %s", seed, s)
			}
		}
	}
	if len(plans) != 300 {
		t.Errorf("%d plans from 300 seeds", len(plans))
	}
	for _, f := range faults {
		if !seen[f.name] {
			t.Errorf("%s never happens", f.name)
		}
	}
}

func TestChosenFaults(t *testing.T) {
	t.Parallel()
	for names, want := range map[string]int{"": len(allFaults()), "kill": 1, "kill,lock": 2, "pg": 7} {
		if got, err := chosenFaults(names); err != nil || len(got) != want {
			t.Errorf("%q: %d faults and %v, want %d", names, len(got), err, want)
		}
	}
	if _, err := chosenFaults("kill,earthquake"); err == nil || !strings.Contains(err.Error(), "earthquake") || !strings.Contains(err.Error(), "freeze") {
		t.Errorf("got %v, want the name and those that there are", err)
	}
}
