package browser

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

func TestMain(m *testing.M) {
	code := brokertest.Run(pgtest.Closing(m))
	closeBrowser()
	os.Exit(code)
}

// site is a database of its own, an exchange of its own, and a way to RabbitMQ that can be cut.
type site struct {
	t      testing.TB
	db     *pgtest.DB
	name   string // of slot, exchange and queue
	rabbit *pgtest.Proxy
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{t: t, db: pgtest.New(t, pgtest.Migrated()), name: fmt.Sprintf("page_%d", time.Now().UnixNano())}
	s.rabbit = pgtest.NewProxy(t, brokertest.RabbitMQ(t).URL)
	conn, err := amqp.Dial(brokertest.RabbitMQ(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err == nil {
		err = ch.ExchangeDeclare(s.name, "topic", true, false, false, false, nil)
	}
	if err == nil {
		_, err = ch.QueueDeclare(s.name, false, false, true, false, nil)
	}
	if err == nil {
		err = ch.QueueBind(s.name, "OrderCreated", s.name, false, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ch.ExchangeDelete(s.name, false, false) })
	return s
}

// away has RabbitMQ answer nobody, until the function that it returns is called.
func (s *site) away() (back func()) {
	s.rabbit.Freeze()
	s.rabbit.Cut()
	return func() {
		s.rabbit.Thaw()
		s.rabbit.Cut()
	}
}

// insert commits events, one a transaction.
func (s *site) insert(eventType string, n int) {
	s.t.Helper()
	for i := range n {
		if _, err := s.db.Pool.Exec(s.t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers)
			VALUES (gen_random_uuid(), $1, 'order', $2, $3, '{"secret": "payload-marker"}', '{}')`, fmt.Sprint("saga-", i), fmt.Sprint("order-", i%50), eventType); err != nil {
			s.t.Fatal(err)
		}
	}
}

// running is a relay that runs.
type running struct {
	*product.Process
	url string
}

// relay starts one, with more variables.
func (s *site) relay(name string, more ...string) *running {
	s.t.Helper()
	cmd := exec.Command(product.Binary(s.t), "run")
	cmd.Env = append([]string{
		"DATABASE_URL=" + s.db.DSN, "RELAY_SLOT=" + s.name, "WORKER_ID=" + name, "BROKER_TYPE=kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS=" + brokertest.Kafka(s.t).Plaintext,
		"RABBITMQ_URL=" + s.rabbit.DSN, "RABBITMQ_EXCHANGE=" + s.name, "RELAY_HTTP_ADDR=127.0.0.1:0", "MAX_RETRIES=2", "RELAY_UNROUTABLE_PATIENCE=0s", "INITIAL_RETRY_DELAY_SECONDS=0.1",
		"RELAY_TOPIC=page.{event_type}", "RELAY_SINK_ISOLATION=5m", "RELAY_DRAIN_TIMEOUT=1s", "RELAY_PUBLISH_TIMEOUT=5s",
		"RELAY_RABBITMQ_CONFIRM_TIMEOUT=3s",
	}, more...)
	r := &running{Process: product.Start(s.t, name, cmd)}
	s.t.Cleanup(func() {
		if strings.Contains(r.String(), "payload-marker") {
			s.t.Errorf("%s logs a payload", name)
		}
	})
	product.Until(s.t, name+" answers", func() bool {
		if m := regexp.MustCompile(`"url":"([^"]+)"`).FindStringSubmatch(r.String()); m != nil {
			r.url = m[1]
		}
		return r.url != ""
	})
	return r
}

func (s *site) waitReady(r *running) {
	s.t.Helper()
	product.Until(s.t, r.url+" is ready", func() bool {
		res, err := http.Get(r.url + "/health/ready")
		if err == nil {
			res.Body.Close()
		}
		return err == nil && res.StatusCode == 200
	})
}
