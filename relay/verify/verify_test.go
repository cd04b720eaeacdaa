package verify

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// id makes the event's id from a letter and a number: "a3" is number 3 of key a.
func id(name string) relay.UUID {
	var u relay.UUID
	copy(u[:], name)
	return u
}

// events reads "a0 a1 b0": the letters before the number are the key. "a0@b" is event a0 under key
// b.
func events(text string) []Event {
	var list []Event
	for _, word := range strings.Fields(text) {
		name, key, other := strings.Cut(word, "@")
		if !other {
			key = strings.TrimRight(name, "0123456789")
		}
		list = append(list, Event{id(name), key})
	}
	return list
}

func TestReport(t *testing.T) {
	const committed = "a0 a1 b0 a2 b1"
	for _, tc := range []struct {
		name, delivered string
		// want is "missing unknown wrong-key duplicates", then each disorder as event and kind's
		// first word
		want string
	}{
		{"Complete", "a0 a1 b0 a2 b1", "0 0 0 0"},
		{"KeysInterleaveOtherwise", "b0 a0 b1 a1 a2", "0 0 0 0"},
		{"Nothing", "", "5 0 0 0"},
		{"OneMissingInside", "a0 b0 a2 b1", "1 0 0 0"},
		{"OneMissingAtTheStart", "a1 a2 b0 b1", "1 0 0 0"},
		{"OneMissingAtTheEnd", "a0 a1 b0 b1", "1 0 0 0"},
		{"RolledBack", "a0 x7 a1 b0 a2 b1", "0 1 0 0"},
		{"UnknownTwice", "a0 x7 a1 b0 a2 b1 x7", "0 2 0 0"},
		{"OtherKey", "a0 a1@b b0 a2 b1", "0 0 1 0"},
		{"Swapped", "a0 a2 a1 b0 b1", "0 0 0 0 a2:overtook"},
		{"LastFirst", "a2 a0 a1 b0 b1", "0 0 0 0 a2:overtook"},
		{"Reversed", "a2 a1 a0 b0 b1", "0 0 0 0 a2:overtook a1:overtook"},
		{"SwappedAndMissing", "a2 a1 b0 b1", "1 0 0 0 a2:overtook"},
		{"LastRepeated", "a0 a1 a2 a2 b0 b1", "0 0 0 1"},
		{"EachRepeatedAtOnce", "a0 a0 a1 a1 a2 a2 b0 b0 b1", "0 0 0 4"},
		{"SuffixRepeated", "a0 a1 a2 b0 b1 a1 a2", "0 0 0 2"},
		{"AllRepeated", "a0 a1 a2 a0 a1 a2 b0 b1 b0 b1", "0 0 0 5"},
		{"RepeatedBeforeNew", "a0 a1 a0 a1 a2 b0 b1", "0 0 0 2"},
		{"FurtherBack", "a0 a1 a1 a0 a1 a2 b0 b1", "0 0 0 3"},
		{"RepetitionLeavesOneOut", "a0 a1 a2 a0 a2 b0 b1", "0 0 0 2 a2:came"},
		{"RepetitionLeavesOneOutBeforeNew", "a0 a1 a0 a2 b0 b1", "0 0 0 1 a2:came"},
		{"RepetitionStopsShort", "a0 a1 a2 a0 b0 b1", "0 0 0 1 a0:was"},
		{"RepetitionBackwards", "a0 a1 a2 a2 a1 a0 b0 b1", "0 0 0 3 a0:was"},
		{"RepetitionPastAMissingOne", "a0 a2 a0 a2 b0 b1", "1 0 0 2"},
		{"OvertookInARepetition", "a0 a2 a0 a1 a2 b0 b1", "0 0 0 2 a2:overtook"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := New(Options{MaxDuplicates: AnyNumber}, "sink")
			c.Commit(events(committed)...)
			c.Deliver("sink", events(tc.delivered)...)
			r := c.Report()
			s := r.Sinks[0]
			got := fmt.Sprintf("%d %d %d %d", len(s.Missing), len(s.Unknown), len(s.WrongKey), len(s.Duplicates))
			for _, d := range s.OutOfOrder {
				kind, _, _ := strings.Cut(string(d.Kind), " ")
				got += fmt.Sprintf(" %s:%s", d.Event.ID[:2], kind)
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			wantErr := strings.Trim(tc.want[:5], "0 ") != "" || strings.Contains(tc.want, ":")
			if err := r.Err(); (err != nil) != wantErr {
				t.Errorf("got error %v, want one: %v", err, wantErr)
			}
		})
	}
}

func TestDuplicatesAllowed(t *testing.T) {
	for _, tc := range []struct {
		allowed int
		fails   bool
	}{{0, true}, {1, true}, {2, false}, {AnyNumber, false}} {
		c := New(Options{MaxDuplicates: tc.allowed}, "sink")
		c.Commit(events("a0 a1")...)
		c.Deliver("sink", events("a0 a1 a0 a1")...)
		if err := c.Report().Err(); (err != nil) != tc.fails {
			t.Errorf("%d allowed: got %v", tc.allowed, err)
		}
	}
}

func TestDeadLetters(t *testing.T) {
	c := New(Options{}, "kafka", "rabbitmq")
	c.Commit(events("a0 a1 a2")...)
	c.DeadLetter("kafka", id("a0"), id("a1"))
	c.Deliver("kafka", events("a2 a1")...) // a1 was retried, late
	c.Deliver("rabbitmq", events("a0 a1 a2")...)
	r := c.Report()
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if got := r.Sinks[0].DeadLetters; got != 1 {
		t.Errorf("got %d dead letters that did not arrive, want 1", got)
	}
}

func TestSinksAreJudgedApart(t *testing.T) {
	c := New(Options{}, "kafka", "rabbitmq", "file")
	c.Deliver("kafka", events("a0 a1")...) // before the commit is noted
	c.Commit(events("a0 a1")...)
	c.Deliver("rabbitmq", events("a1")...)
	err := c.Report().Err()
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{"sink rabbitmq: 1 missing", "sink file: 2 missing"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	if strings.Contains(err.Error(), "kafka") {
		t.Errorf("got %v, want nothing about kafka", err)
	}
}

func TestNoSinkIsAnError(t *testing.T) {
	c := New(Options{})
	c.Commit(events("a0")...)
	if c.Report().Err() == nil {
		t.Fatal("got no error")
	}
}

func TestCommittedTwicePanics(t *testing.T) {
	c := New(Options{}, "sink")
	c.Commit(events("a0")...)
	defer func() {
		if recover() == nil {
			t.Fatal("no panic")
		}
	}()
	c.Commit(events("a0")...)
}

// The twin judges by the words of the promises, without ranks and without caring for speed.
func twin(committed []Event, delivered []Event) (missing, unknown, duplicates int, ordered bool) {
	ordered = true
	for _, e := range committed {
		if !slices.Contains(delivered, e) {
			missing++
		}
	}
	for i, e := range delivered {
		if !slices.Contains(committed, e) {
			unknown++
		} else if slices.Contains(delivered[:i], e) {
			duplicates++
		}
	}
	for _, key := range []string{"a", "b", "c"} {
		of := func(e Event) bool { return e.Key == key }
		// should is what arrived, in commit order; did is how.
		var should, did []Event
		for _, e := range committed {
			if of(e) && slices.Contains(delivered, e) {
				should = append(should, e)
			}
		}
		for _, e := range delivered {
			if of(e) && slices.Contains(committed, e) {
				did = append(did, e)
			}
		}
		if len(did) == 0 {
			continue
		}
		var firsts []Event
		for i, e := range did {
			if !slices.Contains(did[:i], e) {
				firsts = append(firsts, e)
			}
		}
		if !slices.Equal(firsts, should) {
			ordered = false
		}
		for i := 1; i < len(did); i++ {
			if slices.Index(should, did[i]) > slices.Index(should, did[i-1])+1 {
				ordered = false
			}
		}
		if did[len(did)-1] != should[len(should)-1] {
			ordered = false
		}
	}
	return missing, unknown, duplicates, ordered
}

// deliveries makes a legal sequence: a sink that now and then goes back by some events.
func deliveries(rng *rand.Rand, committed []Event) []Event {
	var out []Event
	for i := 0; i < len(committed); i++ {
		out = append(out, committed[i])
		if rng.IntN(6) == 0 {
			i -= rng.IntN(i + 2)
			i = max(i, -1)
		}
	}
	return out
}

func judge(committed, delivered []Event) SinkReport {
	c := New(Options{MaxDuplicates: AnyNumber}, "sink")
	c.Commit(committed...)
	c.Deliver("sink", delivered...)
	return c.Report().Sinks[0]
}

func randomCommits(rng *rand.Rand) []Event {
	var committed []Event
	for i := range 1 + rng.IntN(12) {
		committed = append(committed, events(fmt.Sprintf("%c%d", 'a'+rng.IntN(3), i))...)
	}
	return committed
}

func TestAgainstTwin(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	legal := 0
	for range 6000 {
		committed := randomCommits(rng)
		delivered := deliveries(rng, committed)
		for range rng.IntN(4) { // and something may go wrong
			if len(delivered) == 0 {
				break
			}
			i, j := rng.IntN(len(delivered)), rng.IntN(len(delivered))
			switch rng.IntN(5) {
			case 0:
				delivered = slices.Delete(delivered, i, i+1)
			case 1:
				delivered[i], delivered[j] = delivered[j], delivered[i]
			case 2:
				delivered = slices.Insert(delivered, i, delivered[j])
			case 3:
				delivered = slices.Insert(delivered, i, events(fmt.Sprintf("%c%d", 'a'+rng.IntN(3), 100+rng.IntN(9)))...)
			case 4:
				delivered = slices.DeleteFunc(delivered, func(e Event) bool { return e == delivered[min(i, len(delivered)-1)] })
			}
		}
		got := judge(committed, delivered)
		missing, unknown, duplicates, ordered := twin(committed, delivered)
		if len(got.Missing) != missing || len(got.Unknown) != unknown || len(got.Duplicates) != duplicates || (len(got.OutOfOrder) == 0) != ordered {
			t.Fatalf("seed %d: committed %v, delivered %v:\ngot missing %v, unknown %v, duplicates %v, out of order %v\nwant %d, %d, %d, ordered %v",
				seed, committed, delivered, got.Missing, got.Unknown, got.Duplicates, got.OutOfOrder, missing, unknown, duplicates, ordered)
		}
		if ordered && missing+unknown == 0 {
			legal++
		}
	}
	if legal < 500 {
		t.Errorf("seed %d: only %d of the cases were legal: the test looks at one side only", seed, legal)
	}
}

// Every single thing that a relay could do wrong must be seen, and blamed on the event it happened
// to.
func TestEveryViolationIsFound(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		committed := randomCommits(rng)
		clean := deliveries(rng, committed)
		if s := judge(committed, clean); s.err(Options{MaxDuplicates: AnyNumber}) != nil {
			t.Fatalf("seed %d: %v of %v: %v", seed, clean, committed, s.err(Options{MaxDuplicates: AnyNumber}))
		}
		victim := committed[rng.IntN(len(committed))]
		without := slices.DeleteFunc(slices.Clone(clean), func(e Event) bool { return e == victim })

		if s := judge(committed, without); !slices.Equal(s.Missing, []Event{victim}) || len(s.OutOfOrder) > 0 {
			t.Fatalf("seed %d: lost %v: got missing %v, out of order %v", seed, victim, s.Missing, s.OutOfOrder)
		}
		rest := slices.DeleteFunc(slices.Clone(committed), func(e Event) bool { return e == victim })
		if s := judge(rest, clean); len(s.Unknown) == 0 || s.Unknown[0] != victim {
			t.Fatalf("seed %d: rolled back %v: got unknown %v", seed, victim, s.Unknown)
		}
		moved := victim
		moved.Key += "'"
		if s := judge(committed, append(without, moved)); len(s.WrongKey) != 1 || s.WrongKey[0].Event != victim {
			t.Fatalf("seed %d: moved %v: got %v", seed, victim, s.WrongKey)
		}
		// Two neighbours of one key, each delivered once, change places.
		i := slices.Index(committed, victim)
		j := i + 1
		for j < len(committed) && committed[j].Key != victim.Key {
			j++
		}
		if j < len(committed) {
			swapped := slices.Clone(committed)
			swapped[i], swapped[j] = swapped[j], swapped[i]
			if s := judge(committed, swapped); len(s.OutOfOrder) != 1 || s.OutOfOrder[0].Event != committed[j] || s.OutOfOrder[0].Kind != Overtook {
				t.Fatalf("seed %d: swapped %v and %v: got %v", seed, victim, committed[j], s.OutOfOrder)
			}
			// And a redelivery from victim on that ends right after it.
			if s := judge(committed, append(slices.Clone(committed), victim)); len(s.OutOfOrder) != 1 || s.OutOfOrder[0].Kind != Stopped {
				t.Fatalf("seed %d: repeated only %v: got %v", seed, victim, s.OutOfOrder)
			}
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	c := New(Options{}, "sink")
	var group sync.WaitGroup
	for worker := range 8 {
		key := string(rune('a' + worker))
		sent := make(chan Event, 10)
		group.Go(func() {
			for i := range 500 {
				e := events(fmt.Sprintf("%s%d", key, i))[0]
				sent <- e
				c.Commit(e)
			}
			close(sent)
		})
		group.Go(func() {
			for e := range sent {
				c.Deliver("sink", e)
			}
		})
	}
	c.Report()
	group.Wait()
	if err := c.Report().Err(); err != nil {
		t.Fatal(err)
	}
	if committed, delivered := c.Counts("sink"); committed != 4000 || delivered != 4000 {
		t.Fatalf("got %d and %d, want 4000", committed, delivered)
	}
}

func BenchmarkMillion(b *testing.B) {
	committed := make([]Event, 1_000_000)
	for i := range committed {
		binary.BigEndian.PutUint64(committed[i].ID[:], rand.Uint64())
		binary.BigEndian.PutUint64(committed[i].ID[8:], uint64(i))
		committed[i].Key = fmt.Sprint("order-", i/5)
	}
	b.ReportAllocs()
	for b.Loop() {
		c := New(Options{}, "sink")
		for i := 0; i < len(committed); i += 100 {
			c.Commit(committed[i : i+100]...)
			c.Deliver("sink", committed[i:i+100]...)
		}
		if err := c.Report().Err(); err != nil {
			b.Fatal(err)
		}
	}
}
