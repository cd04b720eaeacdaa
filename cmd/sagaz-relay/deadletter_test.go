package main

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

const (
	deadEvent = "0a6f1f2e-6f3c-4c58-9f0a-3f9c1f6b7a01"
	sentEvent = "0a6f1f2e-6f3c-4c58-9f0a-3f9c1f6b7a02"
)

// deadLetterBase is a table with a dead letter and an event that was sent.
func deadLetterBase(t *testing.T) (db *pgtest.DB, env map[string]string) {
	db = pgtest.New(t, pgtest.Migrated(), pgtest.SQL(`
		INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, headers, status, retry_count, last_error, sent_at) VALUES
			('`+deadEvent+`', 'saga-1', 'order-1', 'OrderPlaced', '{"card": "swordfish"}', '{"traceparent": "hammerhead"}', 'dead_letter', 5, 'rabbitmq: no queue', NULL),
			('`+sentEvent+`', 'saga-1', 'order-1', 'OrderPaid', '{}', '{}', 'sent', 0, NULL, now());
		INSERT INTO saga_outbox_relay (slot, epoch, owner, released_at) VALUES ('sagaz_outbox', 3, 'relay-1', now());
		INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, attempts, reason, last_error)
			VALUES ('`+deadEvent+`', 'rabbitmq', 'sagaz_outbox', 7, 'order-1', 1, 'OrderPlaced', 'dead', 5, 'unroutable', 'no queue is bound to exchange "saga-events" for routing key "OrderPlaced"')`))
	return db, map[string]string{"DATABASE_URL": db.DSN, "BROKER_TYPE": "kafka,rabbitmq"}
}

func TestDeadLetter(t *testing.T) {
	db, env := deadLetterBase(t)
	run := func(args string) string {
		t.Helper()
		out, err := execute(t, env, strings.Fields("dead-letter "+args)...)
		if err != nil {
			t.Fatalf("dead-letter %s: %v", args, err)
		}
		if strings.Contains(out, "hammerhead") || strings.Contains(out, "swordfish") && !strings.Contains(args, "--payload") {
			t.Errorf("dead-letter %s shows customers' data:\n%s", args, out)
		}
		return out
	}
	shows := func(out string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("%q is missing in:\n%s", want, out)
			}
		}
	}

	list := run("list")
	shows(list, "EVENT_ID", deadEvent+"  rabbitmq  dead", "unroutable", "no queue is bound")
	for _, line := range strings.Split(list, "\n") {
		if utf8.RuneCountInString(line) > 100 {
			t.Errorf("a line of %d characters: %s", utf8.RuneCountInString(line), line)
		}
	}
	var listed struct {
		Total   int
		Letters []map[string]any
	}
	if err := json.Unmarshal([]byte(run("list --json")), &listed); err != nil {
		t.Fatal(err)
	}
	if listed.Total != 1 || len(listed.Letters) != 1 || listed.Letters[0]["event_id"] != deadEvent || listed.Letters[0]["reason"] != "unroutable" || listed.Letters[0]["row_status"] != "dead_letter" {
		t.Errorf("the JSON is %+v", listed)
	}
	shows(run("list --sink kafka"), "none")
	if out := run("list --sink kafka --json"); !strings.Contains(out, `"letters": []`) {
		t.Errorf("an empty list is %s", out)
	}

	shows(run("show "+deadEvent), "OrderPlaced", "dead_letter", "traceparent", "21 bytes", "--payload", "later events of its key wait")
	shows(run("show --payload --json --event-id "+deadEvent), `{\"card\": \"swordfish\"}`, `"attempts": 5`)

	shows(run("retry --all --dry-run"), "dry run: 1 would be retried", deadEvent)
	shows(run("discard --reason unroutable --dry-run"), "dry run: 1 would be discarded")
	shows(run("retry --reason unroutable"), "retried 1: rabbitmq 1", "no relay is running")
	shows(run("retry --reason unroutable"), "nothing retried")
	db.Until(t, `SELECT status = 'pending' AND retry_count = 0 FROM saga_outbox WHERE event_id = $1`, deadEvent)

	if _, err := db.Pool.Exec(t.Context(), `UPDATE saga_outbox_relay SET released_at = NULL, renewed_at = now()`); err != nil {
		t.Fatal(err)
	}
	var discarded struct {
		Command string
		DryRun  *bool `json:"dry_run"`
		Chosen  int
		Sinks   map[string]int
		Relay   []struct{ Running bool }
	}
	if err := json.Unmarshal([]byte(run("discard --state retry --all --json")), &discarded); err != nil {
		t.Fatal(err)
	}
	if discarded.Command != "dead-letter discard" || discarded.DryRun == nil || *discarded.DryRun || discarded.Chosen != 1 || discarded.Sinks["rabbitmq"] != 1 || len(discarded.Relay) != 1 || !discarded.Relay[0].Running {
		t.Errorf("the JSON is %+v", discarded)
	}
	shows(run("list"), "none")
	shows(run("list --state discarded"), deadEvent+"  rabbitmq  discarded")
}

func TestReplayCommand(t *testing.T) {
	db, env := deadLetterBase(t)
	run := func(args string) (string, error) {
		t.Helper()
		return execute(t, env, strings.Fields("replay "+args)...)
	}
	out, err := run("--saga-id saga-1 --dry-run")
	if err != nil || !strings.Contains(out, "1 events would be delivered again to kafka, rabbitmq") || !strings.Contains(out, "not sent yet: dead_letter 1") {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = run("--since 1h --sink kafka --json")
	if err != nil {
		t.Fatal(err)
	}
	var result struct {
		Events   int
		Sinks    map[string]int
		Unsent   map[string]int
		Missing  []string
		Restored *int
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		t.Fatal(err)
	}
	if result.Events != 1 || result.Sinks["kafka"] != 1 || result.Unsent["dead_letter"] != 1 || result.Missing == nil || result.Restored == nil {
		t.Errorf("the JSON is %s", out)
	}
	db.Until(t, `SELECT count(*) = 1 FROM saga_outbox_delivery WHERE event_id = $1 AND sink = 'kafka' AND replayed_at IS NOT NULL AND detached`, sentEvent)
	out, err = run("--event-id " + sentEvent + ",00000000-0000-0000-0000-000000000001")
	if err == nil || exitCode(err) != exitFailure || !strings.Contains(err.Error(), "00000000-0000-0000-0000-000000000001") || !strings.Contains(out, "rabbitmq 1") || !strings.Contains(out, "in the ledger already: 1") {
		t.Errorf("%v\n%s", err, out)
	}

	if _, err := db.Pool.Exec(t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, status)
		SELECT gen_random_uuid(), 'big', 'k', 'T', '{}', 'sent' FROM generate_series(0, $1)`, manyEvents); err != nil {
		t.Fatal(err)
	}
	if _, err = run("--saga-id big"); err == nil || exitCode(err) != exitConfig || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("%d events without --yes: %v", manyEvents+1, err)
	}
	if out, err = run("--saga-id big --yes --sink rabbitmq"); err != nil || !strings.Contains(out, "rabbitmq 1001") {
		t.Errorf("with --yes: %v\n%s", err, out)
	}
}

// What cannot be understood is reported before the database is asked, with the usage exit code.
func TestRepairUsage(t *testing.T) {
	env := map[string]string{"DATABASE_URL": "postgresql://relay:s3cr3tword@127.0.0.1:1/shop"}
	for _, tt := range []struct{ args, want string }{
		{"dead-letter frobnicate", `unknown command "frobnicate"`},
		{"dead-letter retri", "did you mean retry?"},
		{"dead-letter retry", "or --all"},
		{"dead-letter discard --state all", "or --all"},
		{"dead-letter retry --all --state held", "held events go out by themselves"},
		{"dead-letter list --state buried", "--state=buried"},
		{"dead-letter list --older-than yesterday", "--older-than=yesterday"},
		{"dead-letter list --event-id 7", "--event-id=7"},
		{"dead-letter list --limit -1", "--limit=-1"},
		{"dead-letter show", "name an event"},
		{"dead-letter show seven", "want a UUID"},
		{"replay", "--event-id, --saga-id or --since"},
		{"replay --until 1h", "--event-id, --saga-id or --since"},
		{"replay --since 1h --until 2h", "after --since"},
		{"replay --since tomorrow", "--since=tomorrow"},
		{"replay --saga-id s --sink pigeon", "--sink=pigeon"},
	} {
		_, err := execute(t, env, strings.Fields(tt.args)...)
		if err == nil || exitCode(err) != exitConfig || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want a usage error with %q", tt.args, err, tt.want)
		}
	}
	for _, args := range []string{"dead-letter list", "dead-letter retry --all", "replay --saga-id s"} {
		_, err := execute(t, env, strings.Fields(args)...)
		if err == nil || exitCode(err) != exitFailure || strings.Contains(err.Error(), "s3cr3tword") {
			t.Errorf("%s with the database away: %v", args, err)
		}
	}
}
