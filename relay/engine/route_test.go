package engine_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// router is a sink's rules, by the labels of events: where they go, or "-" for what is dropped.
type router struct {
	mu    sync.Mutex
	rules map[string]string
}

func routing(rules string) *router {
	r := &router{}
	r.change(rules)
	return r
}

// change makes other rules, as a restart does: "a1:orders b1:-".
func (r *router) change(rules string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules = make(map[string]string)
	for _, rule := range strings.Fields(rules) {
		label, to, _ := strings.Cut(rule, ":")
		r.rules[label] = to
	}
}

func (r *router) Rules() []string { return []string{"drops", "moves", "default"} }

func (r *router) Match(rec *relay.Record, ev *relay.Event) (rule int, drop bool) {
	switch r.to(ev) {
	case "-":
		return 0, true
	case "":
		return 2, false
	default:
		return 1, false
	}
}

func (r *router) to(ev *relay.Event) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rules[label(ev.ID)]
}

func (r *router) Changes(rule int) bool { return rule == 1 }

func (r *router) Apply(_ int, rec *relay.Record, ev *relay.Event) *relay.RefusedError {
	if rec.Topic = r.to(ev); rec.Topic == "!" {
		return &relay.RefusedError{Reason: relay.ReasonEncode, Err: errNoHeader, Final: true}
	}
	return nil
}

var errNoHeader = errors.New("the topic needs a header")

// routed gives a sink rules.
func routed(sink string, r relay.Router) func(*engine.Config) {
	return func(cfg *engine.Config) {
		quick(cfg)
		cfg.Routers = map[string]relay.Router{sink: r}
	}
}

// topics are the taken events with their topics, where those are not the usual.
func topics(s *sinktest.Script) string {
	var all []string
	for _, rec := range s.Taken() {
		text := label(rec.EventID)
		if rec.Topic != "Happened" {
			text += ":" + rec.Topic
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

func wantTopics(t *testing.T, s *sinktest.Script, want string) {
	t.Helper()
	if got := topics(s); got != want {
		t.Errorf("%s got %q, want %q", s.Name(), got, want)
	}
}

func TestRoutes(t *testing.T) {
	// One sink has rules, the other one gets everything as it is.
	bubble(t, "EachSinkHasItsOwn", func(t *testing.T) {
		w, kafka, rabbit := newWorld(t), sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		r := start(t, w, routed("kafka", routing("a2:orders b1:-")), kafka, rabbit)
		w.commit("a", "a", "b", "c")
		w.untilStatus("sent", "a1", "a2", "b1", "c1")
		wantTopics(t, kafka, "a1 a2:orders c1")
		wantTopics(t, rabbit, "a1 a2 b1 c1")
		r.wantMetric(1, "outbox_dropped_events_total", "sink=kafka", "rule=drops")
		r.wantMetric(1, "outbox_routed_events_total", "sink=kafka", "rule=moves")
		r.wantMetric(2, "outbox_routed_events_total", "sink=kafka", "rule=default")
		r.wantMetric(3, "outbox_routed_events_total")
		r.wantMetric(7, "outbox_acknowledged_events_total")
	})

	// Where everything is dropped the sink is not called at all, and what was not asked is not up.
	bubble(t, "NothingIsLeft", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		start(t, w, routed("kafka", routing("a1:- a2:- b1:-")), sink)
		w.commit("a", "a", "b")
		w.untilStatus("sent", "a1", "a2", "b1")
		if calls, _ := sink.Calls(); calls != 0 {
			t.Errorf("the sink was called %d times", calls)
		}
	})

	// Rows of a key are marked in their order, so what is dropped waits for what is before it.
	bubble(t, "DroppedBehindAFailingEvent", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnEvent(id("a1")).Times(3).FailBatch(errBroker)
		start(t, w, routed("kafka", routing("a2:- b1:-")), sink)
		w.commit("a", "a", "b", "a")
		w.untilStatus("sent", "b1")
		wantStatus(t, w, "a2", "pending")
		w.untilStatus("sent", "a1", "a2", "a3")
		wantTopics(t, sink, "a1 a3")
		at := make(map[string]int)
		for i, call := range w.marks {
			for _, l := range call.labels {
				at[l] = i
			}
		}
		if at["a2"] < at["a1"] {
			t.Error("a2 was marked before a1")
		}
	})

	// A refused event stops its key for this sink. What is dropped is not in the ledger behind it.
	bubble(t, "DroppedBehindARefusedEvent", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnEvent(id("a1")).Times(3).Refuse(relay.ReasonUnroutable, errNoQueue)
		start(t, w, routed("kafka", routing("a2:- a4:- a5:late")), sink)
		w.commit("a", "a", "a")
		w.untilStatus("sent", "a2")
		if got := w.entriesOf("kafka"); got != "a1 retry, a3 held" {
			t.Errorf("ledger: %s", got)
		}
		w.commit("a", "a")
		w.untilStatus("sent", "a4")
		if got := w.entriesOf("kafka"); got != "a1 retry, a3 held, a5 held" {
			t.Errorf("ledger: %s", got)
		}
		w.untilStatus("sent", "a1", "a3", "a5")
		wantTopics(t, sink, "a1 a3 a5:late")
	})

	// All events of a sink that is down go to the ledger but for those that it is not to get.
	bubble(t, "SinkIsDown", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.Down(errBroker)
		r := start(t, w, routed("kafka", routing("a2:- b1:- a4:moved")), sink)
		w.commit("a", "a", "b")
		w.untilStatus("sent", "a2", "b1")
		w.commit("a", "a")
		synctest.Wait()
		time.Sleep(10 * time.Second)
		if got := w.entriesOf("kafka"); got != "a1 ready, a3 ready, a4 ready" {
			t.Errorf("ledger: %s", got)
		}
		r.wantMetric(1, "outbox_sink_isolated")
		r.wantMetric(3, "outbox_parked_events_total")
		sink.Down(nil)
		w.untilStatus("sent", "a1", "a3", "a4")
		wantTopics(t, sink, "a1 a3 a4:moved")
	})

	// Rules of now decide about the ledger: what they drop is done, what they move goes there.
	bubble(t, "LedgerByTheRulesOfNow", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		gone := sink.OnKey("a")
		gone.Refuse(relay.ReasonUnknownTopic, errNoQueue)
		rules := routing("a1:old a2:old b1:-")
		r := start(t, w, routed("kafka", rules), sink)
		w.commit("a", "a", "a", "b")
		w.untilStatus("sent", "b1")
		if got := w.entriesOf("kafka"); got != "a1 retry, a2 held, a3 held" {
			t.Errorf("ledger: %s", got)
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		gone.Stop()
		r = start(t, w, routed("kafka", routing("a1:- a2:new")), sink)
		w.untilStatus("sent", "a1", "a2", "a3")
		wantTopics(t, sink, "a2:new a3")
		if got := w.entriesOf("kafka"); got != "" {
			t.Errorf("ledger: %s", got)
		}
		r.wantMetric(1, "outbox_dropped_events_total")
		r.wantMetric(1, "outbox_routed_events_total", "rule=moves")
	})

	// Entries that are dropped show nothing about a sink that is down.
	bubble(t, "LedgerOfASinkThatIsDown", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.Down(errBroker)
		rules := routing("")
		r := start(t, w, routed("kafka", rules), sink)
		w.commit("a", "b", "c")
		time.Sleep(time.Minute)
		if got := w.entriesOf("kafka"); got != "a1 ready, b1 ready, c1 ready" {
			t.Errorf("ledger: %s", got)
		}
		rules.change("a1:- b1:-")
		w.untilStatus("sent", "a1", "b1")
		synctest.Wait()
		r.wantMetric(1, "outbox_sink_isolated")
		if n := r.log.count("sink is back"); n != 0 {
			t.Error("the sink is back by events that it did not get")
		}
		sink.Down(nil)
		w.untilStatus("sent", "c1")
		wantTopics(t, sink, "c1")
	})

	// A row that cannot be made into a record is no dead letter where nobody wants it.
	bubble(t, "Unfit", func(t *testing.T) {
		w, kafka, rabbit := newWorld(t), sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		start(t, w, routed("kafka", routing("a1:-")), kafka, rabbit)
		w.commitRows(insert("a", func(ev *relay.Event) { ev.Payload = "" }))
		w.untilStatus("dead_letter", "a1")
		if got := w.entriesOf("kafka") + "|" + w.entriesOf("rabbitmq"); got != "|a1 dead" {
			t.Errorf("ledger: %s", got)
		}
	})

	// Where a rule cannot name the topic, the event is refused for this sink alone, and stops its key
	// there.
	bubble(t, "NoTopic", func(t *testing.T) {
		w, kafka, rabbit := newWorld(t), sinktest.NewScript("kafka"), sinktest.NewScript("rabbitmq")
		r := start(t, w, func(cfg *engine.Config) {
			routed("kafka", routing("a1:! a3:-"))(cfg)
			cfg.DeadLetter = relay.DeadLetterHold
		}, kafka, rabbit)
		w.commit("a", "a", "a", "b")
		w.untilStatus("sent", "b1", "a3")
		wantStatus(t, w, "a1", "dead_letter: kafka: encode: the topic needs a header")
		wantTopics(t, kafka, "b1")
		wantTopics(t, rabbit, "a1 a2 a3 b1")
		r.wantMetric(1, "outbox_publish_errors_total", "sink=kafka", "reason=encode")
		r.wantMetric(1+1, "outbox_publish_attempts_total", "sink=kafka")
	})

	// What is found in the table is routed as what the stream brings.
	bubble(t, "Polling", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		start(t, w, func(cfg *engine.Config) {
			routed("kafka", routing("a1:polled b1:-"))(cfg)
			cfg.Mode = relay.ModePolling
		}, sink)
		w.commit("a", "b", "a")
		w.untilStatus("sent", "a1", "b1", "a2")
		wantTopics(t, sink, "a1:polled a2")
	})

	// What a person wants once more shows it, also where a rule has moved it.
	bubble(t, "Replayed", func(t *testing.T) {
		w, sink := newWorld(t), sinktest.NewScript("kafka")
		sink.OnEvent(id("a1")).Times(4).Refuse(relay.ReasonRejected, errNoQueue)
		start(t, w, routed("kafka", routing("a1:moved")), sink)
		w.commit("a")
		w.untilStatus("dead_letter", "a1")
		w.change(func() {
			w.ledger.Retry(w.ledger.Entries[0], time.Now())
			w.ledger.Entries[0].Replayed = time.Now()
		})
		w.untilStatus("sent", "a1")
		rec := sink.Taken()[0]
		if n := len(rec.Headers); rec.Topic != "moved" || rec.Headers[n-1].Key != relay.ReplayedHeader {
			t.Errorf("topic %s, headers %v", rec.Topic, rec.Headers)
		}
	})
}

// What is in doubt is looked for where the rules of now put it.
func TestRoutesInDoubt(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after string
		want          string
		asked         string // topics
	}{
		"TheSameRules":  {"a2:orders", "a2:orders", "a1 a2:orders b1", "orders Happened"},
		"RuleIsGone":    {"a2:orders", "", "a1 a2:orders b1 a2", "Happened"},
		"RuleIsNew":     {"", "a2:orders", "a1 a2 b1 a2:orders", "orders Happened"},
		"DroppedNow":    {"", "a2:- b1:-", "a1 a2 b1", ""},
		"DroppedBefore": {"a2:-", "", "a1 b1 a2", "Happened"},
	} {
		bubble(t, name, func(t *testing.T) {
			w, sink := newWorld(t), newTailSink("kafka")
			rules := routing(tt.before)
			start(t, w, routed("kafka", rules), sink)
			w.commit("a")
			w.untilStatus("sent", "a1")
			l := w.lease()
			w.change(func() {
				w.onMark = func(context.Context, int, []relay.Mark) ([]int, error) { return nil, errMarks }
			})
			w.commit("a", "b")
			if err := sink.WaitTaken(t.Context(), 1+strings.Count(tt.want[3:], "b1")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			rules.change(tt.after)
			w.dies(l)
			w.untilStatus("sent", "a2", "b1")
			wantTopics(t, sink.Script, tt.want)
			var asked []string
			for _, q := range sink.queries {
				asked = append(asked, q.Topics...)
			}
			if got := strings.Join(asked, " "); got != tt.asked {
				t.Errorf("read %q, want %q", got, tt.asked)
			}
		})
	}
}
