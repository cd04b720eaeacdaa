package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/migrations/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/file"
)

// sinkUp reports what the relay's metrics say of a sink.
func (p *process) sinkUp(sink string) string { return p.metric(`outbox_sink_up{sink="` + sink + `"}`) }

func (p *process) waitSink(sink, up string) {
	p.t.Helper()
	eventually(p.t, patience, fmt.Sprintf("outbox_sink_up of %s is %s", sink, up), func() string {
		if got := p.sinkUp(sink); got != up {
			return p.mustRun("it is " + got)
		}
		return ""
	})
}

// healthy wants the relay alive and ready.
func (p *process) healthy(when string) {
	p.t.Helper()
	for _, path := range []string{"/health/live", "/health/ready"} {
		if code, body := p.get(path); code != http.StatusOK {
			p.t.Errorf("%s: %s: %d %s", when, path, code, body)
		}
	}
}

// Brokers are away when a relay starts, and go away without a word under load. The relay stays, is ready (a restart
// would not mend the broker), and delivers everything when they are back; nothing is lost, and order holds.
func TestBrokers(t *testing.T) {
	t.Parallel()
	kafka, rabbit := privateBrokers(t)
	const budget = 1000
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	worldOfBoth := func(t *testing.T) (*world, *topic, *queue, settings) {
		w := newWorld(t)
		k := newTopic(t, kafka.Plaintext, 4)
		q := newQueue(t, rabbit.URL, "#")
		return w, k, q, q.env().with(settings{
			"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": kafka.Plaintext,
			"RELAY_BACKOFF_MAX": "500ms", "RELAY_INFLIGHT_EVENTS": fmt.Sprint(budget),
		})
	}
	start := func(t *testing.T) {
		t.Helper()
		var both sync.WaitGroup
		for _, b := range []interface {
			Ping(context.Context) error
			Start(context.Context) error
		}{kafka, rabbit} {
			both.Go(func() {
				if b.Ping(ctx) == nil {
					return
				}
				if err := b.Start(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
	}
	killed := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	t.Run("away at the start", func(t *testing.T) {
		w, k, q, env := worldOfBoth(t)
		killed(t, kafka.Kill())
		killed(t, rabbit.Kill())
		l := w.load(loadOptions{topic: k.name, rate: 200})
		p := w.relay("relay", env)
		p.waitStreaming()
		l.waitCommitted(50)
		p.waitSink("kafka", "0")
		p.waitSink("rabbitmq", "0")
		p.healthy("with both brokers away")
		for _, l := range p.logged("publish did not succeed") {
			if text := l.text("error"); !strings.Contains(text, "127.0.0.1:") {
				t.Errorf("the log does not say which broker: %s", text)
			}
		}
		if n := len(p.logged("publish did not succeed")); n > 4 {
			t.Errorf("%d lines about brokers that are away, want one for each and half a minute", n)
		}
		start(t)
		l.finish(p)
		p.waitSink("kafka", "1")
		p.waitSink("rabbitmq", "1")
		p.stop()
		l.judge("kafka", events(t, k.read()), 0)
		l.judge("rabbitmq", messageEvents(t, q.drain()), 0)
	})
	for name, kill := range map[string]func() error{"kafka": kafka.Kill, "rabbitmq": rabbit.Kill} {
		t.Run(name+" is killed", func(t *testing.T) {
			start(t)
			w, k, q, env := worldOfBoth(t)
			l := w.load(loadOptions{topic: k.name, rate: 300})
			p := w.relay("relay", env)
			p.waitStreaming()
			l.waitCommitted(150)
			killed(t, kill())
			p.waitSink(name, "0")
			p.healthy("with " + name + " away")
			start(t)
			p.waitSink(name, "1")
			l.waitCommitted(50)
			l.finish(p)
			p.stop()
			for sink, got := range map[string]int{"kafka": l.judge("kafka", events(t, k.read()), budget), "rabbitmq": l.judge("rabbitmq", messageEvents(t, q.drain()), budget)} {
				if sink != name && got != 0 {
					t.Errorf("%d duplicates at %s, which was never away", got, sink)
				}
			}
		})
	}
	start(t) // for who comes next
}

// PostgreSQL goes away in every way that it can. The relay is the same process all the time, and recovers by itself.
func TestPostgres(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), nil)
	w := newWorldAt(t, server.DSN("postgres"))
	const budget = 400
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l := w.load(loadOptions{topic: "OrderCreated", rate: 300, survives: true})
	p := w.relay("relay", settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": path, "RELAY_BACKOFF_MAX": "500ms", "RELAY_INFLIGHT_EVENTS": fmt.Sprint(budget)})
	p.waitStreaming()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	accidents := []struct {
		name string
		do   func() error
	}{
		{"fast restart", func() error { return server.Restart(ctx) }},
		{"kill -9", func() error {
			if err := server.Kill(); err != nil {
				return err
			}
			eventually(t, patience, "the relay notices", func() string {
				if !p.streaming() {
					return ""
				}
				return p.mustRun("it still streams")
			})
			if code, body := p.get("/health/live"); code != http.StatusOK {
				t.Errorf("with PostgreSQL away: /health/live: %d %s", code, body)
			}
			return server.Start(ctx)
		}},
		{"immediate stop", func() error {
			if err := server.StopImmediate(ctx); err != nil {
				return err
			}
			return server.Start(ctx)
		}},
		{"its connections are ended", func() error {
			w.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sagaz-relay%' AND datname = current_database()`)
			return nil
		}},
	}
	for _, a := range accidents {
		l.waitCommitted(150)
		before := time.Now()
		if err := a.do(); err != nil {
			t.Fatalf("%s: %v", a.name, err)
		}
		back := time.Now()
		// What is committed from now on arrives.
		probe := l.probe()
		eventually(t, patience, "the relay works after: "+a.name, func() string {
			if status, err := w.statusOf(probe); status != "sent" {
				return p.mustRun(fmt.Sprintf("the row is %s (%v)", status, err))
			}
			return ""
		})
		t.Logf("%s: away for %s, and %s later an event was delivered and marked", a.name, back.Sub(before).Round(time.Millisecond), time.Since(back).Round(time.Millisecond))
	}
	l.finish(p)
	p.healthy("at the end")
	p.stop()
	// Nothing was marked that was not delivered; what was delivered and not marked comes again, for each accident.
	l.judge("file", lineEvents(t, func(f func(file.Line) error) error { return file.Read(path, f) }), len(accidents)*budget)
}

// statusOf looks at a row through a database that may just be coming back.
func (w *world) statusOf(id relay.UUID) (status string, err error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	err = w.db.Pool.QueryRow(ctx, `SELECT status FROM saga_outbox WHERE event_id = $1`, [16]byte(id)).Scan(&status)
	return status, err
}
