package kubernetes

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// run starts the product as a container of that pod. secrets are the contents of the secrets, by
// "secret key"; what a pod requires and is not among them fails the test, as the kubelet would not
// start the pod. env overrides what cannot be the same here.
func run(t *testing.T, spec corev1.PodSpec, secrets, env map[string]string) *product.Process {
	t.Helper()
	return product.Start(t, strings.Join(spec.Containers[0].Args, " "), container(t, spec, secrets, env))
}

// container is what run starts.
func container(t *testing.T, spec corev1.PodSpec, secrets, env map[string]string) *exec.Cmd {
	t.Helper()
	if len(spec.Containers) != 1 || len(spec.Containers[0].Command) != 0 {
		t.Fatal("want one container, with the image's own entrypoint")
	}
	c := spec.Containers[0]
	dir := t.TempDir()
	for path, from := range secretFiles(spec) {
		value, ok := secrets[from.secret+" "+from.key]
		if ok {
			write(t, dir, path, value)
		} else if !from.optional {
			t.Fatalf("references non-existent secret key: %s", from.key)
		}
	}
	all := make(map[string]string)
	for _, from := range c.EnvFrom {
		for name, value := range find[*corev1.ConfigMap](t, file(t, "configmap.yaml"), from.ConfigMapRef.Name).Data {
			all[name] = value
		}
	}
	for _, e := range c.Env {
		all[e.Name] = e.Value
	}
	if all["RELAY_SECRETS_DIR"] == mountOf(c, "secrets") {
		all["RELAY_SECRETS_DIR"] = dir
	}
	for name, value := range env {
		all[name] = value
	}
	cmd := exec.Command(product.Binary(t), c.Args...)
	cmd.Env = []string{"PATH=/usr/local/bin"}
	for name, value := range all {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

// example is secrets-example.yaml, by "secret key", with addresses that exist here.
func example(t *testing.T, db *database, kafka string) map[string]string {
	t.Helper()
	secrets := make(map[string]string)
	for _, s := range each[*corev1.Secret](file(t, "secrets-example.yaml")) {
		for key, value := range s.StringData {
			secrets[s.Name+" "+key] = value
		}
	}
	write(t, db.secrets, "connection-string", secrets["sagaz-db-credentials connection-string"])
	secrets["sagaz-db-credentials connection-string"] = db.at(t, secrets["sagaz-db-credentials connection-string"])
	secrets["sagaz-broker-credentials bootstrap-servers"] = kafka
	return secrets
}

func worker(t *testing.T) corev1.PodSpec {
	return find[*appsv1.Deployment](t, file(t, "outbox-worker.yaml"), "outbox-worker").Spec.Template.Spec
}

func migration(t *testing.T) corev1.PodSpec {
	return find[*batchv1.Job](t, file(t, "migration-job.yaml"), "sagaz-migration").Spec.Template.Spec
}

// TestQuickStart goes the way of the quick start on real servers: the example's secrets, the role
// that the database makes of them, the migration (which begins before there is a database, runs
// twice, and twice at once), two workers, one event, the probes, a scrape, SIGTERM.
func TestQuickStart(t *testing.T) {
	t.Parallel()
	broker := brokertest.Kafka(t)
	topic := broker.Topic(t, 1)
	db := newDatabase(t, nil)
	secrets := example(t, db, broker.Plaintext)
	if out, err := db.script(t, "role.sh"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	if err := db.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	early := run(t, migration(t), secrets, nil)
	product.Until(t, "the migration waits", func() bool { return strings.Contains(early.String(), "waiting for the database") })
	if err := db.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := early.Exit(); code != 0 {
		t.Fatalf("the migration ends with %d", code)
	}
	again, atOnce := run(t, migration(t), secrets, nil), run(t, migration(t), secrets, nil)
	if a, b := again.Exit(), atOnce.Exit(); a != 0 || b != 0 {
		t.Fatalf("two migrations at once end with %d and %d", a, b)
	}

	ports, err := child.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	spec := worker(t)
	var workers []*product.Process
	var addresses []string
	for i, port := range ports {
		addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", port))
		workers = append(workers, run(t, spec, secrets, map[string]string{"RELAY_HTTP_ADDR": addresses[i], "WORKER_ID": fmt.Sprintf("outbox-worker-%d", i)}))
	}
	conn, err := db.connect(t, secrets["sagaz-db-credentials connection-string"])
	if err != nil {
		t.Fatal(err)
	}
	var id string
	err = conn.QueryRow(t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload)
		VALUES (gen_random_uuid(), 'saga-1', 'order', 'order-42', $1, '{"total": 99.5}') RETURNING event_id::text`, topic).Scan(&id)
	if err != nil {
		t.Fatal(err)
	}

	reader := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{broker.Plaintext}, Topic: topic, Partition: 0, MaxWait: time.Second})
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	message, err := reader.ReadMessage(ctx)
	if err != nil {
		t.Fatalf("no event in Kafka: %v", err)
	}
	var body struct {
		EventID string `json:"event_id"`
	}
	if err := json.Unmarshal(message.Value, &body); err != nil || body.EventID != id || string(message.Key) != "order-42" {
		t.Errorf("got %s: %s, %v", message.Key, message.Value, err)
	}
	product.Until(t, "the row is sent", func() bool {
		var status string
		return conn.QueryRow(t.Context(), `SELECT status FROM saga_outbox WHERE event_id = $1`, id).Scan(&status) == nil && status == "sent"
	})

	// Both are ready, the owner and the one that stands by, and both tell the autoscaler a number.
	c := spec.Containers[0]
	for _, address := range addresses {
		for name, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
			product.Until(t, name+" probe of "+address, func() bool { code, _ := get(address, probe.HTTPGet.Path); return code == 200 })
		}
		template := find[*appsv1.Deployment](t, file(t, "outbox-worker.yaml"), "outbox-worker").Spec.Template
		code, metrics := get(address, template.Annotations["prometheus.io/path"])
		if n := strings.Count(metrics, "\noutbox_pending_events_total"); code != 200 || n != 1 {
			t.Errorf("%s: %d, %d series outbox_pending_events_total, want one", address, code, n)
		}
	}

	for i, p := range workers {
		start := time.Now()
		if code := p.Stop(); code != 0 {
			t.Errorf("worker %d ends with %d", i, code)
		}
		if took, grace := time.Since(start), time.Duration(*spec.TerminationGracePeriodSeconds)*time.Second; took > grace {
			t.Errorf("worker %d took %s to stop, and is killed after %s", i, took, grace)
		}
	}
}

// TestMissingSettings: what a pod says when the broker's secret is not there, or the database's is
// no good: one line, by the setting's name, without the password.
func TestMissingSettings(t *testing.T) {
	t.Parallel()
	const url = "sagaz-db-credentials connection-string"
	db := "postgresql://saga_user:change-me@127.0.0.1:1/saga_db"
	for says, secrets := range map[string]map[string]string{
		"KAFKA_BOOTSTRAP_SERVERS (or BROKER_URL) is not set": {url: db, "sagaz-broker-credentials servers": "kafka:9092"}, // another key
		"DATABASE_URL": {url: "change-me", "sagaz-broker-credentials bootstrap-servers": "kafka:9092"},
	} {
		t.Run(says, func(t *testing.T) {
			p := run(t, worker(t), secrets, nil)
			if code := p.Exit(); code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			// That it is starting is no complaint.
			out := strings.TrimSpace(regexp.MustCompile(`(?m)^\{.*"level":"INFO".*\n`).ReplaceAllString(p.String(), ""))
			if strings.Count(out, "\n") != 0 || !strings.Contains(out, says) || strings.Contains(out, "change-me") {
				t.Errorf("got %s, want one line with %s", out, says)
			}
			if strings.Contains(says, " ") && !strings.Contains(string(product.Read(t, "k8s/README.md")), says) {
				t.Errorf("k8s/README.md does not explain %q", says)
			}
		})
	}
	// Nobody restarts it for this: it waits, and its probes tell.
	t.Run("DatabaseAway", func(t *testing.T) {
		ports, err := child.FreePorts(1)
		if err != nil {
			t.Fatal(err)
		}
		address := fmt.Sprintf("127.0.0.1:%d", ports[0])
		p := run(t, worker(t), map[string]string{url: db, "sagaz-broker-credentials bootstrap-servers": "127.0.0.1:1"}, map[string]string{"RELAY_HTTP_ADDR": address})
		c := worker(t).Containers[0]
		product.Until(t, "liveness", func() bool { code, _ := get(address, c.LivenessProbe.HTTPGet.Path); return code == 200 })
		if code, body := get(address, c.ReadinessProbe.HTTPGet.Path); code != 503 || !strings.Contains(body, "database") {
			t.Errorf("readiness: %d %s", code, body)
		}
		if !p.Running() {
			t.Error("it gave up")
		}
	})
}

func get(address, path string) (int, string) {
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://" + address + cmp.Or(path, "/"))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}
