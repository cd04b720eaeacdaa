package compose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/internal/testbed/otlptest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
)

// patience bounds what must come in the end, on a machine that runs other tests too.
const patience = 2 * time.Minute

// stage are the servers that the file describes, as they are on this machine.
type stage struct {
	t       *testing.T
	project *types.Project
	hosts   *strings.Replacer // from a service's address to the real one
	db      *pgx.Conn         // saga_db, as superuser
	kafka   string
	rabbit  string // URL with the user of the definitions
}

// What `docker compose up`, then `docker compose up load consumer` do: the tables are made, the relay becomes healthy, sagas are written, and each
// event is in Kafka and in RabbitMQ, where the documented commands look.
//
// The relay sends traces, as the monitoring stack's users are told to have it do.
func TestPlay(t *testing.T) {
	traces := otlptest.New(t)
	endpoint := traceEndpoints(t)[0]
	s := setUp(t, load(t, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+endpoint), endpoint, strings.TrimPrefix(traces.HTTP(), "http://"))
	if text, code := s.start("migrate", nil).end(); code != 0 {
		t.Fatalf("migrate: exit code %d: %s", code, text)
	}
	if text, code := s.start("migrate", nil).end(); code != 0 {
		t.Fatalf("migrate, again: exit code %d: %s", code, text)
	}
	// Port 8000 may be somebody else's on this machine.
	relay := s.start("relay", map[string]string{"RELAY_HTTP_ADDR": "127.0.0.1:0"})
	listening := regexp.MustCompile(`"message":"serving metrics and health","address":"([^"]+)"`)
	var address []string
	product.Eventually(t, patience, "the relay serves health", func() string {
		address = listening.FindStringSubmatch(relay.text())
		return relay.missing(address == nil)
	})
	check := s.project.Services["relay"].HealthCheck.Test
	if check[0] != "CMD" || check[1] != "sagaz-relay" {
		t.Fatalf("the relay's health check is %v, and its image has nothing but sagaz-relay", check)
	}
	product.Eventually(t, patience, "the relay is healthy", func() string {
		text, code := s.run("relay", map[string]string{"RELAY_HTTP_ADDR": address[1]}, check[2:]).end()
		if code == 0 {
			return ""
		}
		return fmt.Sprintf("exit code %d: %s", code, text)
	})

	writer := s.start("load", nil)
	product.Eventually(t, patience, "sagas are written and sent", func() string {
		var sent int
		if err := s.db.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox WHERE status = 'sent'`).Scan(&sent); err != nil {
			return err.Error()
		}
		return writer.missing(sent < 20)
	})
	if code := writer.stop(); code != 0 {
		t.Errorf("load: exit code %d after SIGTERM, want 0", code)
	}
	product.Eventually(t, patience, "all is sent", func() string {
		var left int
		if err := s.db.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox WHERE status <> 'sent'`).Scan(&left); err != nil {
			return err.Error()
		}
		return relay.missing(left > 0)
	})
	written := s.column(`SELECT event_id::text FROM saga_outbox`)
	if got := s.inKafka(); !slices.Equal(got, written) {
		t.Errorf("the consumer's topics hold %d events, want the %d that were written", len(got), len(written))
	}
	if got := s.inRabbitMQ(); !slices.Equal(got, written) {
		t.Errorf("the queue holds %d events, want the %d that were written", len(got), len(written))
	}
	if text, code := s.run("relay", nil, []string{"doctor"}).end(); code != 0 {
		t.Errorf("doctor: exit code %d: %s", code, text)
	}
	if code := relay.stop(); code != 0 {
		t.Errorf("relay: exit code %d after SIGTERM, want 0", code)
	}
	// It has exported all that was left.
	seen := map[string]bool{}
	for _, span := range traces.Spans() {
		seen[span.TraceID] = true
		for _, link := range span.Links {
			seen[link.TraceID] = true
		}
	}
	for _, header := range s.column(`SELECT DISTINCT headers->>'traceparent' FROM saga_outbox`) {
		if id := strings.Split(header, "-"); len(id) != 4 || !seen[id[1]] {
			t.Errorf("no span belongs or links to the saga's trace %q", header)
		}
	}
}

// setUp starts PostgreSQL of the file's version with the file's settings and first script, and RabbitMQ with the file's definitions. hosts are more
// addresses of services, each followed by the real one.
func setUp(t *testing.T, p *types.Project, hosts ...string) *stage {
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
	if conf := string(product.Read(t, "testdata/compose/rabbitmq.conf")); !strings.Contains(conf, "load_definitions = /etc/rabbitmq/definitions.json") {
		t.Errorf("rabbitmq.conf loads no definitions: %s", conf)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
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
	s.hosts = strings.NewReplacer(append([]string{"postgres:5432", at.Host, "kafka:9092", s.kafka, "rabbitmq:5672", rabbitAt.Host}, hosts...)...)
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

// process is a service's command, started.
type process struct {
	s *stage
	*child.Process
	name string

	mu  sync.Mutex // guards out
	out []byte
}

func (p *process) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out = append(p.out, text...)
	return len(text), nil
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.out)
}

// start runs the service's own command.
func (s *stage) start(service string, more map[string]string) *process {
	s.t.Helper()
	return s.run(service, more, s.project.Services[service].Command)
}

// run runs a command in place of it: with the service's variables, the addresses replaced.
func (s *stage) run(service string, more map[string]string, args []string) *process {
	s.t.Helper()
	p := &process{s: s, name: service}
	cmd := exec.Command(product.Binary(s.t), args...)
	cmd.Env = []string{"HOME=/nonexistent"}
	for name, value := range s.project.Services[service].Environment {
		cmd.Env = append(cmd.Env, name+"="+s.hosts.Replace(*value))
	}
	for name, value := range more {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.t.TempDir(), p, p
	var err error
	if p.Process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if p.Running() {
			_ = p.Kill()
		}
		if s.t.Failed() {
			s.t.Logf("%s %v:\n%s", service, args, p.text())
		}
	})
	return p
}

func (p *process) end() (text string, code int) {
	p.s.t.Helper()
	select {
	case <-p.Done():
	case <-time.After(patience):
		p.s.t.Fatalf("%s still runs after %s", p.name, patience)
	}
	var exit *exec.ExitError
	if p.Err() != nil && !errors.As(p.Err(), &exit) {
		p.s.t.Fatal(p.Err())
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return p.text(), code
}

func (p *process) stop() int {
	p.s.t.Helper()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		p.s.t.Fatal(err)
	}
	_, code := p.end()
	return code
}

// missing is for eventually: how things stand as long as something is missing.
func (p *process) missing(is bool) string {
	p.s.t.Helper()
	switch {
	case !is:
		return ""
	case !p.Running():
		p.s.t.Fatalf("%s ended", p.name)
	}
	return "not yet; " + p.name + " says: " + p.text()
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
