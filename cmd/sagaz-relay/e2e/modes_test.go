package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// Whatever keeps RELAY_MODE=auto from streaming, it logs that with what fixes it, and polls. When
// that is fixed it streams, by itself and under load, and nothing is lost or repeated.
// RELAY_MODE=cdc refuses.
func TestAuto(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		server map[string]string
		env    func(w *world) settings // of the relay that cannot stream
		before func(w *world)
		fix    func(w *world, s *pgserver.Server)
		// restart: to fix it PostgreSQL or the relay is restarted, and the load rests, so that
		// nothing may be repeated.
		restart bool
		words   []string
	}{
		{
			name:   "wal_level",
			server: map[string]string{"wal_level": "replica"},
			fix: func(w *world, s *pgserver.Server) {
				w.exec(`ALTER SYSTEM SET wal_level = 'logical'`)
				if err := s.Restart(w.t.Context()); err != nil {
					w.t.Fatal(err)
				}
			},
			restart: true,
			words:   []string{"wal_level", "ALTER SYSTEM SET wal_level = 'logical'", "restart"},
		},
		{
			name:   "no right",
			before: func(w *world) { w.exec(`ALTER ROLE ` + w.role + ` NOREPLICATION`) },
			fix:    func(w *world, _ *pgserver.Server) { w.exec(`ALTER ROLE ` + w.role + ` REPLICATION`) },
			words:  []string{"ALTER ROLE", "REPLICATION;"},
		},
		{
			name:   "no free slot",
			server: map[string]string{"max_replication_slots": "1"},
			before: func(w *world) { w.exec(`SELECT pg_create_physical_replication_slot('taken')`) },
			fix:    func(w *world, _ *pgserver.Server) { w.exec(`SELECT pg_drop_replication_slot('taken')`) },
			words:  []string{"no replication slot is free", "pg_replication_slots", "max_replication_slots"},
		},
		{
			name:    "pooler",
			env:     func(w *world) settings { return settings{"DATABASE_URL": w.pooled()} },
			restart: true,
			words:   []string{"pooler", "DATABASE_URL", "PostgreSQL's own host and port"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			superuser := pgtest.Server(t, pgtest.Version())
			var server *pgserver.Server
			if c.server != nil {
				server = pgtest.OwnServer(t, pgtest.Version(), c.server)
				superuser = server.DSN("postgres")
			}
			w := bareWorldAt(t, superuser)
			w.migrate()
			if c.before != nil {
				c.before(w)
			}
			d := toKafka(t)
			env := d.env.with(settings{"RELAY_MODE": "auto", "POLL_INTERVAL": "0.1"})
			if c.env != nil {
				env = env.with(c.env(w))
			}
			w.fails(t, env.with(settings{"RELAY_MODE": "cdc"}), c.words...)

			l := w.load(loadOptions{topic: d.topic, rate: 300})
			l.waitCommitted(50)
			p := w.relay("relay", env)
			logged := p.waitLog("streaming is impossible, so the table is polled until it is possible").text("error")
			p.waitPolling()
			why := p.status().Slots[0].Why
			for _, word := range c.words {
				if !strings.Contains(logged, word) || !strings.Contains(why, word) {
					t.Errorf("the relay does not name %q: log %q, status %q", word, logged, why)
				}
			}
			l.waitCommitted(300)
			w.noSlots()

			if c.restart {
				l.finish(p)
			}
			if c.fix != nil {
				c.fix(w, server)
			} else {
				p.stop()
				p = w.relay("relay-direct", env.with(settings{"DATABASE_URL": w.url}))
			}
			if c.restart {
				l.start()
			}
			p.waitStreaming()
			l.waitCommitted(300)
			l.finish(p)
			if st := p.status().Slots[0]; st.Mode != "cdc" || st.Why != "" {
				t.Errorf("mode %s, why %q, want cdc", st.Mode, st.Why)
			}
			p.stop()
			for sink, got := range d.got() {
				l.judge(sink, got, 0)
			}
		})
	}
}

// A relay may be started in another mode each time, under load: nothing is lost, repeated or
// overtaken. A slot that nobody reads while the relay polls is warned of.
func TestSwitchModes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := toKafka(t)
	l := w.load(loadOptions{topic: d.topic})
	env := d.env.with(settings{"POLL_INTERVAL": "0.1"})
	var p *process
	for round := range 3 {
		for i, mode := range []string{"cdc", "polling", "cdc", "auto"} {
			if p != nil {
				p.stop()
			}
			p = w.relay(fmt.Sprintf("relay-%d-%d-%s", round, i, mode), env.with(settings{"RELAY_MODE": mode}))
			if mode == "polling" {
				p.waitPolling()
				if text := p.waitLog("the replication slot is not being read").text("fix"); !strings.Contains(text, "pg_drop_replication_slot('"+w.slot+"')") {
					t.Errorf("the log does not have how to drop the slot: %s", text)
				}
			} else {
				p.waitStreaming()
			}
			l.waitCommitted(200)
		}
	}
	l.finish(p)
	p.stop()
	for sink, got := range d.got() {
		l.judge(sink, got, 0)
	}
}
