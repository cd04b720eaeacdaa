package engine_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// unfit makes a row of which no record can be made.
func unfit(ev *relay.Event) { ev.Headers = `[]` }

// twins are two keys of one hash, so of one bucket of the shelf.
func twins() (a, b string) {
	seen := make(map[uint32]string)
	for n := 0; ; n++ {
		key := fmt.Sprint("k", n, "-")
		hash := relay.KeyHash(key)
		if other, is := seen[hash]; is {
			return other, key
		}
		seen[hash] = key
	}
}

// What cannot be made into a record goes to the ledger without an offer, and yet not past what is
// still on offer: by whatever way the earlier ones come to the ledger later, each event of the key
// ends, in order, and at once when the sink is back.
func TestNothingIsParkedPastAnOffer(t *testing.T) {
	one, other := twins()
	for _, c := range []struct {
		name   string
		rows   []relay.Event
		parked string // while the sink is down, by position
		taken  string // with the last two, a row of the first key and one of another
		dead   string
	}{
		{"SameKey", []relay.Event{insert("a"), insert("a", unfit)}, "a1 ready, a2 ready", "a1 a3 z1", "a2"},
		{"SameKeyAndMoreBehind", []relay.Event{insert("a"), insert("a", unfit), insert("a"), insert("a", unfit)}, "a1 ready, a2 ready, a3 ready, a4 ready", "a1 a3 a5 z1", "a2 a4"},
		{"UnfitFirst", []relay.Event{insert("a", unfit), insert("a")}, "a1 retry, a2 held", "a2 a3 z1", "a1"},
		{"OthersBetween", []relay.Event{insert("a"), insert("b"), insert("b", unfit), insert("a", unfit), insert("b")}, "a1 ready, b1 ready, b2 ready, a2 ready, b3 ready", "a1 b1 b3 a3 z1", "a2 b2"},
		{"SameBucket", []relay.Event{insert(one), insert(other, unfit), insert(one)}, one + "1 ready, " + other + "1 retry, " + one + "2 ready", one + "1 " + one + "2 " + one + "3 z1", other + "1"},
	} {
		for _, ending := range []string{"Stop", "Isolation", "Passes"} {
			bubble(t, c.name+ending, func(t *testing.T) {
				w, sink := newWorld(t), sinktest.NewScript("kafka")
				cfg := func(cfg *engine.Config) { quick(cfg); cfg.MaxRetries = 2 }
				sink.Down(errBroker)
				r := start(t, w, cfg, sink)
				w.commitRows(c.rows...)
				if c.name == "UnfitFirst" {
					w.until("parked", func() bool { return len(w.ledger.Entries) == 2 })
				} else if err := sink.WaitOffered(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				switch ending {
				case "Stop":
					if err := r.stop(); err != nil {
						t.Fatal(err)
					}
				case "Isolation":
					w.until("all are parked", func() bool { return len(w.ledger.Entries) == len(c.rows) })
					time.Sleep(time.Minute)
				case "Passes":
					time.Sleep(3 * time.Second)
				}
				synctest.Wait()
				if got := strings.ReplaceAll(w.entriesOf("kafka"), "retry", "ready"); ending == "Stop" && got != strings.ReplaceAll(c.parked, "retry", "ready") {
					t.Errorf("ledger: %s, want %s", got, c.parked)
				}
				sink.Down(nil)
				if ending == "Stop" {
					start(t, w, cfg, sink)
				}
				w.commit(c.rows[0].AggregateID, "z")
				w.untilStatus("dead_letter", strings.Fields(c.dead)...)
				w.untilStatus("sent", strings.Fields(c.taken)...)
				for _, key := range []string{"a", "b", one, "z"} {
					var of, want []string
					for _, l := range strings.Fields(labels(sink.Taken())) {
						if strings.HasPrefix(l, key) {
							of = append(of, l)
						}
					}
					for _, l := range strings.Fields(c.taken) {
						if strings.HasPrefix(l, key) {
							want = append(want, l)
						}
					}
					if fmt.Sprint(of) != fmt.Sprint(want) {
						t.Errorf("of key %s: taken %v, want %v", key, of, want)
					}
				}
			})
		}
	}
}

// A sink refuses a record for good while it cannot take one of the same key in front of it: the
// refusal counts when its turn has come.
func TestRefusedBehindWhatIsOfferedAgain(t *testing.T) {
	bubble(t, "Stop", func(t *testing.T) {
		w := newWorld(t)
		sink := &both{Script: sinktest.NewScript("kafka")}
		r := start(t, w, quick, sink)
		w.commit("a", "a", "a")
		for sink.offers() < 2 {
			time.Sleep(time.Second)
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if got, want := w.entriesOf("kafka"), "a1 ready, a2 ready, a3 ready"; got != want {
			t.Errorf("ledger: %s, want %s", got, want)
		}
	})
}

// both is a sink that fails the first record of a batch, and refuses the others without asking
// whether their turn has come.
type both struct {
	*sinktest.Script
	calls atomic.Int32
}

func (s *both) Publish(_ context.Context, batch []*relay.Record) error {
	s.calls.Add(1)
	errs := make([]error, len(batch))
	for i := range errs {
		errs[i] = relay.Refuse(relay.ReasonRejected, errNoQueue)
	}
	errs[0] = errBroker
	return &relay.BatchError{Errs: errs}
}

func (s *both) offers() int { return int(s.calls.Load()) }
