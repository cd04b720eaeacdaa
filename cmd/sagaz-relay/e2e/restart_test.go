package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/file"
)

// sinkUp is outbox_sink_up of a sink.
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

// Brokers go away without a word under load, one and both, and are away when a relay starts. The
// relay stays, is ready (a restart would not fix a broker), and delivers everything when they are
// back; nothing is lost, and order holds.
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
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	t.Run("kafka, then both, then at the start", func(t *testing.T) {
		w, k, q, env := worldOfBoth(t)
		l := w.load(loadOptions{topic: k.name, rate: 300})
		p := w.relay("relay-1", env)
		p.waitStreaming()
		l.waitCommitted(150)

		must(t, kafka.Kill())
		p.waitSink("kafka", "0")
		before := q.depth()
		eventually(t, patience, "rabbitmq gets events while kafka is away", func() string {
			if q.depth() > before {
				return ""
			}
			return p.mustRun("nothing new")
		})
		p.healthy("with kafka away")

		must(t, rabbit.Kill())
		p.waitSink("rabbitmq", "0")
		p.healthy("with both brokers away")
		for _, l := range p.logged("publish did not succeed") {
			if text := l.text("error"); !strings.Contains(text, "127.0.0.1:") && !strings.Contains(text, "connection") {
				t.Errorf("the log does not show which broker, or what happened: %s", text)
			}
		}
		if n := len(p.logged("publish did not succeed")); n > 4 {
			t.Errorf("%d lines about brokers that are away, want one for each and half a minute", n)
		}

		p.crash()
		p = w.relay("relay-2", env)
		p.waitStreaming()
		p.waitSink("kafka", "0")
		p.waitSink("rabbitmq", "0")
		p.healthy("started with both brokers away")

		var both sync.WaitGroup
		var errs [2]error
		both.Go(func() { errs[0] = kafka.Start(ctx) })
		both.Go(func() { errs[1] = rabbit.Start(ctx) })
		both.Wait()
		must(t, errors.Join(errs[:]...))
		p.waitSink("kafka", "1")
		p.waitSink("rabbitmq", "1")
		l.finish(p)
		p.stop()
		l.judge("kafka", events(t, k.read()), 2*budget)
		l.judge("rabbitmq", messageEvents(t, q.drain()), 2*budget)
	})
	t.Run("rabbitmq", func(t *testing.T) {
		w, k, q, env := worldOfBoth(t)
		l := w.load(loadOptions{topic: k.name, rate: 300})
		p := w.relay("relay", env)
		p.waitStreaming()
		l.waitCommitted(150)
		must(t, rabbit.Kill())
		p.waitSink("rabbitmq", "0")
		p.healthy("with rabbitmq away")
		must(t, rabbit.Start(ctx))
		p.waitSink("rabbitmq", "1")
		l.waitCommitted(50)
		l.finish(p)
		p.stop()
		l.judge("kafka", events(t, k.read()), 0) // it was never away
		l.judge("rabbitmq", messageEvents(t, q.drain()), budget)
	})
}

// PostgreSQL goes away in every way that it can. The relay is the same process all the time, and
// recovers by itself.
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
	// Nothing was marked that was not delivered; what was delivered and not marked comes again, for
	// each accident.
	l.judge("file", lineEvents(t, func(f func(file.Line) error) error { return file.Read(path, f) }), len(accidents)*budget)
}

// statusOf looks at a row through a database that may just be coming back.
func (w *world) statusOf(id relay.UUID) (status string, err error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	err = w.db.Pool.QueryRow(ctx, `SELECT status FROM saga_outbox WHERE event_id = $1`, [16]byte(id)).Scan(&status)
	return status, err
}
