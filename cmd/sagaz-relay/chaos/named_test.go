package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/nats"
)

// A round with CHAOS_SINKS=named has three named sinks, of Kafka, RabbitMQ and NATS. One after the
// other is away until its events go to the ledger, while the owner is killed. The ledger has entries
// of that sink alone; when it is back it gets them, and each sink has everything, in order, under its
// name.

// namedSinks are the names, and the kinds.
var namedSinks = []struct{ name, kind string }{{"orders-kafka", "kafka"}, {"audit-rabbit", "rabbitmq"}, {"feed-nats", "nats"}}

// newNamed is the plan of that round.
func newNamed(seed uint64) *plan {
	p := newPlan(seed, nil, "brokers")
	p.relays, p.letters = 2, lettersFixed
	p.sinks, p.kinds = nil, make(map[string]string)
	for _, s := range namedSinks {
		p.sinks, p.kinds[s.name] = append(p.sinks, s.name), s.kind
	}
	p.env = p.env.with(settings{"BROKER_TYPE": "", "RELAY_SINKS": strings.Join(p.sinks, ","), "RELAY_SINK_ISOLATION": "5s", "RELAY_PUBLISH_TIMEOUT": "20s", "MAX_RETRIES": "1000000", "RELAY_DEAD_LETTER": "", "RELAY_WAL_BUDGET": ""})
	p.steps = []step{{fault: &fault{name: "one-sink-away", repeats: allSinks, do: (*round).oneSinkAway}, at: time.Second, hold: time.Second, seat: -1}}
	return p
}

// nameEnv are the variables of named sinks.
func (r *round) nameEnv(env settings) settings {
	k, q := r.testbed.kafka, r.testbed.rabbit
	return env.with(settings{
		"RELAY_SINK_ORDERS_KAFKA_KIND": "kafka", "RELAY_SINK_ORDERS_KAFKA_BOOTSTRAP_SERVERS": r.testbed.toKafka.addr, "RELAY_SINK_ORDERS_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
		"RELAY_SINK_ORDERS_KAFKA_SASL_MECHANISM": "PLAIN", "RELAY_SINK_ORDERS_KAFKA_SASL_USERNAME": k.User, "RELAY_SINK_ORDERS_KAFKA_SASL_PASSWORD": k.Password,
		"RELAY_SINK_ORDERS_KAFKA_REQUEST_TIMEOUT": "9s", "RELAY_SINK_ORDERS_KAFKA_DIAL_TIMEOUT": "1s", "RELAY_SINK_ORDERS_KAFKA_METADATA_TTL": "1s",
		"RELAY_SINK_AUDIT_RABBIT_KIND": "rabbitmq", "RELAY_SINK_AUDIT_RABBIT_URL": via(q.URL, r.testbed.toRabbit.addr), "RELAY_SINK_AUDIT_RABBIT_EXCHANGE": r.slot,
		"RELAY_SINK_AUDIT_RABBIT_CONFIRM_TIMEOUT": "9s",
		"RELAY_SINK_FEED_NATS_KIND":               "nats", "RELAY_SINK_FEED_NATS_URL": via(r.nats.URL, r.toNATS.addr), "RELAY_SINK_FEED_NATS_ACK_TIMEOUT": "9s", "RELAY_SINK_FEED_NATS_DIAL_TIMEOUT": "1s",
	})
}

// startNATS starts a server of the round's own, with a stream of its topics.
func (r *round) startNATS() {
	r.t.Helper()
	r.nats, r.toNATS = natstest.Start(r.t, ""), newLink(r.t)
	r.toNATS.connect(host(r.nats.URL))
	nc, err := natsgo.Connect(r.nats.URL)
	r.must(err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	r.must(err)
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "CHAOS", Subjects: r.topics})
	r.must(err)
}

// inNATS is what the stream holds.
func (r *round) inNATS(ctx context.Context) (all []verify.Event, err error) {
	cfg := nats.DefaultConfig()
	cfg.Servers = []string{r.nats.URL}
	err = nats.ReadBack(ctx, cfg, r.topics, time.Time{}, func(m nats.Stored) error {
		var e verify.Event
		if e.ID, err = relay.ParseUUID(m.EventID); err != nil {
			return err
		}
		var body struct {
			AggregateID string `json:"aggregate_id"`
		}
		err = json.Unmarshal(m.Value, &body)
		e.Key = body.AggregateID
		all = append(all, e)
		return err
	})
	return all, err
}

// oneSinkAway takes each sink away in turn, and kills the owner meanwhile.
func (r *round) oneSinkAway(s step) error {
	for _, sink := range r.plan.sinks {
		l := map[string]*link{"kafka": r.testbed.toKafka, "rabbitmq": r.testbed.toRabbit, "nats": r.toNATS}[r.plan.kind(sink)]
		if err := r.untilLedger("is empty", func(of map[string]int) bool { return len(of) == 0 }); err != nil {
			return err
		}
		l.fault.Lock()
		l.set(linkCut, 0)
		away := func() error {
			if err := r.untilLedger("has entries of "+sink, func(of map[string]int) bool { return of[sink] > 0 }); err != nil {
				return err
			}
			if err := r.kill(s); err != nil {
				return err
			}
			before, err := r.inLedger()
			if err != nil {
				return err
			}
			if err := r.untilLedger("has more entries of "+sink, func(of map[string]int) bool { return of[sink] > before[sink]+20 }); err != nil {
				return err
			}
			after, err := r.inLedger()
			for other := range after {
				if other != sink {
					r.errorf("%s is away, and the ledger has %v", sink, after)
				}
			}
			return err
		}
		err := away()
		l.heal(false)
		l.fault.Unlock()
		if err != nil {
			return fmt.Errorf("%s is away: %w", sink, err)
		}
	}
	return r.untilLedger("is empty in the end", func(of map[string]int) bool { return len(of) == 0 })
}

// inLedger are the entries of each sink.
func (r *round) inLedger() (map[string]int, error) {
	lines, err := query[string](r, `SELECT sink || ' ' || count(*) FROM saga_outbox_delivery GROUP BY sink`)
	of := make(map[string]int)
	for _, line := range lines {
		var sink string
		var n int
		if _, err := fmt.Sscan(line, &sink, &n); err != nil {
			return nil, err
		}
		of[sink] = n
	}
	return of, err
}

func (r *round) untilLedger(what string, is func(of map[string]int) bool) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		of, err := r.inLedger()
		if err != nil {
			return err
		}
		if is(of) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s it is not so that the ledger %s: %v", patience, what, of)
		}
	}
}
