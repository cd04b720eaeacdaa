package kubernetes

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// TestReadmeCommands runs what the README runs in pods, in its order: the database's commands
// against a database, the worker's with the real program and the environment of its pod. Package
// docs looks at the rest of it.
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

	readme := string(product.Read(t, "k8s/README.md"))
	command := regexp.MustCompile(`kubectl -n sagaz exec (?:-i |-it )?(postgresql-0|deploy/outbox-worker) -- ([^\x60\n]*)`)
	ran := make(map[string]int)
	for _, m := range command.FindAllStringSubmatch(readme, -1) {
		pod, line := m[1], m[2]
		ran[pod]++
		if ran[pod] == 1 || strings.Contains(line, "pg_drop_replication_slot") {
			if code := run(t, migrate, secrets, nil).Exit(); code != 0 {
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
		if args[1] == "migrate" {
			spec.Containers[0].Args = append(args[1:], "--no-wait") // no pod runs here that would make the change
		}
		p := run(t, spec, secrets, map[string]string{"BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(dir, "events.jsonl")})
		if code := p.Exit(); code != 0 && (code != 1 || args[1] != "doctor") { // 1: nothing runs here, and it says so
			t.Errorf("%s ends with %d: %s", line, code, p)
		}
	}
	if ran["postgresql-0"] < 8 || ran["deploy/outbox-worker"] < 5 {
		t.Errorf("ran %v", ran)
	}

	// Removal is a Job that a line of the README makes of the migration's.
	line := regexp.MustCompile(`(?m)^(sed .*uninstall.*) k8s/migration-job.yaml \| kubectl replace --force -f -$`).FindStringSubmatch(readme)
	if line == nil {
		t.Fatal("the README has no line that makes the Job of the removal")
	}
	cmd := exec.Command("bash", "-c", line[1])
	cmd.Stdin = bytes.NewReader(product.Read(t, "k8s/migration-job.yaml"))
	made, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	removal := find[*batchv1.Job](t, decode(t, "README", made), "sagaz-migration").Spec.Template.Spec
	if got := strings.Join(removal.Containers[0].Args, " "); got != "uninstall --yes" {
		t.Fatalf("the removal runs %s", got)
	}
	if p := run(t, removal, secrets, nil); p.Exit() != 0 {
		t.Errorf("the removal: %s", p)
	}
}
