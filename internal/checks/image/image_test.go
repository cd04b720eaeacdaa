package image

import (
	"context"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/sinks/kafka"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if directory, err = os.MkdirTemp("", "sagaz-image-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(directory)
	return brokertest.Run(pgtest.Closing(m))
}

// What Kubernetes and people rely on.
func TestDockerfile(t *testing.T) {
	b := built(t)
	if b.base != "scratch" {
		t.Errorf("the image is made from %s, want scratch: no shell, no libc", b.base)
	}
	text := string(product.Read(t, "Dockerfile"))
	mod := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(product.Read(t, "go.mod"))
	for _, want := range []string{"ARG GO_VERSION=" + string(mod[1]) + "\n", "FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS build\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the Dockerfile has no %q: Go as in go.mod, and no emulation of the compiler", want)
		}
	}
	for what, c := range map[string]struct{ got, want any }{
		"USER":       {b.says["USER"], "1000:1000"},
		"STOPSIGNAL": {b.says["STOPSIGNAL"], "SIGTERM"},
		"ENTRYPOINT": {fmt.Sprint(b.entrypoint), "[sagaz-relay]"},
		"CMD":        {fmt.Sprint(b.args), "[run]"},
		"EXPOSE":     {b.says["EXPOSE"], product.Settings(t)["METRICS_PORT"].Default},
		"version":    {b.labels["org.opencontainers.image.version"], testVersion},
		"revision":   {b.labels["org.opencontainers.image.revision"], testRevision},
		"licenses":   {b.labels["org.opencontainers.image.licenses"], "Apache-2.0"},
	} {
		if c.got != c.want {
			t.Errorf("%s is %v, want %v", what, c.got, c.want)
		}
	}
}

// The image is small, and its program needs nothing of the machine.
func TestImage(t *testing.T) {
	b := built(t)
	size := int64(0)
	for _, name := range b.files(t) {
		info, err := os.Stat(filepath.Join(b.root, name))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 33_000_000 {
		t.Errorf("the image has %d bytes, want less than 33 MB", size)
	}
	if got, want := b.files(t), []string{"etc/ssl/certs/ca-certificates.crt", "usr/local/bin/sagaz-relay"}; !slices.Equal(got, want) {
		t.Errorf("the image holds %v, want %v", got, want)
	}
	path := filepath.Join(b.root, "usr/local/bin/sagaz-relay")
	file, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the program is not static: it has %s", p.Type)
		}
	}
}

// The image starts no PostgreSQL, and has nothing that downloads one. It says so, whatever the
// flags.
func TestNoDemo(t *testing.T) {
	for _, name := range []string{"demo", "bench"} {
		for _, flag := range []string{"--help", "--no-such-flag"} {
			text, code := built(t).run(t, nil, name, flag)
			if want := "sagaz-relay: this build has no " + name + ": run \"make " + name + "\" in the source"; code != 2 ||
				!strings.HasPrefix(text, want) || strings.Count(text, "\n") != 1 {
				t.Errorf("%s %s: exit code %d, %q: want 2 and the one line %q", name, flag, code, text, want)
			}
		}
	}
	if text, code := built(t).run(t, nil, "--help"); code != 0 || strings.Contains(text, "demo") || strings.Contains(text, "bench") {
		t.Errorf("--help: exit code %d: want 0, and neither demo nor bench:\n%s", code, text)
	}
}

// The life of a deployment: migrate, run until a row is in Kafka, look at it, stop. Nothing of it
// needs a shell, a file or root.
func TestDelivers(t *testing.T) {
	b := built(t)
	db := pgtest.New(t)
	role, _, dsn := db.Role(t, "REPLICATION")
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := db.Pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(fmt.Sprintf("ALTER DATABASE %q OWNER TO %s", db.Name, role))
	broker := brokertest.Kafka(t)
	env := map[string]string{"DATABASE_URL": dsn, "RELAY_SLOT": "image_" + strings.ToLower(role), "RELAY_HTTP_ADDR": "127.0.0.1:0", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext}
	with := func(more map[string]string) map[string]string {
		all := maps.Clone(env)
		maps.Copy(all, more)
		return all
	}

	if text, code := b.run(t, nil, "version"); code != 0 || !strings.HasPrefix(text, "sagaz-relay "+testVersion+" go") || !strings.Contains(text, testRevision) {
		t.Errorf("version: exit code %d, %q", code, text)
	}
	for range 2 {
		if text, code := b.run(t, env, "migrate", "--slot"); code != 0 {
			t.Fatalf("migrate: exit code %d: %s", code, text)
		}
	}
	insert := func(topic string) {
		t.Helper()
		exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload)
			VALUES (gen_random_uuid(), 'saga-1', 'order', 'order-42', $1, '{"total": 99.5}')`, topic)
	}
	topic := broker.Topic(t, 1)
	c := b.start(t, env)
	insert(topic)
	sent(t, db, topic)
	if got := read(t, broker.Plaintext, topic); len(got) != 1 || got[0].Key != "order-42" {
		t.Errorf("Kafka has %v, want one record with key order-42", got)
	}

	// What restricted Pod Security and readOnlyRootFilesystem ask for is so here.
	uid, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", c.pid))
	if err != nil || strings.Fields(string(uid))[0] != "1000" {
		t.Errorf("the relay's user is %q (%v), want 1000", uid, err)
	}
	for field, want := range map[string]string{"CapEff": "0000000000000000", "NoNewPrivs": "1"} {
		if got := c.process(field); got != want {
			t.Errorf("%s of the relay is %s, want %s", field, got, want)
		}
	}
	if pids := strings.Fields(c.process("NSpid")); pids[len(pids)-1] != "1" {
		t.Errorf("the relay is process %v, want 1", pids)
	}

	if text, code := b.run(t, env, "status"); code != 0 || !strings.Contains(text, "sent") || !strings.Contains(text, "pod-1") {
		t.Errorf("status: exit code %d: %s", code, text)
	}
	// Another test's slot that nobody reads degrades the server, and the server is shared.
	if text, code := b.run(t, env, "doctor"); code > 1 || !strings.Contains(text, "sink kafka      reachable") {
		t.Errorf("doctor: exit code %d: %s", code, text)
	}
	address := regexp.MustCompile(`"message":"serving metrics and health","address":"([^"]+)"`).FindStringSubmatch(c.String())
	if address == nil {
		t.Fatal("the log does not say where metrics are")
	}
	product.Eventually(t, "health says ready", func() string {
		if text, code := b.run(t, with(map[string]string{"RELAY_HTTP_ADDR": address[1]}), "health"); code != 0 {
			return "health: " + text
		}
		return ""
	})
	c.stop()

	t.Run("ReadOnly", func(t *testing.T) { // that the sandbox holds is checked too: a write is refused
		c := b.start(t, with(map[string]string{"BROKER_TYPE": "file", "RELAY_FILE_PATH": "/usr/local/bin/events.jsonl"}))
		insert(topic)
		product.Eventually(t, "the relay is refused to write", func() string {
			if text := c.String(); !strings.Contains(text, "read-only file system") {
				return "log: " + text
			}
			return ""
		})
		c.stop()
	})

	// The bundle that the image has is the one that is looked at: with the broker's authority in
	// it, the broker is trusted.
	t.Run("TLS", func(t *testing.T) {
		tls := with(map[string]string{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.SSL, "KAFKA_SECURITY_PROTOCOL": "SSL"})
		secure := broker.Topic(t, 1)
		insert(secure)
		trusting := *b
		trusting.root = t.TempDir()
		for _, name := range b.files(t) {
			if err := copyFile(filepath.Join(b.root, name), filepath.Join(trusting.root, name)); err != nil {
				t.Fatal(err)
			}
		}
		bundle := filepath.Join(trusting.root, "etc/ssl/certs/ca-certificates.crt")
		known, err := os.ReadFile(bundle)
		if err != nil {
			t.Fatal(err)
		}
		authority, err := os.ReadFile(broker.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bundle, slices.Concat(known, []byte("\n"), authority), 0o644); err != nil {
			t.Fatal(err)
		}
		c := trusting.start(t, tls)
		sent(t, db, secure)
		c.stop()
		if got := read(t, broker.Plaintext, secure); len(got) != 1 {
			t.Errorf("Kafka has %d records, want one", len(got))
		}
	})
}

// A missing setting ends the container at once, with a line that says what to do, which is also where
// `kubectl describe pod` finds it.
func TestMistakes(t *testing.T) {
	termination := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(termination, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	b := *built(t)
	b.mounts = map[string]string{"/dev/termination-log": termination}
	text, code := b.run(t, nil)
	if code != 2 || !strings.Contains(text, "DATABASE_URL") || !strings.Contains(text, "KAFKA_BOOTSTRAP_SERVERS") {
		t.Errorf("exit code %d, %s: want 2, and both settings that are missing", code, text)
	}
	if logged, err := os.ReadFile(termination); err != nil || "sagaz-relay: "+string(logged)+"\n" != text {
		t.Errorf("the termination log has %q (%v), want the message %q", logged, err, text)
	}
}

// sent waits until the one row for a topic says so.
func sent(t *testing.T, db *pgtest.DB, topic string) {
	t.Helper()
	product.Eventually(t, "the row is sent", func() string {
		var status string
		if err := db.Pool.QueryRow(t.Context(), `SELECT status FROM saga_outbox WHERE event_type = $1`, topic).Scan(&status); err != nil || status != "sent" {
			return fmt.Sprintf("it is %q (%v)", status, err)
		}
		return ""
	})
}

func read(t *testing.T, addr, topic string) (all []kafka.Stored) {
	t.Helper()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{addr}
	ctx, cancel := context.WithTimeout(t.Context(), product.Patience)
	defer cancel()
	err := kafka.ReadBack(ctx, cfg, []string{topic}, time.Time{}, func(s kafka.Stored) error { all = append(all, s); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return all
}
