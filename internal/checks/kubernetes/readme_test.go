package kubernetes

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// blocks are the fenced blocks of k8s/README.md in a language.
func blocks(t *testing.T, language string) (all []string) {
	t.Helper()
	fence := regexp.MustCompile("(?ms)^ *```" + language + "\n(.*?)^ *```$")
	for _, m := range fence.FindAllStringSubmatch(string(product.Read(t, "k8s/README.md")), -1) {
		all = append(all, m[1])
	}
	if len(all) == 0 {
		t.Fatalf("k8s/README.md has no block in %s", language)
	}
	return all
}

// TestReadmeCommands runs what the README runs in pods, in its order: the database's commands against a database, the worker's with the real
// program and the environment of its pod. SQL runs, too; files that are applied are there; and its manifest is one.
func TestReadmeCommands(t *testing.T) {
	t.Parallel()
	db := newDatabaseOf(t, "15", nil) // no newer than Debian's client
	dir := t.TempDir()
	secrets := example(t, db, "127.0.0.1:1")
	if out, err := db.script(t, "role.sh"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	migrate := migration(t)
	migrate.Containers[0].Args = append(migrate.Containers[0].Args, "--slot")

	command := regexp.MustCompile(`kubectl -n sagaz exec (?:-i |-it )?(postgresql-0|deploy/outbox-worker) -- ([^\x60\n]*)`)
	ran := make(map[string]int)
	for _, m := range command.FindAllStringSubmatch(string(product.Read(t, "k8s/README.md")), -1) {
		pod, line := m[1], m[2]
		ran[pod]++
		if ran[pod] == 1 || strings.Contains(line, "pg_drop_replication_slot") {
			if code := run(t, migrate, secrets, nil).exit(t); code != 0 {
				t.Fatalf("the migration ends with %d", code)
			}
		}
		if pod == "postgresql-0" {
			if out, err := db.inPod(t, dir, line); err != nil {
				t.Errorf("%s: %v\n%s", line, err, out)
			}
			continue
		}
		args := strings.Fields(line)
		if args[0] != "sagaz-relay" {
			t.Errorf("%s: the image has nothing but sagaz-relay", line)
			continue
		}
		spec := worker(t)
		spec.Containers[0].Args = args[1:]
		p := run(t, spec, secrets, map[string]string{"BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(dir, "events.jsonl")})
		if code := p.exit(t); code != 0 && (code != 1 || args[1] != "doctor") { // 1: nothing runs here, and it says so
			t.Errorf("%s ends with %d: %s", line, code, p.out)
		}
	}
	if ran["postgresql-0"] < 8 || ran["deploy/outbox-worker"] < 5 {
		t.Errorf("ran %v", ran)
	}

	conn, err := db.connect(t, db.DSN("saga_db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range blocks(t, "sql") {
		for _, statement := range strings.Split(strings.TrimSpace(sql), ";\n") {
			if rows, err := conn.Query(t.Context(), statement); err != nil {
				t.Errorf("%s: %v", statement, err)
			} else if rows.Close(); rows.Err() != nil {
				t.Errorf("%s: %v", statement, rows.Err())
			}
		}
	}

	applied := regexp.MustCompile(`kubectl (?:apply -[fk]|kustomize) ([\w/.-]+)`)
	for _, m := range applied.FindAllStringSubmatch(string(product.Read(t, "k8s/README.md")), -1) {
		if _, err := os.Stat(filepath.Join(product.Root(), m[1])); m[1] != "-" && err != nil {
			t.Errorf("%s: %v", m[0], err)
		}
	}
	for _, text := range blocks(t, "yaml") {
		if len(decode(t, "k8s/README.md", []byte(text))) == 0 {
			t.Errorf("no object: %s", text)
		}
	}
}

// TestReadmeQuickStart: the files come in the order that works, each exactly once, and none is forgotten.
func TestReadmeQuickStart(t *testing.T) {
	_, text, _ := strings.Cut(string(product.Read(t, "k8s/README.md")), "\n## Quick start\n")
	text, _, _ = strings.Cut(text, "\n### ")
	var order []string
	for _, m := range regexp.MustCompile(`(?m)^kubectl apply -f k8s/(\S+)$`).FindAllStringSubmatch(text, -1) {
		order = append(order, m[1])
	}
	want := "namespace.yaml postgresql.yaml migration-job.yaml configmap.yaml outbox-worker.yaml network-policies.yaml"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, name := range []string{"sagaz-db-credentials --from-literal=connection-string=", "sagaz-broker-credentials --from-literal=bootstrap-servers="} {
		if !strings.Contains(text, "create secret generic "+name) {
			t.Errorf("no secret %s", name)
		}
	}
}
