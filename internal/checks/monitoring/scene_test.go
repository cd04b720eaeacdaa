package monitoring

import (
	"fmt"
	"maps"
	"net/http"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// scene is what plays: servers, two relays, a load, and Prometheus.
type scene struct {
	t          *testing.T
	db         *pgtest.DB
	rabbit     *pgtest.Proxy // in front of RabbitMQ
	channel    *amqp.Channel // that bind has opened
	relays     map[string]*product.Process
	env        map[string]map[string]string // of each relay, by pod
	prometheus *prometheus
	alerts     string
}

func setTheScene(t *testing.T) *scene {
	t.Helper()
	server := pgtest.OwnServer(t, pgtest.Newest, map[string]string{"max_slot_wal_keep_size": "1GB", "logical_decoding_work_mem": "64kB"})
	s := &scene{t: t, db: pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated()), relays: map[string]*product.Process{}, env: map[string]map[string]string{}}
	kafka, rabbit := brokertest.Kafka(t), brokertest.RabbitMQ(t)
	s.rabbit = pgtest.NewProxy(t, rabbit.URL)
	unique := fmt.Sprintf("proof-%d", time.Now().UnixNano())
	s.bind(rabbit.URL, unique)
	// From before the slot.
	s.insert("order.reserve.success", 3)

	targets := s.pods(2, unique, map[string]string{
		"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": kafka.Plaintext, "RELAY_TOPIC": unique + ".{event_type}",
		"RELAY_SAGA_RULES": "order.created=started,order.completed=completed,order.cancelled=failed,payment.refunded=compensated," +
			"{saga}.{step}.success=step,{saga}.{step}.failed=step_failed",
	})
	s.alerts = string(product.Read(t, rulesFile))
	s.prometheus = startPrometheus(t, s.alerts, targets)
	for pod := range s.env {
		s.run(pod)
	}
	return s
}

// pods gives so many relays their variables, more than those that all scenes have, and says where
// they will be scraped.
func (s *scene) pods(n int, exchange string, more map[string]string) (targets []scraped) {
	s.t.Helper()
	ports, err := child.FreePorts(n)
	if err != nil {
		s.t.Fatal(err)
	}
	for i, port := range ports {
		pod, address := fmt.Sprintf("outbox-worker-%d", i), fmt.Sprintf("127.0.0.1:%d", port)
		targets = append(targets, scraped{pod, address})
		s.env[pod] = map[string]string{
			"DATABASE_URL": s.db.DSN, "BROKER_TYPE": "rabbitmq", "RABBITMQ_URL": s.rabbit.DSN, "RABBITMQ_EXCHANGE": exchange, "RELAY_HTTP_ADDR": address, "WORKER_ID": pod,
			"MAX_RETRIES": "2", "RELAY_UNROUTABLE_PATIENCE": "0s", "INITIAL_RETRY_DELAY_SECONDS": "1", "MAX_RETRY_DELAY_SECONDS": "1", "RELAY_SINK_ISOLATION": "5s",
			"RELAY_RABBITMQ_CONFIRM_TIMEOUT": "3s", "RELAY_PUBLISH_TIMEOUT": "5s",
		}
		maps.Copy(s.env[pod], more)
	}
	return targets
}

// bind makes a queue for all events of the load and of insert, but not for those of type lost.
func (s *scene) bind(url, exchange string) {
	s.t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err == nil {
		err = ch.ExchangeDeclare(exchange, "topic", true, false, false, false, nil)
	}
	if err == nil {
		_, err = ch.QueueDeclare(exchange, false, true, true, false, amqp.Table{"x-max-length": int32(1000)})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.bindKeys(ch, exchange, "order.#", "stock.#", "payment.#", "shipment.#")
	s.channel = ch
}

// bindKeys has the queue get events of more types. The channel is the one that made it: the queue
// is exclusive.
func (s *scene) bindKeys(ch *amqp.Channel, exchange string, keys ...string) {
	s.t.Helper()
	for _, key := range keys {
		if err := ch.QueueBind(exchange, key, exchange, false, nil); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *scene) insert(eventType string, n int) {
	s.t.Helper()
	_, err := s.db.Pool.Exec(s.t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, headers)
		SELECT gen_random_uuid(), 'proof-' || i, 'proof-' || i, $1, jsonb_build_object('text', repeat('x', 400)), '{"saga_name": "order", "step_name": "pay"}'
		FROM generate_series(1, $2::int) i`, eventType, n)
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) run(pod string) {
	s.t.Helper()
	s.relays[pod] = product.Start(s.t, pod, relayCommand(s.t, s.env[pod], "run"))
	product.Until(s.t, pod+" serves", func() bool {
		resp, err := http.Get("http://" + s.env[pod]["RELAY_HTTP_ADDR"] + "/health/live")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	})
}

// count asks the database.
func (s *scene) count(sql string) (n int) {
	s.t.Helper()
	if err := s.db.Pool.QueryRow(s.t.Context(), sql).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// play lets things go well, and then badly: each fault is over when Prometheus has seen what it
// does.
func (s *scene) play() {
	t, p := s.t, s.prometheus
	load := product.Start(t, "load", relayCommand(t, map[string]string{"DATABASE_URL": s.db.DSN}, "load", "--rate", "50"))
	p.until(`sum(up) == 2`)
	p.until(`sum(outbox_shards_owned) == 1`)
	p.until(`sum(outbox_published_events_total) > 50`)

	s.insert("order.pay.failed", 2)
	s.insert("order.note", 2000) // one large transaction: it spills
	s.insert("lost.without_queue", 2)
	p.until(`sum(outbox_slot_spill_bytes_total) > 0`)
	p.until(`sum(outbox_ledger_events{state="dead"}) >= 1`)

	// RabbitMQ is silent, until its events go to the ledger; then it is back, and all goes out.
	s.rabbit.Freeze()
	p.until(`max(outbox_sink_isolated{sink="rabbitmq"}) == 1`)
	p.until(`sum(outbox_ledger_events{state="retry"}) > 0`)
	p.until(`ALERTS{alertname="OutboxSinkIsolated"}`)
	s.rabbit.Thaw()
	s.rabbit.Cut()
	product.Until(t, "the ledger is empty, but for dead letters", func() bool {
		return s.count(`SELECT count(*) FROM saga_outbox_delivery WHERE state <> 'dead'`) == 0
	})

	// The replication connection dies; then the owner does, and comes back as a standby.
	s.count(`SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE active_pid IS NOT NULL`)
	p.until(`sum(outbox_stream_reconnects_total) > 0`)
	owner := s.owner()
	if err := s.relays[owner].Kill(); err != nil {
		t.Fatal(err)
	}
	p.until(fmt.Sprintf(`sum(outbox_shards_owned{pod!=%q}) == 1`, owner))
	s.run(owner)
	p.until(`sum(up) == 2`)
	p.until(`max(outbox_relays) == 2`)

	// The new owner has done everything that an owner does.
	p.until(`max(outbox_slot_epoch) > min(min_over_time(outbox_slot_epoch[30s]))`) // a second after it owns
	p.until(`sum(rate(outbox_saga_completed_total[10s])) > 0`)
	p.until(`sum(outbox_marks_hot_ratio) > 0`)
	if !load.Running() {
		t.Error("the load has ended")
	}
}

// owner is the pod that has the slot.
func (s *scene) owner() string {
	s.t.Helper()
	for pod := range maps.Keys(s.env) {
		if n, ok := s.prometheus.now(fmt.Sprintf(`sum(outbox_shards_owned{pod=%q})`, pod)); ok && n == 1 {
			return pod
		}
	}
	s.t.Fatal("no relay has the slot")
	return ""
}
