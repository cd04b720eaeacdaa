package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
)

// planted is a table, and sinks that hold what a test wants them to hold.
type planted struct {
	*world
	topic string // and event type
	since time.Time
	sinks map[string]relay.Sink
	env   settings // that verify needs to read the sinks back
	args  []string
	ids   map[string]relay.UUID // by name
}

func newPlanted(t *testing.T, sinks ...string) *planted {
	p := &planted{world: newWorld(t), since: time.Now().Add(-time.Minute), sinks: map[string]relay.Sink{}, env: settings{"BROKER_TYPE": strings.Join(sinks, ",")}, ids: map[string]relay.UUID{}}
	p.topic = newTopicName()
	open := func(sink relay.Sink, err error) relay.Sink {
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sink.Close() })
		return sink
	}
	log := hclog.NewNullLogger()
	for _, name := range sinks {
		switch name {
		case "kafka":
			broker := brokertest.Kafka(t)
			p.topic = newTopic(t, broker.Plaintext, 4).name
			cfg := kafka.DefaultConfig()
			cfg.Brokers = []string{broker.Plaintext}
			p.sinks[name] = open(kafka.New(cfg, log))
			p.env["KAFKA_BOOTSTRAP_SERVERS"] = broker.Plaintext
		case "rabbitmq":
			q := newQueue(t, brokertest.RabbitMQ(t).URL, "#")
			cfg := rabbitmq.DefaultConfig()
			cfg.URL, cfg.Exchange = q.url, q.name
			p.sinks[name] = open(rabbitmq.New(cfg, log))
			p.env["RABBITMQ_URL"], p.env["RABBITMQ_EXCHANGE"] = q.url, q.name
			p.args = append(p.args, "--queue", q.name)
		case "file":
			cfg := file.DefaultConfig()
			cfg.Path = filepath.Join(t.TempDir(), "events.jsonl")
			p.sinks[name] = open(file.New(cfg, log))
			p.env["RELAY_FILE_PATH"] = cfg.Path
		}
	}
	return p
}

// rows adds events of one key, each made a second after the one before; they are created after
// since unless named "old".
func (p *planted) rows(table, status string, names ...string) {
	p.t.Helper()
	for _, name := range names {
		var id relay.UUID
		_, _ = rand.Read(id[:])
		created := p.since.Add(time.Duration(len(p.ids)+1) * time.Second)
		if name == "old" {
			created = p.since.Add(-time.Second)
		}
		p.ids[name] = id
		p.exec(`INSERT INTO `+table+` (event_id, saga_id, aggregate_id, event_type, payload, status, created_at) VALUES ($1, 's', 'key', $2, '{}', $3, $4)`,
			id.String(), p.topic, status, created)
	}
}

func (p *planted) ledger(name, sink, state string) {
	p.t.Helper()
	p.exec(`INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state)
		VALUES ($1, $2, $3, (SELECT count(*) FROM saga_outbox_delivery), 'key', 0, $4, $5)`, p.ids[name].String(), sink, p.slot, p.topic, state)
}

// publish sends events to a sink one by one; a name with "again:" before it is a replay.
func (p *planted) publish(sink string, names ...string) {
	p.t.Helper()
	for _, name := range names {
		name, replay := strings.CutPrefix(name, "again:")
		id := p.ids[name]
		rec := &relay.Record{
			EventID: id, EventType: p.topic, Topic: p.topic, RoutingKey: p.topic, Key: "key", Value: []byte("{}"), ContentType: "application/json",
			Timestamp: time.Now(), Headers: []relay.Header{{Key: "event_id", Value: id.String()}},
		}
		if replay {
			rec.Headers = append(rec.Headers, relay.Header{Key: "relay-replayed-at", Value: "now"})
		}
		ctx, cancel := context.WithTimeout(p.t.Context(), patience)
		err := p.sinks[sink].Publish(ctx, []*relay.Record{rec})
		cancel()
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

// verify runs the command.
func (p *planted) verify(code int, more ...string) (report verify.AuditReport, stderr string) {
	p.t.Helper()
	args := append([]string{"verify", "--json", "--since", p.since.Format(time.RFC3339Nano)}, append(slices.Clone(p.args), more...)...)
	run := launch(p.t, program.Path(p.t), "verify", p.world.env().with(p.env), []string{p.password}, args...)
	if got := run.end(patience); got != code {
		p.t.Errorf("verify %v: exit code %d, want %d: %s", more, got, code, run.stderr.String())
	}
	if err := json.Unmarshal([]byte(run.stdout.String()), &report); err != nil {
		p.t.Fatalf("verify %v: %v: %s", more, err, run.stderr.String())
	}
	return report, run.stderr.String()
}

// found are the names of the events found.
func (p *planted) found(list []verify.Finding) (names []string) {
	for _, f := range list {
		for name, id := range p.ids {
			if id.String() == f.ID {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

func later(list []verify.Different) (events []verify.Finding) {
	for _, d := range list {
		events = append(events, d.Event)
	}
	return events
}

// Each kind of sink, read back for real: a loss, a duplicate and a swap are found by id, and what
// is still to come or given up is none of them.
func TestVerify(t *testing.T) {
	for _, sink := range []string{"kafka", "rabbitmq", "file"} {
		t.Run(sink, func(t *testing.T) {
			t.Parallel()
			p := newPlanted(t, sink)
			p.rows("saga_outbox", "sent", "e0", "e1", "lost", "e2", "twice", "e3", "swapped", "e4", "replayed", "old")
			p.rows("saga_outbox_archive", "sent", "archived")
			p.rows("saga_outbox", "pending", "pending")
			p.rows("saga_outbox", "failed", "retry", "elsewhere", "elsewhereLost")
			p.rows("saga_outbox", "dead_letter", "dead", "discarded")
			p.ledger("retry", sink, "retry")
			p.ledger("dead", sink, "dead")
			p.ledger("elsewhere", "another", "held") // so this sink has it
			p.ledger("elsewhereLost", "another", "held")
			p.ids["stranger"] = relay.UUID{1, 2, 3}
			p.publish(sink, "e0", "e1", "e2", "twice", "twice", "e3", "e4", "swapped", "replayed", "again:replayed", "old", "archived", "elsewhere", "stranger")

			r, stderr := p.verify(1)
			if len(r.Sinks) != 1 || r.Events != 16 {
				t.Fatalf("%d sinks, %d events, want 1 and 16", len(r.Sinks), r.Events)
			}
			s := r.Sinks[0]
			if got := p.found(s.Missing.List); !slices.Equal(got, []string{"elsewhereLost", "lost"}) || s.Missing.Count != 2 {
				t.Errorf("missing %v", got)
			}
			if got := p.found(s.Duplicates.List); !slices.Equal(got, []string{"twice"}) || s.Duplicates.List[0].Times != 2 {
				t.Errorf("duplicates %v", s.Duplicates.List)
			}
			if got := p.found(later(s.EarlierArrivedLater.List)); !slices.Equal(got, []string{"swapped"}) || s.EarlierArrivedLater.List[0].After.ID != p.ids["e4"].String() {
				t.Errorf("earlier %v", s.EarlierArrivedLater.List)
			}
			if s.Pending != 2 || s.DeadLetters != 2 || s.Replayed != 1 || s.Events != 10 || s.Deliveries != 12 {
				t.Errorf("%d pending, %d dead, %d replayed, %d events, %d deliveries, want 2, 2, 1, 10, 12", s.Pending, s.DeadLetters, s.Replayed, s.Events, s.Deliveries)
			}
			if !slices.Equal(s.Unknown.List, []string{p.ids["stranger"].String()}) {
				t.Errorf("unknown %v, want the stranger alone", s.Unknown.List)
			}
			if !strings.Contains(stderr, "2 events are missing at "+sink) {
				t.Errorf("stderr %q", stderr)
			}

			// When what was lost comes all the same, nothing is missing; late it is.
			p.publish(sink, "lost", "elsewhereLost")
			r, _ = p.verify(0)
			if s := r.Sinks[0]; s.Missing.Count != 0 || !slices.Equal(p.found(later(s.EarlierArrivedLater.List)), []string{"lost", "swapped"}) {
				t.Errorf("missing %v, earlier %v", s.Missing.List, s.EarlierArrivedLater.List)
			}
			p.verify(1, "--strict-order")
			if r, _ := p.verify(0, "--event-type", "another"); r.Events != 0 {
				t.Errorf("%d events of another type", r.Events)
			}
			if r, _ := p.verify(0, "--until", p.since.Add(2500*time.Millisecond).Format(time.RFC3339Nano)); r.Events != 2 {
				t.Errorf("%d events before the third, want 2", r.Events)
			}
		})
	}
}

// Two sinks that got the events of a key in different orders: one of them is wrong, whatever
// created_at is.
func TestVerifyDisagreement(t *testing.T) {
	p := newPlanted(t, "kafka", "rabbitmq")
	p.rows("saga_outbox", "sent", "a", "b", "c")
	p.publish("kafka", "b", "a", "c")
	p.publish("rabbitmq", "b", "a", "c")
	if r, _ := p.verify(0); r.Disagreements.Count != 0 || r.Sinks[0].EarlierArrivedLater.Count != 1 {
		t.Errorf("%+v, want no disagreement though both have them against created_at", r)
	}
	p.rows("saga_outbox", "sent", "d", "e")
	p.publish("kafka", "d", "e")
	p.publish("rabbitmq", "e", "d")
	r, stderr := p.verify(1)
	if got := p.found(later(r.Disagreements.List)); len(got) != 1 || !strings.Contains(stderr, "different orders") {
		t.Errorf("disagreements %v, %q", r.Disagreements.List, stderr)
	}
}
