package monitoring

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// TestAlertsRiseAndEnd makes real faults, waits for the alert of each, runs what its runbook says
// is to be run, fixes the fault as the runbook says, and waits for the alert to end. The rules are
// those of monitoring/, with shorter times and smaller limits.
func TestAlertsRiseAndEnd(t *testing.T) {
	t.Parallel()
	s := setTheStage(t)
	p := s.prometheus
	s.run("outbox-worker-0")
	p.until(`sum(outbox_recovered_events_total{cause="first_start"}) == 3`)

	// One relay alone.
	s.fires("OutboxStandbyMissing")
	s.run("outbox-worker-1")
	s.ends("OutboxStandbyMissing")

	// A third whose database does not answer.
	db := pgtest.NewProxy(t, s.db.DSN)
	db.Freeze()
	s.env["outbox-worker-2"]["DATABASE_URL"] = db.DSN
	s.run("outbox-worker-2")
	s.fires("OutboxWorkerNotReady")
	s.runbook("OutboxWorkerNotReady", "outbox-worker-2", "the database has not answered")
	db.Thaw()
	db.Cut()
	s.ends("OutboxWorkerNotReady")
	s.runbook("OutboxWorkerNotReady", "outbox-worker-2", "ready")

	// Nobody wants the event, and then somebody does.
	s.insert("lost.without_queue", 1)
	s.fires("OutboxDeadLetters")
	s.runbook("OutboxDeadLetters", "outbox-worker-0", "unroutable", "proof-1", "1 would be retried")
	s.bindKeys(s.channel, s.env["outbox-worker-0"]["RABBITMQ_EXCHANGE"], "lost.#")
	if out, err := relayCommand(t, s.env["outbox-worker-0"], "dead-letter", "retry", "--all").CombinedOutput(); err != nil {
		t.Errorf("dead-letter retry: %v\n%s", err, out)
	}
	s.ends("OutboxDeadLetters")

	// The first saga of all that could not be undone.
	s.insert("order.pay.compensation_failed", 1)
	s.fires("OutboxSagaCompensationFailed")
	s.runbook("OutboxSagaCompensationFailed", "outbox-worker-0", "proof-1", "order.pay.compensation_failed")

	// A broker that is silent.
	s.rabbit.Freeze()
	s.insert("order.note", 100)
	for _, alert := range []string{"OutboxSinkDown", "OutboxSinkIsolated", "OutboxLagElevated", "OutboxHighLag", "OutboxBacklogHigh"} {
		s.fires(alert)
	}
	s.runbook("OutboxSinkDown", s.owner(), "broken    sink rabbitmq")
	s.runbook("OutboxSinkIsolated", s.owner(), "sink_down")
	s.rabbit.Thaw()
	s.rabbit.Cut()
	for _, alert := range []string{"OutboxSinkDown", "OutboxSinkIsolated", "OutboxLagElevated", "OutboxHighLag", "OutboxBacklogHigh", "OutboxSagaCompensationFailed"} {
		s.ends(alert)
	}

	// A trigger that refuses the statement, not a row: rows would be set aside one by one.
	s.sql(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'nobody may update this'; END $$;
		CREATE TRIGGER refuse BEFORE UPDATE ON saga_outbox FOR EACH STATEMENT EXECUTE FUNCTION refuse()`)
	s.insert("order.note", 1)
	s.fires("OutboxMarksFailing")
	s.runbook("OutboxMarksFailing", s.owner(), "ALTER TABLE public.saga_outbox DISABLE TRIGGER refuse")
	s.sql(`ALTER TABLE public.saga_outbox DISABLE TRIGGER refuse`)
	s.ends("OutboxMarksFailing")

	// A change of the number of slots that waits for a transaction, and is given up.
	tx, err := s.db.Pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `SELECT pg_current_xact_id()`)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.shards("2")
	s.fires("OutboxShardsChanging")
	s.runbook("OutboxShardsChanging", "outbox-worker-2", "in one slot; being changed to 2: making since", "which makes the new slots: the server waits", "pg_current_xact_id")
	s.shards("1")
	s.ends("OutboxShardsChanging")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	// All relays die, and somebody drops the slot. Until here there was no gap.
	if found, _, err := p.ask(`ALERTS{alertname="OutboxSlotRecovered"}`); err != nil || len(found) > 0 {
		t.Errorf("OutboxSlotRecovered was there without a gap: %v %v", found, err)
	}
	for _, relay := range s.relays {
		if err := relay.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	s.fires("OutboxWorkerDown")
	s.insert("order.note", 5)
	product.Until(t, "nobody reads the slot", func() bool { return s.count(`SELECT count(*) FROM pg_replication_slots WHERE active`) == 0 })
	s.sql(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`)
	s.run("outbox-worker-0")
	s.run("outbox-worker-1")
	s.ends("OutboxWorkerDown")
	s.fires("OutboxSlotRecovered")
	s.runbook("OutboxSlotRecovered", s.owner(), "sagaz_outbox")
	s.ends("OutboxSlotRecovered")

	product.Until(t, "every row is sent", func() bool { return s.count(`SELECT count(*) FROM saga_outbox WHERE status <> 'sent'`) == 0 })
	product.Until(t, "no alert is left but those for looking at", func() bool {
		_, some := p.now(`count(ALERTS{alertstate="firing", severity!="info"})`)
		return !some
	})
}

// setTheStage is a scene without load and relays, whose rules are quick.
func setTheStage(t *testing.T) *scene {
	t.Helper()
	server := pgtest.OwnServer(t, pgtest.Newest, map[string]string{"max_slot_wal_keep_size": "-1"})
	s := &scene{t: t, db: pgtest.NewAt(t, server.DSN("postgres"), pgtest.Migrated()), relays: map[string]*product.Process{}, env: map[string]map[string]string{}}
	rabbit := brokertest.RabbitMQ(t).URL
	s.rabbit = pgtest.NewProxy(t, rabbit)
	exchange := fmt.Sprintf("alerts-%d", time.Now().UnixNano())
	s.bind(rabbit, exchange)
	s.insert("order.reserve.success", 3) // from before the slot
	targets := s.pods(3, exchange, nil)
	s.alerts = quick(t, string(product.Read(t, rulesFile)))
	s.prometheus = startPrometheus(t, s.alerts, targets)
	return s
}

// quick shortens a rule file's times and limits.
func quick(t *testing.T, rules string) string {
	t.Helper()
	shorter := map[string]string{"30s": "1s", "1m": "5s", "2m": "5s", "5m": "10s", "10m": "10s", "15m": "20s", "30m": "20s"}
	rules = regexp.MustCompile(`(\[|offset )(\d+[sm])\b`).ReplaceAllStringFunc(rules, func(found string) string {
		parts := regexp.MustCompile(`(\[|offset )(\d+[sm])`).FindStringSubmatch(found)
		if shorter[parts[2]] == "" {
			t.Fatalf("%s: no shorter time is known", found)
		}
		return parts[1] + shorter[parts[2]]
	})
	rules = regexp.MustCompile(`(?m)^( +(?:keep_firing_)?for: ).*$`).ReplaceAllString(rules, "${1}2s")
	for _, limit := range [][2]string{
		{"outbox_oldest_pending_seconds:max > 300", "outbox_oldest_pending_seconds:max > 6"},
		{"outbox_oldest_pending_seconds:max > 60", "outbox_oldest_pending_seconds:max > 3"},
		{"outbox_pending_events:sum > 5000", "outbox_pending_events:sum > 50"},
		{"outbox_shards_change_seconds[5s])) > 600", "outbox_shards_change_seconds[5s])) > 3"},
	} {
		if !strings.Contains(rules, limit[0]) {
			t.Fatalf("no rule has %q", limit[0])
		}
		rules = strings.ReplaceAll(rules, limit[0], limit[1])
	}
	return rules
}

// shards asks for another number of slots.
func (s *scene) shards(n string) {
	s.t.Helper()
	cmd := relayCommand(s.t, map[string]string{"DATABASE_URL": s.db.DSN}, "migrate", "--shards", n, "--no-wait")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("migrate --shards %s: %v\n%s", n, err, out)
	}
}

// fires waits for an alert.
func (s *scene) fires(alert string) {
	s.t.Helper()
	began := time.Now()
	s.prometheus.until(fmt.Sprintf(`ALERTS{alertname=%q, alertstate="firing"}`, alert))
	s.t.Logf("%s fires after %s", alert, time.Since(began).Round(100*time.Millisecond))
}

// ends waits for an alert to be over.
func (s *scene) ends(alert string) {
	s.t.Helper()
	began := time.Now()
	product.Until(s.t, alert+" ends", func() bool {
		_, some := s.prometheus.now(fmt.Sprintf(`count(ALERTS{alertname=%q, alertstate="firing"})`, alert))
		return !some
	})
	s.t.Logf("%s ends after %s", alert, time.Since(began).Round(100*time.Millisecond))
}

// runbook runs the commands of an alert's runbook that work without a cluster, as the pod would,
// and looks for what they should show.
func (s *scene) runbook(alert, pod string, shows ...string) {
	s.t.Helper()
	_, entry, _ := strings.Cut(string(product.Read(s.t, "monitoring/RUNBOOKS.md")), "\n## "+alert+"\n")
	entry, _, _ = strings.Cut(entry, "\n## ")
	said, ran := "", 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(entry, -1) {
		for line := range strings.Lines(block[1]) {
			var cmd *exec.Cmd
			line = strings.TrimSpace(line)
			if args, ok := strings.CutPrefix(line, "kubectl -n sagaz exec deploy/outbox-worker -- sagaz-relay "); ok {
				cmd = relayCommand(s.t, s.env[pod], strings.Fields(args)...)
			} else if args, ok := strings.CutPrefix(line, "kubectl -n sagaz exec postgresql-0 -- psql -U postgres -d saga_db "); ok {
				cmd = exec.Command("sh", "-c", `psql "$DATABASE_URL" `+args)
				cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "DATABASE_URL=" + s.db.DSN, "HOME=/nonexistent", "PSQL_PAGER=cat"}
			} else {
				continue
			}
			ran++
			out, err := cmd.CombinedOutput()
			said += fmt.Sprintf("$ %s\n%s", line, out)
			// doctor and health say by their exit code that something is wrong.
			if err != nil && !strings.Contains(line, "doctor") && !strings.HasSuffix(line, "health") {
				s.t.Errorf("%s: %s: %v\n%s", alert, line, err, out)
			}
		}
	}
	if ran == 0 {
		s.t.Errorf("the runbook of %s has no command that can be run here", alert)
	}
	for _, want := range shows {
		if !strings.Contains(said, want) {
			s.t.Errorf("the runbook of %s does not show %q", alert, want)
		}
	}
	s.t.Logf("%s\n%s", alert, said)
}

func (s *scene) sql(text string) {
	s.t.Helper()
	if _, err := s.db.Pool.Exec(s.t.Context(), text); err != nil {
		s.t.Fatalf("%s: %v", text, err)
	}
}
