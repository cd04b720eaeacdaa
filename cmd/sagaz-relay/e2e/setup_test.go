package e2e

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// fails runs "sagaz-relay run" with settings that cannot work, and wants exit code 2 and the words
// in its last message.
func (w *world) fails(t *testing.T, env settings, words ...string) {
	t.Helper()
	here := *w
	here.t = t
	p := launch(t, program.Path(t), "relay", here.env().with(settings{"BROKER_TYPE": "stdout", "RELAY_MODE": "cdc"}).with(env), here.secrets(), "run")
	p.asked = true
	code := p.end(patience)
	text := p.stderr.String()
	at := strings.LastIndex(text, "sagaz-relay: ")
	if at < 0 {
		t.Fatalf("exit code %d, and no message:\n%s", code, text)
	}
	message := text[at:]
	t.Logf("%s", strings.TrimSpace(message))
	if code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	seen := make(map[string]bool)
	for l := range strings.Lines(message) {
		if seen[l] {
			t.Errorf("the message has the same twice: %s", l)
		}
		seen[l] = true
	}
	for _, word := range words {
		if !strings.Contains(message, word) {
			t.Errorf("the message does not name %q:\n%s", word, message)
		}
	}
}

// What a person has to fix is reported at once: the name that the person typed or the object that
// is wrong, and what to do. The exit code is 2, and the password stays out of it.
func TestSettings(t *testing.T) {
	t.Parallel()
	w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	elsewhere := func(change func(*url.URL)) string {
		u, err := url.Parse(w.url)
		if err != nil {
			t.Fatal("the URL is none")
		}
		change(u)
		return u.String()
	}
	for _, c := range []struct {
		name  string
		env   settings
		words []string
	}{
		{"no DATABASE_URL", settings{"DATABASE_URL": ""}, []string{"DATABASE_URL", "not set", "postgresql://"}},
		{"malformed DATABASE_URL", settings{"DATABASE_URL": "postgresql://relay:" + w.password + "@[::1:x/db"}, []string{"DATABASE_URL", "the host is no name", "percent-encoded"}},
		{"DATABASE_URL with an odd port", settings{"DATABASE_URL": "postgresql://relay:" + w.password + "@localhost:port/db"}, []string{"DATABASE_URL", "no port", "1 to 65535"}},
		{"password with a reserved character", settings{"DATABASE_URL": "postgresql://relay:" + w.password + "%zz@localhost/db"}, []string{"DATABASE_URL"}},
		{"unescaped / in the password", settings{"DATABASE_URL": "postgresql://relay:" + w.password + "/x@localhost/db"}, []string{"DATABASE_URL", "percent-encoded", "/ as %2F"}},
		{"unescaped @ in the password", settings{"DATABASE_URL": "postgresql://relay:x@" + w.password + "@localhost/db"}, []string{"DATABASE_URL", "%40"}},
		{"DATABASE_URL in words", settings{"DATABASE_URL": "host=localhost password=" + w.password + " 'x"}, []string{"DATABASE_URL"}},
		{"an option that is not there", settings{"DATABASE_URL": "postgresql://relay:" + w.password + "@localhost/db?sslmode=perhaps"}, []string{"DATABASE_URL"}},
		{"DATABASE_URL of another kind", settings{"DATABASE_URL": "mysql://relay:" + w.password + "@localhost/db"}, []string{"DATABASE_URL", "postgresql://"}},
		{"DATABASE_URL that lost its beginning", settings{"DATABASE_URL": "//relay:" + w.password + "@localhost/db?sslmode=disable"}, []string{"DATABASE_URL", "postgresql://"}},
		{"wrong password", settings{"DATABASE_URL": elsewhere(func(u *url.URL) { u.User = url.UserPassword(w.role, "wrong-"+w.password) })}, []string{"DATABASE_URL", "password", w.role}},
		{"no such role", settings{"DATABASE_URL": elsewhere(func(u *url.URL) { u.User = url.UserPassword("nobody", w.password) })}, []string{"DATABASE_URL", "nobody"}},
		{"no such database", settings{"DATABASE_URL": elsewhere(func(u *url.URL) { u.Path = "/nowhere" })}, []string{"DATABASE_URL", "nowhere", "create it"}},
		{"not migrated", nil, []string{"saga_outbox", "sagaz-relay migrate"}},
		{"unknown broker", settings{"BROKER_TYPE": "kafak"}, []string{"BROKER_TYPE=kafak", "kafka, rabbitmq, file, stdout"}},
		{"broker twice", settings{"BROKER_TYPE": "stdout,stdout"}, []string{"BROKER_TYPE", "stdout", "twice"}},
		{"kafka without address", settings{"BROKER_TYPE": "kafka"}, []string{"KAFKA_BOOTSTRAP_SERVERS", "BROKER_URL", "host:port"}},
		{"rabbitmq with an address of another kind", settings{"BROKER_TYPE": "rabbitmq", "RABBITMQ_URL": "http://u:" + w.password + "@localhost"}, []string{"RABBITMQ_URL", "amqp://"}},
		{"unknown variable", settings{"RELAY_LEASE_TLL": "5s"}, []string{"RELAY_LEASE_TLL", "did you mean RELAY_LEASE_TTL?"}},
		{"two names, two values", settings{"MAX_RETRIES": "3", "MAX_RETRY_ATTEMPTS": "4"}, []string{"MAX_RETRIES", "MAX_RETRY_ATTEMPTS"}},
		{"no number", settings{"BATCH_SIZE": "many"}, []string{"BATCH_SIZE=many", "whole number"}},
		{"no duration", settings{"RELAY_LEASE_TTL": "soon"}, []string{"RELAY_LEASE_TTL=soon", "5s"}},
		{"limits that do not go together", settings{"RELAY_STATUS_INTERVAL": "5s", "RELAY_BACKOFF_MAX": "1ms"}, []string{"RELAY_STATUS_INTERVAL=5s", "RELAY_WAL_SENDER_TIMEOUT", "RELAY_BACKOFF_MAX"}},
		{"no log level", settings{"LOG_LEVEL": "loud"}, []string{"LOG_LEVEL=loud", "DEBUG, INFO, WARNING or ERROR"}},
		{"port in use", settings{"RELAY_HTTP_ADDR": "", "METRICS_PORT": port}, []string{"METRICS_PORT", port, "in use"}},
		{"address in use", settings{"RELAY_HTTP_ADDR": "127.0.0.1:" + port}, []string{"RELAY_HTTP_ADDR", port, "in use"}},
		{"port that is none", settings{"RELAY_HTTP_ADDR": "", "METRICS_PORT": "80000"}, []string{"METRICS_PORT=80000"}},
		{"value and file", settings{"DATABASE_URL_FILE": "/nowhere"}, []string{"DATABASE_URL", "DATABASE_URL_FILE"}},
		{"file that is not there", settings{"DATABASE_URL": "", "DATABASE_URL_FILE": "/nowhere"}, []string{"DATABASE_URL_FILE", "no such file"}},
		{"no sampler", settings{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_TRACES_SAMPLER": "always"}, []string{"OTEL_TRACES_SAMPLER=always", "parentbased_always_on"}},
		{"no collector's address", settings{"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://host:4318"}},
		{"password in the collector's address", settings{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:" + w.password + "@localhost:4318"}, []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS"}},
		{"header of the collector", settings{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_EXPORTER_OTLP_HEADERS": w.password}, []string{"OTEL_EXPORTER_OTLP_HEADERS", "name=value"}},
		{"timeout of the collector", settings{"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, []string{"OTEL_EXPORTER_OTLP_TIMEOUT=10s", "whole number"}},
		{"no slot's name", settings{"RELAY_SLOT": "Not A Slot"}, []string{"RELAY_SLOT=Not A Slot", "a-z"}},
	} {
		t.Run(c.name, func(t *testing.T) { w.fails(t, c.env, c.words...) })
	}
}

// A slot, a table or a publication that is not what it should be, and rights that are missing.
func TestObjects(t *testing.T) {
	t.Parallel()
	superuser := pgtest.Server(t, pgtest.Version())
	w := newWorldAt(t, superuser)
	w.exec(`ALTER ROLE ` + w.role + ` NOREPLICATION`)
	t.Run("role without REPLICATION", func(t *testing.T) { w.fails(t, nil, w.role, "ALTER ROLE", "REPLICATION") })
	w.exec(`ALTER ROLE ` + w.role + ` REPLICATION`)

	t.Run("slot of another plugin", func(t *testing.T) {
		w.exec(`SELECT pg_create_logical_replication_slot($1, 'test_decoding')`, w.slot+"_x")
		w.fails(t, settings{"RELAY_SLOT": w.slot + "_x"}, w.slot+"_x", "test_decoding", "RELAY_SLOT", "leave that slot alone")
	})
	t.Run("physical slot", func(t *testing.T) {
		w.exec(`SELECT pg_create_physical_replication_slot($1)`, w.slot+"_p")
		defer w.exec(`SELECT pg_drop_replication_slot($1)`, w.slot+"_p")
		w.fails(t, settings{"RELAY_SLOT": w.slot + "_p"}, w.slot+"_p", "physical", "RELAY_SLOT")
	})
	t.Run("slot of another database", func(t *testing.T) {
		other := newWorldAt(t, superuser)
		w.fails(t, settings{"RELAY_SLOT": other.slot}, other.slot, other.db.Name, "RELAY_SLOT")
	})
	t.Run("publication without inserts", func(t *testing.T) {
		w.exec(`CREATE PUBLICATION no_inserts FOR TABLE saga_outbox WITH (publish = 'update')`)
		w.fails(t, settings{"RELAY_PUBLICATION": "no_inserts"}, "no_inserts", "ALTER PUBLICATION", "insert")
	})
	t.Run("publication without the table", func(t *testing.T) {
		w.exec(`CREATE PUBLICATION no_table WITH (publish = 'insert')`)
		w.fails(t, settings{"RELAY_PUBLICATION": "no_table"}, "no_table", "ADD TABLE", "saga_outbox")
	})
	t.Run("no right to mark", func(t *testing.T) {
		w.exec(fmt.Sprintf(`CREATE ROLE %s_r LOGIN REPLICATION PASSWORD '%s'`, w.role, w.password))
		defer w.exec(fmt.Sprintf(`DROP OWNED BY %[1]s_r; DROP ROLE %[1]s_r`, w.role))
		w.exec(fmt.Sprintf(`GRANT SELECT ON saga_outbox TO %s_r`, w.role))
		w.fails(t, settings{"DATABASE_URL": strings.Replace(w.url, w.role+":", w.role+"_r:", 1)}, w.role+"_r", "GRANT", "UPDATE", "saga_outbox")
	})
	t.Run("no right for a retention", func(t *testing.T) {
		w.exec(fmt.Sprintf(`CREATE ROLE %s_d LOGIN REPLICATION PASSWORD '%s'`, w.role, w.password))
		defer w.exec(fmt.Sprintf(`DROP OWNED BY %[1]s_d; DROP ROLE %[1]s_d`, w.role))
		w.exec(fmt.Sprintf(`GRANT SELECT, UPDATE ON saga_outbox TO %[1]s_d; GRANT SELECT, INSERT, UPDATE ON saga_outbox_relay, saga_outbox_set TO %[1]s_d;
			GRANT SELECT, INSERT, UPDATE, DELETE ON saga_outbox_delivery TO %[1]s_d`, w.role))
		url := strings.Replace(w.url, w.role+":", w.role+"_d:", 1)
		w.fails(t, settings{"DATABASE_URL": url, "RELAY_RETENTION": "1h"}, "lacks DELETE on saga_outbox;", "GRANT DELETE")
		w.fails(t, settings{"DATABASE_URL": url, "RELAY_RETENTION": "1h", "RELAY_RETENTION_ACTION": "archive"}, "DELETE on saga_outbox;", "INSERT, UPDATE on saga_outbox_archive")
	})
	t.Run("table of somebody else", func(t *testing.T) {
		w.exec(fmt.Sprintf(`CREATE ROLE %s_o LOGIN REPLICATION PASSWORD '%s'`, w.role, w.password))
		defer w.exec(fmt.Sprintf(`DROP OWNED BY %[1]s_o; DROP ROLE %[1]s_o`, w.role))
		w.exec(fmt.Sprintf(`GRANT SELECT, UPDATE, DELETE ON saga_outbox TO %[1]s_o; GRANT SELECT, INSERT ON saga_outbox_archive TO %[1]s_o;
			GRANT SELECT, INSERT, UPDATE ON saga_outbox_relay, saga_outbox_set TO %[1]s_o;
			GRANT SELECT, INSERT, UPDATE, DELETE ON saga_outbox_delivery TO %[1]s_o`, w.role))
		theirs := strings.Replace(w.url, w.role+":", w.role+"_o:", 1)
		w.fails(t, settings{"DATABASE_URL": theirs, "RELAY_PUBLICATION": "not_there", "RELAY_SLOT": w.slot + "_o"}, "not_there", "saga_outbox", "CREATE PUBLICATION", w.role)

		// With the publication there, the rights that the message of another test names are enough.
		here := *w
		here.t = t
		p := here.relay("relay", settings{"DATABASE_URL": theirs, "BROKER_TYPE": "stdout"})
		p.waitStreaming()
		id := here.insert(row{key: "k", topic: "T"})[0]
		here.waitNonePending(p)
		if status, _ := here.fate(id); status != "sent" {
			t.Errorf("the row is %s, want sent", status)
		}
		p.stop()
		here.waitGone()
	})
	t.Run("column missing", func(t *testing.T) {
		w.exec(`DROP PUBLICATION sagaz_outbox; ALTER TABLE saga_outbox RENAME headers TO meta`)
		w.fails(t, nil, "saga_outbox", "headers")
		w.exec(`ALTER TABLE saga_outbox RENAME meta TO headers`)
	})
	t.Run("table of the relay missing", func(t *testing.T) {
		w.exec(`DROP TABLE saga_outbox_relay`)
		w.fails(t, nil, "saga_outbox_relay", "sagaz-relay migrate")
	})
}

// Without wal_level = logical there is nothing to stream, and with all slots taken no place to
// stream from.
func TestServerSettings(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), map[string]string{"max_replication_slots": "1"})
	w := bareWorldAt(t, server.DSN("postgres"))
	w.migrate()
	t.Run("no free slot", func(t *testing.T) {
		w.exec(`SELECT pg_create_physical_replication_slot('taken')`)
		w.fails(t, nil, w.slot, "max_replication_slots", "pg_replication_slots")
		w.exec(`SELECT pg_drop_replication_slot('taken')`)
	})
	t.Run("wal_level", func(t *testing.T) {
		w.exec(`ALTER SYSTEM SET wal_level = 'replica'`)
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.fails(t, nil, "wal_level", "replica", "ALTER SYSTEM SET wal_level = 'logical'", "restart")
	})
}

// A broker's file that cannot be written is a transient error, as with any broker: the relay stays
// and tries again.
func TestFileNotWritable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.relay("relay", settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(t.TempDir(), "no", "such", "directory", "events.jsonl")})
	p.waitStreaming()
	w.insert(row{key: "k", topic: "T"})
	if text := p.waitLog("publish did not succeed").text("error"); !strings.Contains(text, "no/such/directory") {
		t.Errorf("the log does not name the file: %s", text)
	}
	p.healthy("with a sink that cannot write")
	p.crash()
}

// The relay waits for a slot that somebody else reads, and logs who that is.
func TestSlotInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := toStdout(t)
	stranger := w.holdSlot()
	p := w.relay("relay", d.env)
	busy := p.waitLog("waiting for the slot")
	if text := busy.text("error"); !strings.Contains(text, "stranger") || !strings.Contains(text, "pg_terminate_backend") {
		t.Errorf("the log does not show who reads the slot and what to do: %s", text)
	}
	id := w.insert(row{key: "k", topic: d.topic})[0]
	stranger()
	w.waitNonePending(p)
	if status, _ := w.fate(id); status != "sent" {
		t.Errorf("the row is %s", status)
	}
	p.stop()
}
