package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
)

const (
	isolationBudget = 1000
	// roundEntries is how many entries of the ledger may be under way, and so repeated after a kill
	// (relay/engine/drainer.go).
	roundEntries = 2000
)

func sum(ends []int64) (n int) {
	for _, end := range ends {
		n += int(end)
	}
	return n
}

// One of two sinks is down for longer than RELAY_SINK_ISOLATION: the other one gets everything,
// once, and the slot moves; what the first one misses is in the ledger, and is delivered in order
// when it is back, while the load goes on.
func TestIsolation(t *testing.T) {
	t.Parallel()
	kafka, rabbit := privateBrokers(t)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	worldOfBoth := func(t *testing.T) (*world, *topic, *queue, settings) {
		w := newWorld(t)
		k := newTopic(t, kafka.Plaintext, 4)
		q := newQueue(t, rabbit.URL, "#")
		return w, k, q, q.env().with(settings{
			"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": kafka.Plaintext, "RELAY_SINK_ISOLATION": "3s",
			"RELAY_BACKOFF_MAX": "500ms", "RELAY_INFLIGHT_EVENTS": fmt.Sprint(isolationBudget),
		})
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	t.Run("rabbitmq is away", func(t *testing.T) {
		w, k, q, env := worldOfBoth(t)
		l := w.load(loadOptions{topic: k.name, rate: 300})
		p := w.relay("relay", env)
		p.waitStreaming()
		l.waitCommitted(150)

		must(t, rabbit.Kill())
		if who := p.waitLog("sink isolated: its events go to the ledger").text("logger"); who != "relay.sink.rabbitmq" {
			t.Errorf("%s was isolated, want rabbitmq", who)
		}
		for range 3 {
			l.waitCommitted(300)
			committed := l.committed()
			eventually(t, patience, "kafka gets everything while rabbitmq is away", func() string {
				if n := sum(k.ends()); n < committed {
					return p.mustRun(fmt.Sprintf("%d of %d", n, committed))
				}
				return ""
			})
			w.waitPassed()
		}
		p.healthy("with rabbitmq away")
		if n := w.ledger("rabbitmq", "attempts = 0 AND (reason = 'sink_down' OR state = 'held')"); n < 900 {
			t.Errorf("the ledger has %d events that rabbitmq misses and that are charged nothing, want at least 900", n)
		}
		if n := w.ledger("kafka", ""); n != 0 {
			t.Errorf("the ledger has %d events for kafka", n)
		}
		if n := value[int](w, `SELECT count(*) FROM saga_outbox o WHERE status = 'sent' AND EXISTS (SELECT FROM saga_outbox_delivery d WHERE d.event_id = o.event_id)`); n != 0 {
			t.Errorf("%d rows are sent though rabbitmq misses them", n)
		}

		must(t, rabbit.Start(ctx))
		p.waitLog("sink is back, its ledger is being drained")
		w.waitLedger(p, "rabbitmq", 0) // under load: the stream takes over key by key
		l.waitCommitted(200)
		before := p.status()
		for _, s := range before.Sinks {
			if s.Isolated || !s.Up {
				t.Errorf("sink %s: isolated %t, up %t", s.Sink, s.Isolated, s.Up)
			}
		}
		l.settle(p, "rabbitmq")
		p.stop()
		l.judge("kafka", events(t, k.read()), 0)
		l.judge("rabbitmq", messageEvents(t, q.drain()), isolationBudget)
	})

	// Kafka is away, and the relay is killed while it gathers Kafka's events and while it delivers
	// them.
	t.Run("kafka is away and relays die", func(t *testing.T) {
		w, k, q, env := worldOfBoth(t)
		env["RELAY_BATCH_BYTES"] = "4096" // a slow sink, so that a kill finds it at work
		rnd := newRand(t)
		l := w.load(loadOptions{topic: k.name, rate: 300})
		kills := 0
		die := func(p *process) {
			// Not to wait for anything: this is the random moment.
			time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
			p.crash()
			w.waitGone()
			t.Logf("kill %d: %d committed, %d in the ledger", kills, l.committed(), w.ledger("kafka", ""))
			kills++
		}
		up := func() *process { return w.relay(fmt.Sprintf("relay-%d", kills), env) }
		p := up()
		p.waitStreaming()
		l.waitCommitted(100)
		must(t, kafka.Kill())
		p.waitLog("sink isolated: its events go to the ledger")
		for range 2 {
			l.bulk(4000)
			w.waitLedger(p, "kafka", 4000*kills+500)
			die(p)
			p = up()
		}
		w.waitLedger(p, "kafka", 8000)
		must(t, kafka.Start(ctx))
		for range 3 {
			n := w.ledger("kafka", "")
			eventually(t, patience, "the ledger drains", func() string {
				if now := w.ledger("kafka", ""); now >= n && n > 0 {
					n = now
					return p.mustRun(fmt.Sprintf("%d entries", now))
				}
				return ""
			})
			die(p)
			p = up()
		}
		w.waitLedger(p, "kafka", 0)
		l.waitCommitted(100)
		l.settle(p, "kafka")
		p.stop()
		most := kills * (isolationBudget + roundEntries)
		l.judge("kafka", events(t, k.read()), most)
		l.judge("rabbitmq", messageEvents(t, q.drain()), kills*isolationBudget)
	})
}

// randomKeys spreads rows over a few keys.
func (w *world) randomKeys(rnd *rand.Rand, n int, topic string) []row {
	rows := make([]row, n)
	for i := range rows {
		rows[i] = row{key: fmt.Sprintf("k-%d", rnd.IntN(10)), topic: topic}
	}
	return rows
}

// A sink is added to BROKER_TYPE, taken out and put back. It gets what is committed while it is
// there; what it has missed waits in the ledger while it is out, and is delivered when it is back,
// or taken out by hand.
func TestSinkAddedAndRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rnd := newRand(t)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "order.*")
	path := filepath.Join(t.TempDir(), "events.jsonl")
	one := q.env().with(settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": path, "INITIAL_RETRY_DELAY_SECONDS": "0.1", "MAX_RETRY_DELAY_SECONDS": "0.3", "MAX_RETRIES": "100000"})
	both := one.with(settings{"BROKER_TYPE": "file,rabbitmq"})
	var toFile, toRabbit []verify.Event
	commit := func(rabbit bool, rows ...row) []relay.UUID {
		ids := w.insert(rows...)
		for i, id := range ids {
			e := verify.Event{ID: id, Key: rows[i].key}
			toFile = append(toFile, e)
			if rabbit {
				toRabbit = append(toRabbit, e)
			}
		}
		return ids
	}
	judge := func(sink string, want, got []verify.Event) {
		t.Helper()
		check := verify.New(verify.Options{}, sink)
		check.Commit(want...)
		check.Deliver(sink, got...)
		if err := check.Report().Err(); err != nil {
			t.Errorf("%s: %v", sink, err)
		}
		t.Logf("%s: %d events", sink, len(got))
	}
	inFile := func() []verify.Event {
		return lineEvents(t, func(f func(file.Line) error) error { return file.Read(path, f) })
	}
	waitFile := func() {
		t.Helper()
		eventually(t, patience, "the file has everything", func() string {
			if n := len(inFile()); n < len(toFile) {
				return fmt.Sprintf("%d of %d", n, len(toFile))
			}
			return ""
		})
	}

	p := w.relay("file-alone", one)
	p.waitStreaming()
	commit(false, w.randomKeys(rnd, 100, "order.created")...)
	w.waitNonePending(p)
	p.stop()

	p = w.relay("rabbitmq-added", both)
	p.waitStreaming()
	commit(true, w.randomKeys(rnd, 100, "order.created")...)
	w.waitNonePending(p)
	poison := commit(true, row{key: "k-3", topic: "payment.due"})[0]
	commit(true, w.randomKeys(rnd, 100, "order.created")...)
	commit(true, row{key: "k-3", topic: "order.created"})
	waitFile()
	w.waitPassed()
	entries := w.ledger("rabbitmq", "")
	p.stop()
	if entries < 2 {
		t.Errorf("%d entries, want the event that no queue takes and those of its key", entries)
	}

	p = w.relay("rabbitmq-removed", one)
	p.waitStreaming()
	warning := p.waitLog("the ledger has events for a sink that is not configured")
	if warning.text("sink") != "rabbitmq" || warning.text("entries") != fmt.Sprint(entries) || !strings.Contains(warning.text("fix"), "dead-letter discard --state all --sink rabbitmq --all") {
		t.Errorf("the warning is %v", warning)
	}
	without := commit(false, append(w.randomKeys(rnd, 100, "order.created"), row{key: "k-3", topic: "order.created"})...)
	for _, id := range without {
		w.db.Until(t, `SELECT status = 'sent' FROM saga_outbox WHERE event_id = $1`, [16]byte(id))
	}
	if n := w.ledger("rabbitmq", ""); n != entries {
		t.Errorf("%d entries without rabbitmq, want the %d of before", n, entries)
	}
	if status, text := w.fate(poison); status != "failed" || !strings.Contains(text, "unroutable") {
		t.Errorf("the row that waits for rabbitmq is %s (%s)", status, text)
	}
	p.stop()

	q.bind()
	p = w.relay("rabbitmq-back", both)
	p.waitStreaming()
	w.waitLedger(p, "rabbitmq", 0)
	commit(true, w.randomKeys(rnd, 100, "order.created")...)
	if got := w.waitNonePending(p); got["sent"] != len(toFile) {
		t.Errorf("rows by status: %v, want %d sent", got, len(toFile))
	}
	judge("file", toFile, inFile())
	judge("rabbitmq", toRabbit, messageEvents(t, q.drain()))

	// Now for good.
	poison = commit(false, row{key: "k-4", topic: "refund.due"})[0]
	behind := commit(false, row{key: "k-4", topic: "order.created"})[0]
	w.db.Until(t, `SELECT count(*) = 2 FROM saga_outbox_delivery WHERE state = 'held' OR attempts > 0`)
	p.stop()
	p = w.relay("rabbitmq-removed-for-good", one)
	p.waitStreaming()
	if out, code := w.command(one, "dead-letter", "discard", "--state", "all", "--sink", "rabbitmq", "--all"); code != 0 {
		t.Errorf("discard: exit code %d: %s", code, out)
	}
	w.waitLedger(p, "rabbitmq", 0)
	for _, id := range []relay.UUID{poison, behind} {
		if status, text := w.fate(id); status != "dead_letter" || !strings.Contains(text, "discarded") {
			t.Errorf("a discarded row is %s (%s)", status, text)
		}
	}
	commit(false, row{key: "k-4", topic: "order.created"})
	w.waitNonePending(p)
	p.stop()
	judge("file", toFile, inFile())
	for _, e := range messageEvents(t, q.drain()) {
		t.Errorf("rabbitmq got %s, which was discarded or is not its own; %s was refused, %s behind it", e, poison, behind)
	}
}
