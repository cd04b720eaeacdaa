package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// A crowd is one long round: many pods that share the slots of one table, of which all the time some
// are killed, stopped, frozen or cut off from the database, and come back, while the number of slots
// is changed twice.
//
//	make chaos SHARDS=8 PODS=10 DURATION=15m

// crowdFaults are the kinds of faults of a crowd, where none are chosen.
const crowdFaults = "kill,term,freeze,pg-cut,pg-silent,pg-deaf"

// newCrowd is the plan of a crowd.
func newCrowd(seed uint64, faults []*fault, shards, pods int, length time.Duration) *plan {
	p := newPlan(seed, nil, "brokers")
	p.divide(shards)
	p.relays, p.letters = pods, lettersFixed
	p.env["MAX_RETRIES"] = "1000000"
	// The lease is as long as in production: where ten relays keep a machine busy, a short one
	// lapses by itself.
	for _, name := range []string{"RELAY_MODE", "RELAY_MARK", "RELAY_DEAD_LETTER", "RELAY_LEASE_TTL", "RELAY_WAL_SENDER_TIMEOUT"} {
		delete(p.env, name)
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	between := func(low, high time.Duration) time.Duration { return low + time.Duration(rnd.Int64N(int64(high-low))) }
	var usable []*fault
	for _, f := range faults {
		for range f.weight {
			usable = append(usable, f)
		}
	}
	for at := between(time.Second, 3*time.Second); at < length; at += between(300*time.Millisecond, 3*time.Second) {
		f := usable[rnd.IntN(len(usable))]
		s := step{fault: f, at: at, hold: between(f.least, f.most), seat: rnd.IntN(pods), pick: rnd.Uint64()}
		if f.least > 0 { // of a freeze and the like: longer than that lease, or not
			s.hold *= 2
		}
		if rnd.IntN(2) == 0 {
			s.seat = -1
		}
		p.steps = append(p.steps, s)
	}
	other := 1 + rnd.IntN(2*shards)
	if other == shards {
		other++
	}
	for i, to := range []int{other, shards} {
		p.steps = append(p.steps, step{fault: changeFault, at: time.Duration(i+1) * length / 3, hold: between(0, 3*time.Second), pick: rnd.Uint64(), to: to})
	}
	slices.SortStableFunc(p.steps, func(a, b step) int { return int(a.at - b.at) })
	return p
}

// changeFault changes the number of slots. Every other time the command that asks for it is killed
// before, once or twice.
var changeFault = &fault{name: "change", weight: 1, most: 3 * time.Second, do: (*round).change}

func (r *round) change(s step) error {
	for range s.pick % 3 {
		p, err := r.migrate("--shards", fmt.Sprint(s.to))
		if err != nil {
			return err
		}
		time.Sleep(s.hold)
		if err := p.Kill(); err != nil {
			return err
		}
	}
	for began := time.Now(); ; {
		p, err := r.migrate("--shards", fmt.Sprint(s.to))
		if err != nil {
			return err
		}
		<-p.Done()
		if p.Err() == nil {
			r.t.Logf("%d slots instead of %d after %s", s.to, r.shards.Swap(int64(s.to)), time.Since(began).Round(10*time.Millisecond))
			return nil
		}
		if strings.Contains(p.lastLine(), "the change was given up") { // by the next one
			return nil
		}
		// Another fault may have ended its connection: it is run again.
		if time.Since(began) > patience {
			return fmt.Errorf("migrate --shards %d: %w: %s", s.to, p.Err(), p.lastLine())
		}
	}
}

// leftovers waits until nothing is left of the slots that there were before a change.
func (r *round) leftovers() {
	want := fmt.Sprintf("%[1]d slots, %[1]d publications", r.shards.Load())
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		got, err := query[string](r, `SELECT format('%s slots, %s publications', (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()), (SELECT count(*) FROM pg_publication))`)
		switch {
		case err == nil && len(got) == 1 && got[0] == want:
			return
		case time.Now().After(deadline):
			r.errorf("there are %v (%v), want %s", got, err, want)
			return
		}
	}
}

// migrate starts the command.
func (r *round) migrate(args ...string) (*process, error) {
	env := settings{"DATABASE_URL": r.plan.env["DATABASE_URL"], "RELAY_SLOT": r.slot, "RELAY_SHARDS": fmt.Sprint(r.plan.shards)}
	p, err := r.launch("migrate", env, append([]string{"migrate"}, args...)...)
	if err == nil {
		p.expected.Store(true)
	}
	return p, err
}

// The same seed is the same crowd: faults from its beginning to its end, of pods that there are, and
// two changes of the number of slots.
func TestCrowdPlan(t *testing.T) {
	t.Parallel()
	faults, err := chosenFaults(crowdFaults)
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(50) {
		p := newCrowd(seed, faults, 8, 10, 5*time.Minute)
		if again := newCrowd(seed, faults, 8, 10, 5*time.Minute).String(); again != p.String() {
			t.Fatalf("seed %d: %s\nand then %s", seed, p, again)
		}
		if n := strings.Count(p.String(), "change at"); n != 2 {
			t.Errorf("seed %d: %d changes", seed, n)
		}
		if n := len(p.steps); n < 100 || p.steps[n-1].at < 4*time.Minute {
			t.Errorf("seed %d: %d faults until %s", seed, n, p.steps[n-1].at)
		}
		for _, s := range p.steps {
			if s.seat < -1 || s.seat >= 10 || s.to > 16 {
				t.Errorf("seed %d: %s", seed, s)
			}
		}
	}
}
