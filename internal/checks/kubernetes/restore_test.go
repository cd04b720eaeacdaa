package kubernetes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// guide returns the commands that k8s/README.md gives to run in the database's pod under a heading,
// in order: what comes after "--".
func guide(t *testing.T, heading string) (commands []string) {
	t.Helper()
	_, text, ok := strings.Cut(string(product.Read(t, "k8s/README.md")), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("k8s/README.md has no %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n#")
	for _, m := range inDatabase.FindAllStringSubmatch(text, -1) {
		commands = append(commands, m[1])
	}
	return commands
}

// inDatabase is a command for the database's pod.
var inDatabase = regexp.MustCompile(`(?m)kubectl -n sagaz exec (?:-i |-it )?postgresql-0 -- ([^\x60\n]*)`)

// inPod runs a command as the database's pod would, only that the server is found by TCP.
func (db *database) inPod(t *testing.T, dir, command string) (string, error) {
	t.Helper()
	cmd := exec.Command("bash", "-e", "-c", strings.ReplaceAll(command, "/scripts/", db.scripts+"/"))
	cmd.Dir = dir
	cmd.Env = db.environment(t)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestRestore backs up and restores with the very commands of the README. What was delivered before
// the backup is not delivered again; what waited then is, once; and the relay goes on with a slot
// of its own making.
func TestRestore(t *testing.T) {
	t.Parallel()
	// No newer than Debian's client, which refuses newer servers.
	db := newDatabaseOf(t, "15", nil)
	secrets := example(t, db, "127.0.0.1:1")
	if out, err := db.script(t, "role.sh"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if code := run(t, migration(t), secrets, nil).Exit(); code != 0 {
		t.Fatalf("the migration ends with %d", code)
	}
	dir := t.TempDir()
	inPod := func(command string) {
		t.Helper()
		if out, err := db.inPod(t, dir, command); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	conn, err := db.connect(t, secrets["sagaz-db-credentials connection-string"])
	if err != nil {
		t.Fatal(err)
	}
	insert := func(id int) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload)
			VALUES ($1::uuid, 'saga-1', 'order', 'order-1', 'order.created', '{}')`, event(id)); err != nil {
			t.Fatal(err)
		}
	}
	events := filepath.Join(dir, "events.jsonl")
	delivered := func() (ids []string) {
		t.Helper()
		text, err := os.ReadFile(events)
		if err != nil {
			return nil
		}
		for _, line := range bytes.Split(bytes.TrimSpace(text), []byte("\n")) {
			if !json.Valid(line) {
				continue // being written
			}
			if m := regexp.MustCompile(`"event_id": ?"([0-9a-f-]{36})"`).FindSubmatch(line); m != nil {
				ids = append(ids, string(m[1]))
			}
		}
		return ids
	}
	relayUntil := func(want ...int) {
		t.Helper()
		ports, err := child.FreePorts(1)
		if err != nil {
			t.Fatal(err)
		}
		p := run(t, worker(t), secrets, map[string]string{"BROKER_TYPE": "file", "RELAY_FILE_PATH": events, "RELAY_HTTP_ADDR": fmt.Sprintf("127.0.0.1:%d", ports[0])})
		product.Until(t, fmt.Sprintf("%d events", len(want)), func() bool { return len(delivered()) >= len(want) })
		product.Until(t, "no row waits", func() bool {
			var waiting int
			return conn.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox WHERE status <> 'sent'`).Scan(&waiting) == nil && waiting == 0
		})
		if code := p.Stop(); code != 0 {
			t.Fatalf("the worker ends with %d", code)
		}
		var ids []string
		for _, id := range want {
			ids = append(ids, event(id))
		}
		if got := delivered(); !slices.Equal(got, ids) {
			t.Errorf("delivered %v, want %v", got, ids)
		}
	}

	insert(1)
	relayUntil(1)
	insert(2) // waits while the backup is made
	backup := guide(t, "### Back up")
	if len(backup) != 1 {
		t.Fatalf("got %q", backup)
	}
	inPod(backup[0])
	insert(3)
	relayUntil(1, 2, 3)

	restore := guide(t, "### Restore")
	if len(restore) < 2 {
		t.Fatalf("got %q", restore)
	}
	for _, command := range restore {
		inPod(command)
	}
	insert(4)
	relayUntil(1, 2, 3, 2, 4)
	var rows string
	if err := conn.QueryRow(t.Context(), `SELECT string_agg(right(event_id::text, 1), ',' ORDER BY event_id) FROM saga_outbox`).Scan(&rows); err != nil || rows != "1,2,4" {
		t.Errorf("rows %s, %v: want 1, 2 of the backup and 4", rows, err)
	}
}

func event(id int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012d", id) }
