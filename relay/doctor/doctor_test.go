package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/migrations"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/encode"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Closing(m)) }

// sink answers what the test sets.
type sink struct {
	down     error
	problems []relay.RouteProblem
	unknown  error
	asked    *[]relay.Route
}

func (sink) Name() string                                   { return "kafka" }
func (sink) Publish(context.Context, []*relay.Record) error { return errors.New("not for publishing") }
func (sink) Close() error                                   { return nil }
func (s sink) Check(context.Context) error                  { return s.down }
func (s sink) CheckRoutes(_ context.Context, routes []relay.Route) ([]relay.RouteProblem, error) {
	if s.asked != nil {
		*s.asked = routes
	}
	return s.problems, s.unknown
}

// configFor is what cmd makes of the default settings. The slot's name is the test's own: slots are
// the server's, not the database's.
func configFor(t testing.TB, dsn string) Config {
	t.Helper()
	encoder, err := encode.New(encode.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("the DSN is not a URL")
	}
	name := strings.TrimPrefix(u.Path, "/")
	return Config{
		DatabaseURL: dsn, Mode: relay.ModeAuto, Set: relay.Alone(name[max(0, len(name)-50):]+"_s1", "sagaz_outbox").Set, Failover: true,
		WALSenderTimeout: 10 * time.Second, Mark: "update", ClaimTimeout: 5 * time.Minute, LeaseTTL: 9 * time.Second,
		SinkNames: []string{"kafka"}, Sinks: []relay.Sink{sink{}}, Encoder: encoder,
		RetainedTooMuch: DefaultRetainedTooMuch, PendingTooLong: DefaultPendingTooLong, Now: time.Now,
	}
}

func exec(t testing.TB, dsn string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

func show(r *Report) string {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// finding looks for one by its check, severity and a part of its summary.
func (r *Report) finding(check string, severity Severity, text string) *Finding {
	for i := range r.Findings {
		f := &r.Findings[i]
		if strings.HasPrefix(f.Check, check) && f.Severity == severity && strings.Contains(f.Summary, text) {
			return f
		}
	}
	return nil
}

// applyFix runs the statements of a finding's fix, as a superuser, and "sagaz-relay migrate" where
// that is the fix.
func applyFix(t testing.TB, superuser string, f *Finding) {
	t.Helper()
	for _, step := range f.Fix {
		switch {
		case step.SQL != "":
			if !strings.HasSuffix(step.SQL, ";") {
				t.Errorf("%q does not end like a statement", step.SQL)
			}
			exec(t, superuser, step.SQL)
		case step == migrate, step == tune:
			conn, err := pgx.Connect(t.Context(), superuser)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
			if step == migrate {
				_, err = migrations.Run(t.Context(), conn)
			} else {
				_, err = migrations.Tune(t.Context(), conn)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// differing are checks whose questions differ by version.
var differing = []string{"publication", "slot", "other slots", "indexes", "sweep", "origin", "replication"}

// inTwo is a relay with RELAY_SHARDS=2.
func inTwo(c *Config) { c.Set.Shards = 2 }

const row = `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, status, created_at, claimed_at, retry_count) VALUES `

// ours grants a role what a relay needs, and makes the publication for it.
const ours = `GRANT SELECT, UPDATE, DELETE ON saga_outbox TO %role; GRANT SELECT, INSERT, UPDATE ON saga_outbox_archive, saga_outbox_relay, saga_outbox_set TO %role;
	GRANT SELECT, INSERT, UPDATE, DELETE ON saga_outbox_delivery TO %role; GRANT SELECT ON saga_outbox_migrations TO %role;
	CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox WITH (publish = 'insert')`

// switched is a database whose table was divided in two slots, where the old one is left. The words
// that follow are of the moment.
const switched = `SELECT pg_create_logical_replication_slot('%slot', 'pgoutput'); INSERT INTO saga_outbox_set (slot, publication, shards, generation) VALUES ('%slot', 'sagaz_outbox', 2, 2);
	INSERT INTO saga_outbox_relay (slot, epoch, owner, heir, pooled, renewed_at) VALUES ('%slot', 2, 'none', '%slot_0of2', true, now() + interval '`

const running = `INSERT INTO saga_outbox_relay (slot, shard, shards, epoch, owner) VALUES ('%slot_0of2', 0, 2, 1, 'relay-1')`

// Every finding that statements can provoke and fix: it is there, what it prints is run, and it is
// gone.
func TestFindings(t *testing.T) {
	library, err := filepath.Glob("../../migrations/testdata/*.sql")
	if err != nil || len(library) == 0 {
		t.Fatalf("no library schema: %v", err)
	}
	for _, tt := range []struct {
		name    string
		min     int    // version of PostgreSQL
		provoke string // %slot, %role
		empty   bool   // the database has not been migrated
		// role is the attributes of a role of its own for the doctor; "" for the superuser; "NONE"
		// for a role without.
		role   string
		config func(*Config)

		check    string
		severity Severity
		text     string
		byHand   string // in addition to the finding's own SQL
		settings func(*Config)
	}{
		{name: "NoTables", empty: true, check: "tables", severity: Broken, text: "saga_outbox, saga_outbox_relay, saga_outbox_set, saga_outbox_delivery"},
		{name: "NoLedger", provoke: `DROP TABLE saga_outbox_delivery; DELETE FROM saga_outbox_migrations WHERE version = 3`, check: "tables", severity: Broken, text: "not there: saga_outbox_delivery"},
		{name: "OtherSchema", role: "REPLICATION", provoke: ours + `; CREATE SCHEMA app; ALTER TABLE saga_outbox SET SCHEMA app; GRANT USAGE ON SCHEMA app TO %role`, check: "tables", severity: Broken, text: "is in schema app, which is not on the search_path"},
		{name: "NoSchemaUsage", role: "REPLICATION", provoke: ours + `; CREATE SCHEMA app; ALTER TABLE saga_outbox SET SCHEMA app; ALTER ROLE %role SET search_path = app, public`, check: "tables", severity: Broken, text: "may not use"},
		{name: "Column", provoke: `ALTER TABLE saga_outbox DROP COLUMN worker_id, DROP COLUMN headers`, check: "columns", severity: Broken, text: "lacks column headers, worker_id"},
		{name: "ColumnType", provoke: `ALTER TABLE saga_outbox ALTER COLUMN aggregate_id TYPE numeric USING 1, ALTER COLUMN payload TYPE bytea USING '\x7b7d'`, check: "columns", severity: Broken, text: "column aggregate_id has type numeric; accepted: varchar, text"},
		{
			name: "InsertTrigger", check: "inserts", severity: Note, text: "and have an UPDATE in them: changes", byHand: `DROP TRIGGER changes ON saga_outbox`,
			provoke: `CREATE FUNCTION changes() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE saga_outbox SET payload = ''1'' WHERE event_id = NEW.event_id; RETURN NULL; END';
				CREATE TRIGGER changes AFTER INSERT ON saga_outbox FOR EACH ROW EXECUTE FUNCTION changes()`,
		},
		{name: "ArchiveColumn", provoke: `ALTER TABLE saga_outbox ADD COLUMN tenant varchar(20), ADD COLUMN "Region" text`, config: func(c *Config) { c.Archive = true }, check: "archive", severity: Broken, text: "the columns of saga_outbox_archive are not those of saga_outbox"},
		{name: "ArchiveOrder", provoke: `ALTER TABLE saga_outbox ADD COLUMN a text, ADD COLUMN b text; ALTER TABLE saga_outbox_archive ADD COLUMN b text`, config: func(c *Config) { c.Archive = true }, check: "archive", severity: Broken, text: "are not those"},
		{
			name: "ArchiveComputes", provoke: `ALTER TABLE saga_outbox ADD COLUMN n int GENERATED ALWAYS AS (1) STORED; ALTER TABLE saga_outbox_archive ADD COLUMN n int GENERATED ALWAYS AS (1) STORED`, config: func(c *Config) { c.Archive, c.Mark = true, "archive" },
			check: "statements", severity: Broken, text: "saga_outbox_archive computes a column", byHand: `ALTER TABLE saga_outbox_archive ALTER COLUMN n DROP EXPRESSION`,
		},
		{name: "LedgerColumn", provoke: `ALTER TABLE saga_outbox_delivery RENAME COLUMN reason TO gone`, check: "statements", severity: Broken, text: "reason", byHand: `ALTER TABLE saga_outbox_delivery RENAME COLUMN gone TO reason`},
		{name: "LedgerRowSecurity", role: "REPLICATION", provoke: ours + `; ALTER TABLE saga_outbox_delivery ENABLE ROW LEVEL SECURITY`, check: "row security", severity: Broken, text: "hides rows of saga_outbox_delivery"},
		{name: "UnloggedInPolling", provoke: `ALTER TABLE saga_outbox SET UNLOGGED`, config: func(c *Config) { c.Mode = relay.ModePolling }, check: "saga_outbox", severity: Degraded, text: "unlogged"},
		{name: "PublicationFilterInCDC", min: 15, provoke: `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox WHERE (event_type <> 'x') WITH (publish = 'insert')`, config: func(c *Config) { c.Mode = relay.ModeCDC }, check: "publication", severity: Broken, text: "passes only rows with"},
		{name: "Migrations", provoke: `DELETE FROM saga_outbox_migrations WHERE version >= 2`, check: "migrations", severity: Degraded, text: "not applied: 0002"},
		{name: "MigrationsUnread", role: "REPLICATION", provoke: ours + `; REVOKE SELECT ON saga_outbox_migrations FROM %role`, check: "migrations", severity: Unknown, text: "may not be read"},
		{name: "Rights", role: "REPLICATION", config: func(c *Config) { c.Archive, c.Mark = true, "archive" }, check: "rights", severity: Broken, text: "lacks SELECT, UPDATE, DELETE on saga_outbox; SELECT, INSERT, UPDATE on saga_outbox_relay; SELECT, INSERT, UPDATE on saga_outbox_set; SELECT, INSERT, UPDATE, DELETE on saga_outbox_delivery; SELECT, INSERT, UPDATE on saga_outbox_archive"},
		{name: "OneRight", role: "REPLICATION", provoke: ours + `; REVOKE INSERT ON saga_outbox_delivery FROM %role`, check: "rights", severity: Broken, text: "lacks INSERT on saga_outbox_delivery"},
		{name: "NoReplication", role: "NONE", provoke: ours, check: "replication", severity: Degraded, text: "lacks the right to replicate"},
		{name: "NoReplicationButCDC", role: "NONE", provoke: ours, config: func(c *Config) { c.Mode = relay.ModeCDC }, check: "replication", severity: Broken, text: "lacks the right to replicate"},
		{name: "NoPublication", role: "REPLICATION", provoke: ours + `; DROP PUBLICATION sagaz_outbox`, check: "publication", severity: Degraded, text: "may make it"},
		{name: "PublicationWithoutInserts", provoke: `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox WITH (publish = 'update')`, check: "publication", severity: Degraded, text: "does not publish inserts"},
		{name: "PublicationOfAnother", provoke: `CREATE PUBLICATION sagaz_outbox FOR TABLE consumer_inbox WITH (publish = 'insert')`, check: "publication", severity: Degraded, text: "does not contain table public.saga_outbox"},
		{name: "PublicationColumns", min: 15, provoke: `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox (event_id, payload) WITH (publish = 'insert')`, check: "publication", severity: Degraded, text: "leaves out column saga_id"},
		{name: "PublicationFilter", min: 15, provoke: `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox WHERE (event_type <> 'x') WITH (publish = 'insert')`, check: "publication", severity: Degraded, text: "passes only rows with"},
		{name: "ShardWithoutFilter", min: 15, provoke: `CREATE PUBLICATION sagaz_outbox_1of2 FOR TABLE saga_outbox WITH (publish = 'insert')`, config: inTwo, check: "publication", severity: Degraded, text: "all 2 shards"},
		{name: "ShardWithAnothersFilter", min: 15, provoke: `CREATE PUBLICATION sagaz_outbox_1of2 FOR TABLE saga_outbox WHERE (hashtext(aggregate_id) % 2 = 1) WITH (publish = 'insert')`, config: inTwo, check: "publication", severity: Degraded, text: "its shard is another"},
		{name: "ShardOfUpdates", min: 15, provoke: `CREATE PUBLICATION sagaz_outbox_0of2 FOR TABLE saga_outbox`, config: inTwo, check: "publication", severity: Degraded, text: "updates or deletes"},
		{name: "ShardsOfADomain", min: 15, provoke: `CREATE DOMAIN made AS varchar(255); ALTER TABLE saga_outbox ALTER COLUMN aggregate_id TYPE made`, config: inTwo, check: "publication", severity: Degraded, text: "somebody has made"},
		{name: "SlotOfAnotherSet", provoke: `SELECT pg_create_logical_replication_slot('%slot_0of3', 'pgoutput')`, check: "other slots", severity: Degraded, text: "another number of slots than 1"},
		{name: "ShardWithoutOwner", min: 15, provoke: `INSERT INTO saga_outbox_set (slot, publication, shards) VALUES ('%slot', 'sagaz_outbox', 2); INSERT INTO saga_outbox_relay (slot, shard, shards, epoch, owner) VALUES ('%slot_0of2', 0, 2, 1, 'relay-1')`, config: inTwo, check: "owner", severity: Degraded, text: "nobody owns slot", byHand: `INSERT INTO saga_outbox_relay (slot, shard, shards, epoch, owner) VALUES ('%slot_1of2', 1, 2, 1, 'relay-2')`},
		{name: "AnotherNumberOfSlots", min: 15, provoke: `INSERT INTO saga_outbox_set (slot, publication, shards) VALUES ('%slot', 'sagaz_outbox', 2)`, check: "slots", severity: Note, text: "RELAY_SHARDS is 1, and the table is divided among 2", settings: inTwo},
		{name: "SlotsAreChanged", min: 15, provoke: `INSERT INTO saga_outbox_set (slot, publication, shards, target, state) VALUES ('%slot', 'sagaz_outbox', 2, 4, 'draining')`, config: inTwo, check: "slots", severity: Note, text: "being changed from 2 to 4: draining, and waits for: a relay: none works on it yet", byHand: `UPDATE saga_outbox_set SET target = NULL, state = NULL`},
		{name: "RelaysOfAnotherSlot", provoke: `INSERT INTO saga_outbox_relay (slot, epoch, owner) VALUES ('other', 1, 'relay-9')`, check: "owner", severity: Note, text: "others deliver the table's events: relay-9 owns slot other", byHand: `UPDATE saga_outbox_relay SET released_at = now()`},
		{name: "SlotOfTheSetBefore", min: 15, provoke: switched + `100 years'); ` + running, config: inTwo, check: "other slots", severity: Note, text: "until just now", byHand: `SELECT pg_drop_replication_slot('%slot')`},
		{name: "SlotOfTheSetBeforeForLong", min: 15, provoke: switched + `100 years' - interval '3 minutes'); ` + running, config: inTwo, check: "other slots", severity: Degraded, text: "another number of slots than 2"},
		{name: "SlotOfTheSetBeforeWithoutRelay", min: 15, provoke: switched + `100 years')`, config: inTwo, check: "other slots", severity: Degraded, text: "another number of slots than 2"},
		{name: "NumberWhileItIsChanged", min: 15, provoke: `INSERT INTO saga_outbox_set (slot, publication, shards, target, state) VALUES ('%slot', 'sagaz_outbox', 2, 4, 'making')`, check: "slots", severity: Note, text: "RELAY_SHARDS is 1, and the table is divided among 2, soon among 4", settings: func(c *Config) { c.Set.Shards = 4 }},
		{name: "EntriesOfAnotherSet", min: 15, provoke: `INSERT INTO saga_outbox_set (slot, publication, shards) VALUES ('%slot', 'sagaz_outbox', 2); ` + entry("kafka", "%slot_2of3", "held"), config: inTwo, check: "ledger", severity: Degraded, text: "which is not one of this table's"},
		{name: "PublicationOfUpdates", provoke: `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox`, check: "publication", severity: Note, text: "publishes updates"},
		{name: "SlotPlugin", provoke: `SELECT pg_create_logical_replication_slot('%slot', 'test_decoding')`, check: "slot", severity: Degraded, text: "was made for plugin test_decoding", byHand: `SELECT pg_drop_replication_slot('%slot')`},
		{name: "SlotPhysical", provoke: `SELECT pg_create_physical_replication_slot('%slot')`, check: "slot", severity: Degraded, text: "is a physical slot", byHand: `SELECT pg_drop_replication_slot('%slot')`},
		{name: "SlotInPolling", provoke: `SELECT pg_create_logical_replication_slot('%slot', 'pgoutput')`, config: func(c *Config) { c.Mode = relay.ModePolling }, check: "slot", severity: Degraded, text: "RELAY_MODE=polling never reads it"},
		{name: "SlotBehind", provoke: `SELECT pg_create_logical_replication_slot('%slot', 'pgoutput'); SELECT pg_switch_wal()`, config: func(c *Config) { c.RetainedTooMuch = 1 << 10 }, check: "slot", severity: Degraded, text: "holds back"},
		{name: "SlotUnread", provoke: `SELECT pg_create_logical_replication_slot('%slot', 'pgoutput'); INSERT INTO saga_outbox_relay (slot, epoch, owner) VALUES ('%slot', 1, 'relay-1')`, check: "slot", severity: Degraded, text: "it is not read, though a relay runs", byHand: `UPDATE saga_outbox_relay SET released_at = now()`},
		{name: "SlotMissing", provoke: `INSERT INTO saga_outbox_relay (slot, epoch, owner) VALUES ('%slot', 1, 'relay-1')`, check: "slot", severity: Degraded, text: "not there, though a relay runs", byHand: `SELECT pg_create_logical_replication_slot('%slot', 'pgoutput')`},
		{name: "SlotLeftBehind", provoke: `SELECT pg_create_logical_replication_slot('%slot_old', 'pgoutput'); INSERT INTO saga_outbox_relay (slot, epoch, owner, released_at) VALUES ('%slot_old', 1, 'relay-1', now())`, check: "other slots", severity: Degraded, text: "was a relay's"},
		{name: "Owner", provoke: `SELECT 1`, check: "owner", severity: Note, text: "no relay is running", byHand: `INSERT INTO saga_outbox_relay (slot, epoch, owner) VALUES ('%slot', 1, 'relay-1')`},
		{name: "Indexes", empty: true, provoke: "library", check: "indexes", severity: Note, text: "idx_outbox_claimed_at, idx_outbox_pending"},
		{name: "OwnIndex", provoke: `CREATE INDEX by_day ON saga_outbox (date(sent_at AT TIME ZONE 'UTC'), saga_id)`, check: "indexes", severity: Note, text: "by_day"},
		{name: "Pages", empty: true, provoke: "library", check: "pages", severity: Note, text: "filled to 100 %"},
		{name: "FullerPages", provoke: `ALTER TABLE saga_outbox SET (fillfactor = 80)`, check: "pages", severity: Note, text: "filled to 80 %"},
		{name: "SweepIndex", min: 16, provoke: `DROP INDEX IF EXISTS saga_outbox_status; ` + row + `(gen_random_uuid(), 's', 'k', 'T', '{}', 'sent', now(), NULL, 0); INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, status)
			SELECT gen_random_uuid(), 's', 'k', 'T', '{}', 'sent' FROM generate_series(1, 50001); ANALYZE saga_outbox`, check: "sweep", severity: Note, text: "no index on status"},
		{name: "Autovacuum", provoke: `ALTER TABLE saga_outbox SET (autovacuum_enabled = false)`, check: "vacuum", severity: Degraded, text: "switched off for public.saga_outbox"},
		{name: "Origin", min: 16, role: "REPLICATION", provoke: ours, check: "origin", severity: Note, text: "may not use replication origins"},
		{name: "Unlogged", provoke: `ALTER TABLE saga_outbox SET UNLOGGED`, check: "publication", severity: Degraded, text: "unlogged"},
		{name: "RowSecurity", role: "REPLICATION", provoke: ours + `; ALTER TABLE saga_outbox ENABLE ROW LEVEL SECURITY`, check: "row security", severity: Broken, text: "hides rows of saga_outbox from"},
		{name: "Trigger", provoke: `CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER "Touch" BEFORE UPDATE ON saga_outbox FOR EACH ROW EXECUTE FUNCTION touch();
			CREATE TRIGGER "At inserts" BEFORE INSERT ON saga_outbox FOR EACH ROW EXECUTE FUNCTION touch()`, check: "saga_outbox", severity: Note, text: `triggers run at every update: "Touch"`},
		{name: "SearchPath", provoke: `CREATE TABLE audit (id uuid); CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO audit VALUES (NEW.event_id); RETURN NEW; END';
			CREATE TRIGGER note_it BEFORE UPDATE ON saga_outbox FOR EACH ROW EXECUTE FUNCTION note_it()`, check: "search_path", severity: Note, text: "not pinned, for the sake of public.note_it()"},
		{name: "View", provoke: `ALTER TABLE saga_outbox RENAME TO real_outbox; CREATE VIEW saga_outbox AS SELECT * FROM real_outbox`, check: "tables", severity: Broken, text: "saga_outbox is no table", byHand: `DROP VIEW saga_outbox; ALTER TABLE real_outbox RENAME TO saga_outbox`},
		{name: "OldPending", provoke: row + `(gen_random_uuid(), 's', 'k', 'T', '{}', 'pending', now() - interval '1 hour', NULL, 0)`, check: "rows", severity: Degraded, text: "the oldest pending one is 1h0m", byHand: `UPDATE saga_outbox SET status = 'sent'`},
		{name: "StuckClaims", provoke: row + `(gen_random_uuid(), 's', 'k', 'T', '{}', 'claimed', now(), now() - interval '6 minutes', 0), (gen_random_uuid(), 's', 'k', 'T', '{}', 'claimed', now(), now(), 0)`, check: "rows", severity: Degraded, text: "1 have been claimed"},
		{name: "LibraryDead", provoke: row + `(gen_random_uuid(), 's', 'k', 'T', '{}', 'dead_letter', now(), NULL, 5)`, check: "rows", severity: Degraded, text: "1 dead letter without", byHand: `UPDATE saga_outbox SET last_error = 'discarded: x'`},
		{name: "LibraryFailed", provoke: row + `(gen_random_uuid(), 's', 'k', 'T', '{}', 'failed', now(), NULL, 1)`, check: "rows", severity: Note, text: "1 failed without", byHand: `UPDATE saga_outbox SET status = 'pending'`},
		{name: "Unmarked", provoke: entry("saga_outbox", "%slot", "retry"), check: "ledger", severity: Degraded, text: "1 delivered row of slot", byHand: `DELETE FROM saga_outbox_delivery`},
		{name: "Dead", provoke: entry("kafka", "%slot", "dead"), check: "ledger", severity: Degraded, text: "1 dead letter of sink kafka", byHand: `UPDATE saga_outbox_delivery SET state = 'retry', discarded = true`},
		{name: "StrangeSink", provoke: entry("rabbitmq", "%slot", "held"), check: "ledger", severity: Degraded, text: "sink rabbitmq, which BROKER_TYPE does not name", settings: func(c *Config) { c.SinkNames = append(c.SinkNames, "rabbitmq") }},
		{
			name: "OtherBroker", provoke: `INSERT INTO saga_outbox_relay (slot, epoch, owner, sinks) VALUES ('%slot', 1, '', 'rabbitmq') ON CONFLICT (slot) DO UPDATE SET epoch = 1, sinks = 'rabbitmq'`,
			config: func(c *Config) { c.ByDefault = &relay.SinksByDefault{} }, check: "broker", severity: Broken, text: "delivered to rabbitmq", settings: func(c *Config) { c.ByDefault = nil },
		},
		{name: "StrangeSlot", provoke: entry("kafka", "%slot_old", "held"), check: "ledger", severity: Degraded, text: "which is not one of this table's"},
		{name: "Clock", provoke: `SELECT 1`, config: func(c *Config) { c.Now = func() time.Time { return time.Now().Add(-time.Minute) } }, check: "clock", severity: Degraded, text: "ahead of this host's", settings: func(c *Config) { c.Now = time.Now }},
		{name: "SinkDown", provoke: `SELECT 1`, config: func(c *Config) { c.Sinks = []relay.Sink{sink{down: errors.New("dial kafka:9092: refused")}} }, check: "sink kafka", severity: Broken, text: "refused", settings: func(c *Config) { c.Sinks = []relay.Sink{sink{}} }},
		{name: "Routes", provoke: row + `(gen_random_uuid(), 's', 'k', 'OrderPlaced', '{}', 'sent', now(), NULL, 0)`, config: func(c *Config) {
			c.Sinks = []relay.Sink{sink{problems: []relay.RouteProblem{{Route: relay.Route{EventType: "OrderPlaced"}, Problem: "no topic", Fix: "make it"}}}}
		}, check: "routes kafka", severity: Degraded, text: "OrderPlaced: no topic", settings: func(c *Config) { c.Sinks = []relay.Sink{sink{}} }},
		{name: "RoutesNote", provoke: row + `(gen_random_uuid(), 's', 'k', 'OrderPlaced', '{}', 'sent', now(), NULL, 0)`, config: func(c *Config) {
			c.Sinks = []relay.Sink{sink{problems: []relay.RouteProblem{{Route: relay.Route{EventType: "OrderPlaced"}, Problem: "the user may not read it", Fix: "grant it", Note: "Sent again."}}}}
		}, check: "routes kafka", severity: Note, text: "OrderPlaced: the user may not read it", settings: func(c *Config) { c.Sinks = []relay.Sink{sink{}} }},
		{name: "RoutesHalfKnown", provoke: row + `(gen_random_uuid(), 's', 'k', 'OrderPlaced', '{}', 'sent', now(), NULL, 0)`, config: func(c *Config) {
			c.Sinks = []relay.Sink{sink{unknown: errors.New("bindings cannot be asked for"), problems: []relay.RouteProblem{{Problem: "no exchange", Fix: "make it"}}}}
		}, check: "routes kafka", severity: Degraded, text: "no exchange", settings: func(c *Config) { c.Sinks = []relay.Sink{sink{}} }},
		{name: "RoutesUnknown", provoke: row + `(gen_random_uuid(), 's', 'k', 'OrderPlaced', '{}', 'sent', now(), NULL, 0)`, config: func(c *Config) { c.Sinks = []relay.Sink{sink{unknown: errors.New("not authorized")}} }, check: "routes kafka", severity: Unknown, text: "not authorized", settings: func(c *Config) { c.Sinks = []relay.Sink{sink{}} }},
	} {
		for _, version := range pgtest.Versions() {
			if major, err := strconv.Atoi(version); err != nil || major < tt.min {
				continue // that server cannot do it
			}
			if version != pgtest.Version() && !slices.Contains(differing, tt.check) {
				continue // asked in the same way of every version
			}
			t.Run(tt.name+"/"+version, func(t *testing.T) {
				t.Parallel()
				var opts []pgtest.Option
				if !tt.empty {
					opts = append(opts, pgtest.Migrated())
				}
				db := pgtest.NewVersion(t, version, opts...)
				cfg := configFor(t, db.DSN)
				fill := func(s string) string { return strings.ReplaceAll(s, "%slot", cfg.Set.Slot) }
				if tt.role != "" {
					role, _, dsn := db.Role(t, strings.ReplaceAll(tt.role, "NONE", ""))
					cfg.DatabaseURL = dsn
					fill = func(s string) string {
						return strings.ReplaceAll(strings.ReplaceAll(s, "%slot", cfg.Set.Slot), "%role", role)
					}
				}
				if tt.provoke == "library" {
					schema, err := os.ReadFile(library[0])
					if err != nil {
						t.Fatal(err)
					}
					exec(t, db.DSN, string(schema))
				} else if tt.provoke != "" {
					exec(t, db.DSN, fill(tt.provoke))
				}
				if tt.config != nil {
					tt.config(&cfg)
				}
				report := Examine(t.Context(), cfg, nil)
				f := report.finding(tt.check, tt.severity, tt.text)
				if f == nil {
					t.Fatalf("not found: %s %s %q in\n%s", tt.severity, tt.check, tt.text, show(report))
				}
				if f.Why == "" && f.Severity > Unknown || len(f.Fix) == 0 && f.Severity > Unknown {
					t.Errorf("it does not say why it matters, or how to fix it: %+v", *f)
				}
				agree(t, cfg, report)
				applyFix(t, db.DSN, f)
				if tt.byHand != "" {
					exec(t, db.DSN, fill(tt.byHand))
				}
				if tt.settings != nil {
					tt.settings(&cfg)
				}
				after := Examine(t.Context(), cfg, nil)
				if after.finding(tt.check, tt.severity, tt.text) != nil {
					t.Errorf("fixed by %+v, it is still there:\n%s", f.Fix, show(after))
				}
				agree(t, cfg, after)
			})
		}
	}
}

func entry(sink, slot, state string) string {
	return `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state)
		VALUES (gen_random_uuid(), '` + sink + `', '` + slot + `', 1, 'k', 1, 'T', '` + state + `')`
}

// A database as it should be, for a role that owns nothing: nothing is worse than a note, and no
// check is missing.
func TestHealthy(t *testing.T) {
	for _, version := range pgtest.Versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, version, pgtest.Migrated())
			role, _, dsn := db.Role(t, "REPLICATION")
			cfg := configFor(t, dsn)
			exec(t, db.DSN, strings.ReplaceAll(ours, "%role", role), row+`(gen_random_uuid(), 's-1', 'k-1', 'OrderPlaced', '{}', 'sent', now(), NULL, 0), (gen_random_uuid(), 's-2', 'k-2', 'OrderPlaced', '{}', 'sent', now(), NULL, 0)`)
			var asked []relay.Route
			cfg.Sinks = []relay.Sink{sink{asked: &asked}}
			report := Examine(t.Context(), cfg, nil)
			if report.Worst() > Note {
				t.Errorf("the worst is %s in\n%s", report.Worst(), show(report))
			}
			var checks []string
			for _, f := range report.Findings {
				checks = append(checks, f.Check)
			}
			for _, want := range []string{
				"database", "clock", "pooler", "wal_level", "replication", "slots free", "walsenders", "slot WAL limit", "tables", "columns", "rights", "row security", "statements", "migrations", "saga_outbox", "search_path",
				"publication", "owner", "slot", "other slots", "indexes", "pages", "sweep", "vacuum", "rows", "ledger", "sink kafka", "routes kafka",
			} {
				if !strings.Contains("|"+strings.Join(checks, "|")+"|", "|"+want+"|") {
					t.Errorf("check %q is missing among %q", want, checks)
				}
			}
			if len(asked) != 1 || asked[0] != (relay.Route{EventType: "OrderPlaced", Topic: "OrderPlaced", RoutingKey: "OrderPlaced"}) {
				t.Errorf("asked for %+v, want one destination", asked)
			}
			sum := 0
			for _, n := range report.Counts {
				sum += n
			}
			if sum != len(report.Findings) || len(report.Counts) != 5 {
				t.Errorf("counts %v for %d findings", report.Counts, len(report.Findings))
			}
		})
	}
}

// Nothing to reach: what can be found out without a database is reported, and the rest is unknown.
func TestNothingWorks(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	u, err := url.Parse(db.DSN)
	if err != nil {
		t.Fatal("the DSN is not a URL")
	}
	password := *u
	password.User = url.UserPassword("nobody_knows_me", "s3cr3tword")
	database := *u
	database.Path = "/nowhere"
	away := *u
	away.Host = "127.0.0.1:1"
	for name, dsn := range map[string]string{"Role": password.String(), "Database": database.String(), "Away": away.String()} {
		cfg := configFor(t, dsn)
		cfg.Sinks = []relay.Sink{sink{down: errors.New("dial kafka:9092: refused")}}
		report := Examine(t.Context(), cfg, []error{errors.New("RELAY_LANES=0: want at least 1")})
		for _, check := range []string{"settings", "database", "sink kafka"} {
			if f := report.finding(check, Broken, ""); f == nil || len(f.Fix) == 0 {
				t.Errorf("%s: nothing about %s in\n%s", name, check, show(report))
			}
		}
		if report.finding("tables", Unknown, "") == nil || report.Worst() != Broken || strings.Contains(show(report), "s3cr3tword") {
			t.Errorf("%s:\n%s", name, show(report))
		}
	}
}

// A check that took too long costs the connection, not those behind it.
func TestEachReconnects(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	ex := &exam{cfg: configFor(t, db.DSN), report: &Report{}}
	ex.each(t.Context(), ex.checkDatabase)
	late, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	var nothing string
	if ex.ask(late, "late", `SELECT pg_sleep(60)::text`, nil, &nothing) || ex.report.finding("late", Unknown, "could not be found out") == nil {
		t.Fatalf("a check that took too long: %s", show(ex.report))
	}
	ex.each(t.Context(), ex.checkWALLevel)
	if ex.report.finding("wal_level", OK, "logical") == nil {
		t.Errorf("the next one:\n%s", show(ex.report))
	}
	if err := ex.conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// Many event types with one problem are one finding, which does not run over.
func TestGrouped(t *testing.T) {
	var problems []relay.RouteProblem
	for _, name := range []string{"A", "B", "C", "C", "D", "E", "F", "G"} {
		problems = append(problems, relay.RouteProblem{Route: relay.Route{EventType: name}, Problem: "no exchange", Fix: "bind " + name})
	}
	problems = append(problems, relay.RouteProblem{Route: relay.Route{EventType: "B"}, Problem: "not allowed"})
	got := grouped("routes kafka", problems)
	if len(got) != 2 || got[0].Summary != "A, B, C, D, E and 2 more: no exchange" || got[1].Summary != "B: not allowed" || len(got[1].Fix) != 0 {
		t.Errorf("got %+v", got)
	}
	if fix := got[0].Fix; len(fix) != 6 || fix[4].Do != "bind E" || fix[5].Do != "and so on for 2 more" {
		t.Errorf("got %+v", fix)
	}
}

// A slot under our name that is another database's is left alone, by every check: nothing of a
// neighbour's is advised away.
func TestNeighboursSlot(t *testing.T) {
	t.Parallel()
	db, neighbour := pgtest.New(t, pgtest.Migrated()), pgtest.New(t)
	cfg := configFor(t, db.DSN)
	exec(t, neighbour.DSN, `SELECT pg_create_logical_replication_slot('`+cfg.Set.Slot+`', 'pgoutput')`)
	exec(t, db.DSN, `INSERT INTO saga_outbox_relay (slot, epoch, owner) VALUES ('`+cfg.Set.Slot+`', 1, 'relay-1')`)
	cfg.RetainedTooMuch = 0
	for _, mode := range []string{relay.ModeAuto, relay.ModeCDC, relay.ModePolling} {
		cfg.Mode = mode
		report := Examine(t.Context(), cfg, nil)
		if mode != relay.ModePolling && report.finding("slot", map[string]Severity{relay.ModeAuto: Degraded, relay.ModeCDC: Broken}[mode], `belongs to database "`+neighbour.Name+`"`) == nil {
			t.Errorf("%s: the neighbour is not named in\n%s", mode, show(report))
		}
		for i := range report.Findings {
			for _, step := range report.Findings[i].Fix {
				if text := step.SQL + step.Do + step.Run; strings.Contains(text, "drop") && strings.Contains(text, cfg.Set.Slot) {
					t.Errorf("%s: %q would drop the neighbour's slot", mode, text)
				}
			}
		}
	}
}
