package browser

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// patience is how long anything may take on a loaded machine.
const patience = 90 * time.Second

// from returns a variable that cmd/testenv sets.
func from(t testing.TB, variable string) string {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		t.Fatalf("%s is not set: run by make test-files, or in bin/testenv", variable)
	}
	return value
}

func unique(prefix string) string {
	b := make([]byte, 6)
	_, _ = rand.Read(b) // never fails
	return prefix + "_" + hex.EncodeToString(b)
}

// site is a database of its own, an exchange of its own, and a door to RabbitMQ that can be closed.
type site struct {
	t        testing.TB
	db       *pgx.Conn
	dsn      string
	slot     string
	exchange string
	door     *door
}

func newSite(t testing.TB) *site {
	t.Helper()
	ctx := t.Context()
	s := &site{t: t, slot: unique("page"), exchange: unique("page")}
	base := from(t, "SAGAZ_TEST_POSTGRES_18")
	server, err := pgx.Connect(ctx, base)
	if err != nil {
		t.Fatal(err)
	}
	name := unique("page")
	if _, err := server.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	s.dsn = u.String()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if s.db != nil {
			_ = s.db.Close(ctx)
		}
		if _, err := server.Exec(ctx, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", s.slot); err != nil {
			t.Error(err)
		}
		for { // the walsender takes a moment to end
			_, err := server.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", s.slot)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Error(err)
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if _, err := server.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
		_ = server.Close(ctx)
	})
	migrate := exec.CommandContext(ctx, product.Binary(t), "migrate")
	migrate.Env = []string{"DATABASE_URL=" + s.dsn, "RELAY_SLOT=" + s.slot}
	if out, err := migrate.CombinedOutput(); err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	if s.db, err = pgx.Connect(ctx, s.dsn); err != nil {
		t.Fatal(err)
	}
	s.door = newDoor(t, from(t, "SAGAZ_TEST_RABBITMQ"))
	s.bind("OrderCreated")
	return s
}

// bind makes the exchange and a queue for the routing key.
func (s *site) bind(key string) {
	s.t.Helper()
	conn, err := amqp.Dial(from(s.t, "SAGAZ_TEST_RABBITMQ"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err == nil {
		err = ch.ExchangeDeclare(s.exchange, "topic", true, false, false, false, nil)
	}
	if err == nil {
		_, err = ch.QueueDeclare(s.exchange, false, false, true, false, nil)
	}
	if err == nil {
		err = ch.QueueBind(s.exchange, key, s.exchange, false, nil)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = ch.ExchangeDelete(s.exchange, false, false) })
}

// insert commits events, one a transaction.
func (s *site) insert(eventType string, n int) {
	s.t.Helper()
	for i := range n {
		if _, err := s.db.Exec(s.t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers)
			VALUES (gen_random_uuid(), $1, 'order', $2, $3, '{"secret": "payload-marker"}', '{}')`, fmt.Sprint("saga-", i), fmt.Sprint("order-", i%50), eventType); err != nil {
			s.t.Fatal(err)
		}
	}
}

// load inserts for as long as SAGAZ_SCREENSHOTS_AFTER says, in waves, with RabbitMQ away for a minute in the middle: for screenshots with a
// history. Without the variable it does nothing.
func (s *site) load() {
	s.t.Helper()
	span, err := time.ParseDuration(os.Getenv("SAGAZ_SCREENSHOTS_AFTER"))
	if err != nil {
		return
	}
	for began := time.Now(); time.Since(began) < span; {
		elapsed := time.Since(began).Seconds()
		s.insert("OrderCreated", int(30+25*math.Sin(elapsed/70)+10*math.Sin(elapsed/13)))
		if away := elapsed - span.Seconds()/2; away > 0 && away < 60 {
			s.door.close()
		} else {
			s.door.open()
		}
		time.Sleep(300 * time.Millisecond)
	}
	s.door.open()
}

// running is a relay that runs.
type running struct {
	t    testing.TB
	url  string
	cmd  *exec.Cmd
	done chan struct{}
	log  *product.Output
}

// relay starts one, with more variables.
func (s *site) relay(name string, more ...string) *running {
	s.t.Helper()
	r := &running{t: s.t, done: make(chan struct{}), log: &product.Output{}}
	r.cmd = exec.Command(product.Binary(s.t), "run")
	r.cmd.Env = append([]string{
		"DATABASE_URL=" + s.dsn, "RELAY_SLOT=" + s.slot, "WORKER_ID=" + name, "BROKER_TYPE=kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS=" + from(s.t, "SAGAZ_TEST_KAFKA"),
		"RABBITMQ_URL=" + s.door.url, "RABBITMQ_EXCHANGE=" + s.exchange, "RELAY_HTTP_ADDR=127.0.0.1:0", "MAX_RETRIES=2", "RELAY_UNROUTABLE_PATIENCE=0s", "INITIAL_RETRY_DELAY_SECONDS=0.1",
		"RELAY_TOPIC=page.{event_type}", "RELAY_SINK_ISOLATION=5m", "RELAY_DRAIN_TIMEOUT=1s",
	}, more...)
	r.cmd.Stderr = r.log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() { // ends with the process, which cleanup ends
		_ = r.cmd.Wait()
		close(r.done)
	}()
	s.t.Cleanup(func() {
		r.stop()
		text := r.log.String()
		if strings.Contains(text, "payload-marker") {
			s.t.Errorf("%s logs a payload", name)
		}
		if s.t.Failed() {
			s.t.Logf("%s:\n%s", name, text[max(0, len(text)-3000):])
		}
	})
	s.eventually(name+" answers", func() error {
		for line := range strings.Lines(r.log.String()) {
			var l struct{ Message, URL string }
			if json.Unmarshal([]byte(line), &l) == nil && l.URL != "" {
				r.url = l.URL
				return nil
			}
		}
		return errors.New("no address yet")
	})
	return r
}

func (r *running) stop() {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.done:
	case <-time.After(patience):
		_ = r.cmd.Process.Kill()
		<-r.done
	}
}

func (s *site) waitReady(r *running) {
	s.t.Helper()
	s.eventually(r.url+" is ready", func() error {
		res, err := http.Get(r.url + "/health/ready")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 {
			return errors.New(string(body))
		}
		return nil
	})
}

// eventually waits for f to return nil.
func (s *site) eventually(what string, f func() error) {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// door passes connections on to RabbitMQ, while it is open.
type door struct {
	url      string // through the door
	target   string
	listener net.Listener

	mu    sync.Mutex // guards what follows
	shut  bool
	conns map[net.Conn]bool
}

func newDoor(t testing.TB, target string) *door {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{target: u.Host, conns: make(map[net.Conn]bool)}
	if d.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	u.Host = d.listener.Addr().String()
	d.url = u.String()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := d.listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { d.pass(conn) })
		}
	})
	t.Cleanup(func() {
		_ = d.listener.Close()
		d.close()
		all.Wait()
	})
	return d
}

func (d *door) pass(conn net.Conn) {
	defer conn.Close()
	out, err := net.Dial("tcp", d.target)
	if err != nil {
		return
	}
	defer out.Close()
	d.mu.Lock()
	if d.shut {
		d.mu.Unlock()
		return
	}
	d.conns[conn], d.conns[out] = true, true
	d.mu.Unlock()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{conn, out}, {out, conn}} {
		both.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_ = pair[0].Close()
			_ = pair[1].Close()
		})
	}
	both.Wait()
	d.mu.Lock()
	delete(d.conns, conn)
	delete(d.conns, out)
	d.mu.Unlock()
}

// close ends what passes and lets nothing in.
func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = true
	for conn := range d.conns {
		_ = conn.Close()
	}
}

func (d *door) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = false
}
