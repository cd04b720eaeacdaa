package compose

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
)

// stage are the servers that the file describes, as they are on this machine.
type stage struct {
	t       *testing.T
	project *types.Project
	hosts   *strings.Replacer // from a service's address to the real one
	db      *pgx.Conn         // saga_db, as superuser
	kafka   string
	rabbit  string // URL with the user of the definitions
}

// What `docker compose up`, then `docker compose up load consumer` do: the tables are made, the
// relay becomes healthy, sagas are written, and each event is in Kafka and in RabbitMQ, where the
// documented commands look.
func TestPlay(t *testing.T) {
	s := setUp(t, load(t))
	for range 2 {
		if code := s.start("migrate", nil).Exit(); code != 0 {
			t.Fatalf("migrate: exit code %d", code)
		}
	}
	// Port 8000 may be somebody else's on this machine.
	relay := s.start("relay", map[string]string{"RELAY_HTTP_ADDR": "127.0.0.1:0"})
	listening := regexp.MustCompile(`"message":"serving metrics and health","address":"([^"]+)"`)
	var address []string
	product.Eventually(t, "the relay serves health", func() string {
		address = listening.FindStringSubmatch(relay.String())
		return lacks(t, relay, address == nil)
	})
	check := s.project.Services["relay"].HealthCheck.Test
	if check[0] != "CMD" || check[1] != "sagaz-relay" {
		t.Fatalf("the relay's health check is %v, and its image has nothing but sagaz-relay", check)
	}
	product.Eventually(t, "the relay is healthy", func() string {
		health := s.run("relay", map[string]string{"RELAY_HTTP_ADDR": address[1]}, check[2:])
		if code := health.Exit(); code != 0 {
			return fmt.Sprintf("exit code %d: %s", code, health)
		}
		return ""
	})

	writer := s.start("load", nil)
	product.Eventually(t, "sagas are written and sent", func() string {
		var sent int
		if err := s.db.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox WHERE status = 'sent'`).Scan(&sent); err != nil {
			return err.Error()
		}
		return lacks(t, writer, sent < 20)
	})
	if code := writer.Stop(); code != 0 {
		t.Errorf("load: exit code %d after SIGTERM, want 0", code)
	}
	product.Eventually(t, "all is sent", func() string {
		var left int
		if err := s.db.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox WHERE status <> 'sent'`).Scan(&left); err != nil {
			return err.Error()
		}
		return lacks(t, relay, left > 0)
	})
	written := s.column(`SELECT event_id::text FROM saga_outbox`)
	if got := s.inKafka(); !slices.Equal(got, written) {
		t.Errorf("the consumer's topics hold %d events, want the %d that were written", len(got), len(written))
	}
	if got := s.inRabbitMQ(); !slices.Equal(got, written) {
		t.Errorf("the queue holds %d events, want the %d that were written", len(got), len(written))
	}
	if code := s.run("relay", nil, []string{"doctor"}).Exit(); code != 0 {
		t.Errorf("doctor: exit code %d", code)
	}
	if code := relay.Stop(); code != 0 {
		t.Errorf("relay: exit code %d after SIGTERM, want 0", code)
	}
}

// setUp starts PostgreSQL of the file's version with the file's settings and first script, and RabbitMQ
// with the file's definitions.
func setUp(t *testing.T, p *types.Project) *stage {
	t.Helper()
	s := &stage{t: t, project: p, kafka: brokertest.Kafka(t).Plaintext}
	postgres := p.Services["postgres"]
	_, version, _ := strings.Cut(postgres.Image, ":")
	settings := map[string]string{}
	for i, word := range postgres.Command {
		if word == "-c" {
			name, value, _ := strings.Cut(postgres.Command[i+1], "=")
			settings[name] = value
		}
	}
	server := pgtest.OwnServer(t, version, settings)
	superuser, err := pgx.Connect(t.Context(), server.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer superuser.Close(context.Background())
	if _, err := superuser.Exec(t.Context(), "CREATE DATABASE "+*postgres.Environment["POSTGRES_DB"]); err != nil {
		t.Fatal(err)
	}
	if s.db, err = pgx.Connect(t.Context(), server.DSN(*postgres.Environment["POSTGRES_DB"])); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.db.Close(context.Background()) })
	script, err := os.ReadFile(mounted(t, postgres, "/docker-entrypoint-initdb.d/"))
	if err == nil {
		_, err = s.db.PgConn().Exec(t.Context(), string(script)).ReadAll()
	}
	if err != nil {
		t.Fatalf("the first script: %v", err)
	}
	at, err := url.Parse(server.DSN("postgres"))
	if err != nil {
		t.Fatal("the server's DSN is no URL")
	}

	broker := p.Services["rabbitmq"]
	ctx, cancel := context.WithTimeout(t.Context(), 3*product.Patience)
	defer cancel()
	rabbit, err := brokertest.StartRabbitMQ(ctx, brokertest.RabbitMQOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rabbit.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := rabbit.Ctl(ctx, "import_definitions", mounted(t, broker, "/etc/rabbitmq/definitions.json")); err != nil {
		t.Fatal(err)
	}
	rabbitAt, err := url.Parse(rabbit.URL)
	if err != nil {
		t.Fatal("the broker's URL is none")
	}
	s.hosts = strings.NewReplacer("postgres:5432", at.Host, "kafka:9092", s.kafka, "rabbitmq:5672", rabbitAt.Host)
	s.rabbit = s.hosts.Replace(*p.Services["relay"].Environment["RABBITMQ_URL"])
	return s
}

// mounted finds the file that a service mounts at a path, or below it.
func mounted(t *testing.T, s types.ServiceConfig, at string) string {
	t.Helper()
	for _, v := range s.Volumes {
		if strings.HasPrefix(v.Target, at) {
			return v.Source
		}
	}
	t.Fatalf("%s mounts nothing at %s", s.Name, at)
	return ""
}

// start runs the service's own command.
func (s *stage) start(service string, more map[string]string) *product.Process {
	s.t.Helper()
	return s.run(service, more, s.project.Services[service].Command)
}

// run runs a command in place of it: with the service's variables, the addresses replaced.
func (s *stage) run(service string, more map[string]string, args []string) *product.Process {
	s.t.Helper()
	cmd := exec.Command(product.Binary(s.t), args...)
	cmd.Env = []string{"HOME=/nonexistent"}
	for name, value := range s.project.Services[service].Environment {
		cmd.Env = append(cmd.Env, name+"="+s.hosts.Replace(*value))
	}
	for name, value := range more {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Dir = s.t.TempDir()
	return product.Start(s.t, service, cmd)
}

// lacks is for product.Eventually: how things are as long as something is missing.
func lacks(t *testing.T, p *product.Process, is bool) string {
	t.Helper()
	switch {
	case !is:
		return ""
	case !p.Running():
		t.Fatalf("it ended: %s", p)
	}
	return "not yet; it says: " + p.String()
}

func (s *stage) column(sql string) (values []string) {
	s.t.Helper()
	rows, err := s.db.Query(s.t.Context(), sql)
	if err == nil {
		values, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		s.t.Fatal(err)
	}
	slices.Sort(values)
	return values
}

// inKafka returns the events of this run in the topics that the service consumer reads.
func (s *stage) inKafka() (ids []string) {
	s.t.Helper()
	command := s.project.Services["consumer"].Command
	i := slices.Index(command, "--include")
	if i < 0 {
		s.t.Fatalf("consumer: %v has no --include", command)
	}
	wanted := regexp.MustCompile("^(?:" + command[i+1] + ")$")
	var topics []string
	for _, name := range s.column(`SELECT DISTINCT event_type FROM saga_outbox`) {
		if !wanted.MatchString(name) {
			s.t.Errorf("the consumer does not read topic %s", name)
		}
		topics = append(topics, name)
	}
	written := s.column(`SELECT event_id::text FROM saga_outbox`)
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{s.kafka}
	err := kafka.ReadBack(s.t.Context(), cfg, topics, time.Time{}, func(r kafka.Stored) error {
		// Another test may use topics of these names.
		if id := eventID(r.Value); slices.Contains(written, id) {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	slices.Sort(ids)
	return ids
}

// inRabbitMQ returns the events in the queue of the definitions.
func (s *stage) inRabbitMQ() (ids []string) {
	s.t.Helper()
	cfg := rabbitmq.DefaultConfig()
	cfg.URL = s.rabbit
	err := rabbitmq.ReadBack(s.t.Context(), cfg, "saga-events", func(m rabbitmq.Stored) error {
		ids = append(ids, eventID(m.Value))
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	slices.Sort(ids)
	return ids
}

func eventID(body []byte) string {
	var event struct {
		ID string `json:"event_id"`
	}
	_ = json.Unmarshal(body, &event) // what is none has no id
	return event.ID
}
