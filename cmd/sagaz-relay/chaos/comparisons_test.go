package chaos

import (
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// The comparison sees each kind of damage, and lets pass what a fault explains: a suite that cannot
// turn red proves nothing.
func TestComparison(t *testing.T) {
	t.Parallel()
	event := func(name string) verify.Event {
		var id relay.UUID
		copy(id[:], name)
		return verify.Event{ID: id, Key: name[:1]}
	}
	list := func(text string) (all []verify.Event) {
		for _, name := range strings.Fields(text) {
			all = append(all, event(name))
		}
		return all
	}
	set := func(text string) ids {
		all := make(ids)
		for _, e := range list(text) {
			all[e.ID] = true
		}
		return all
	}
	const committed = "a1 a2 b1 a3"
	for _, c := range []struct {
		name                         string
		got                          string
		dead, poison, replayed, why  string
		apart                        string
		locked                       bool
		lost, disordered, duplicates int
		problem                      string // a part of it; empty for none
	}{
		{name: "all there", got: committed},
		{name: "lost", got: "a1 b1 a3", lost: 1, problem: "missing"},
		{name: "invented", got: committed + " a9", problem: "never committed"},
		{name: "overtaken", got: "a1 a3 a2 b1", disordered: 1, problem: "out of order"},
		{name: "again for no reason", got: "a1 a2 b1 a3 a3", duplicates: 1, problem: "no fault of this round"},
		{name: "again, explained", got: "a1 a2 a2 b1 a3", why: "kill", duplicates: 1},
		{name: "again more often than that explains", got: committed + strings.Repeat(" b1", maxRepeated+1), why: "kill", duplicates: maxRepeated + 1, problem: "at most"},
		{name: "a dead letter that was meant to be", got: "a1 b1 a3", dead: "a2", poison: "a2"},
		{name: "one that was not", got: "a1 b1 a3", dead: "a2", problem: "nothing was wrong"},
		{name: "poison that never went out", got: "a1 b1 a3", poison: "a2", lost: 1, problem: "missing"},
		{name: "replayed", got: "a1 a2 b1 a3 a1", replayed: "a1"},
		{name: "replayed and lost", got: "a2 b1 a3", replayed: "a1", lost: 1, problem: "set back"},
		{name: "again with a hole", got: "a1 a2 b1 a3 a1 a3", why: "kill", duplicates: 2, disordered: 1, problem: "out of order"},
		{name: "again with a hole, of locked rows", got: "a1 a2 b1 a3 a1 a3", why: "kill", duplicates: 2, locked: true},
		{name: "overtaken with locked rows", got: "a1 a3 a2 b1", disordered: 1, locked: true, problem: "out of order"},
		{name: "elsewhere", got: "a1 b1 a3 a2", apart: "a2"},
		{name: "elsewhere and lost", got: "a1 b1 a3", apart: "a2", lost: 1, problem: "no order to keep"},
		{name: "elsewhere, again", got: "a1 b1 a3 a2 a2", apart: "a2", duplicates: 1, problem: "no fault of this round"},
		{name: "another one again with a replay", got: "a1 a2 b1 a3 a1 b1", replayed: "a1", duplicates: 1, problem: "no fault of this round"},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := verify.New(verify.Options{MaxDuplicates: verify.AnyNumber}, "kafka", "rabbitmq")
			check.Commit(list(committed)...)
			e := &evidence{
				check: check, got: map[string][]verify.Event{"kafka": list(c.got), "rabbitmq": list(committed)},
				dead: map[string]ids{"kafka": set(c.dead)}, poison: map[string]ids{"kafka": set(c.poison)},
				apart: map[string]ids{"kafka": set(c.apart)}, replayed: set(c.replayed), excuses: map[string][]string{"kafka": strings.Fields(c.why)}, locked: c.locked,
			}
			v := e.judge()
			duplicates := 0
			for _, n := range v.duplicates {
				duplicates += n
			}
			if v.lost != c.lost || v.disordered != c.disordered || duplicates != c.duplicates {
				t.Errorf("got %s, want %d lost, %d out of order, %d duplicates", v, c.lost, c.disordered, c.duplicates)
			}
			text := strings.Join(v.problems, "\n")
			if c.problem == "" && text != "" || !strings.Contains(text, c.problem) {
				t.Errorf("got problems %q, want %q", text, c.problem)
			}
		})
	}
}
