package kubernetes

import (
	"bytes"
	"cmp"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

const (
	// Connections, at most: k8s/README.md, "Scaling".
	connectionsOfPod   = 1  // a standby
	connectionsOfSlot  = 3  // for each slot that a pod owns
	connectionsOfOwner = 13 // and for all of them together: docs/sharding.md
	// reserved are the superuser's.
	reserved = 3
)

// connectionsOf is how many connections a pod has for the slots that it owns.
func connectionsOf(slots int) int {
	if slots == 0 {
		return connectionsOfPod
	}
	return slots*connectionsOfSlot + connectionsOfOwner
}

// connectionsOfAll is how many so many pods have for all slots.
func connectionsOfAll(slots, pods int) int {
	owners := min(slots, pods)
	return slots*connectionsOfSlot + owners*connectionsOfOwner + (pods-owners)*connectionsOfPod
}

// bytesOf is a size as PostgreSQL has it: 8GB, 512MB.
func bytesOf(t *testing.T, size string) int64 {
	t.Helper()
	q, err := resource.ParseQuantity(strings.TrimSuffix(size, "B") + "i")
	if err != nil {
		t.Fatalf("%q: %v", size, err)
	}
	return q.Value()
}

// shardsOf is RELAY_SHARDS of the ConfigMap.
func shardsOf(t *testing.T, all []object) int {
	t.Helper()
	n, err := strconv.Atoi(find[*corev1.ConfigMap](t, all, "outbox-worker-config").Data["RELAY_SHARDS"])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSizesBelongTogether: the autoscaler's maximum is a pod for each slot and two standbys, worker
// and migration have the same number of slots, and the database has room for them, also while the
// number is doubled.
func TestSizesBelongTogether(t *testing.T) {
	everyBuild(t, "k8s", func(t *testing.T, all []object) {
		n, most := shardsOf(t, all), 0
		for _, p := range pods(all) {
			for _, c := range p.Spec.Containers {
				if !ours(c) {
					continue
				}
				if len(c.EnvFrom) != 1 || c.EnvFrom[0].ConfigMapRef.Name != "outbox-worker-config" || variable(c, "RELAY_SHARDS") != "" {
					t.Errorf("%s: RELAY_SHARDS is not the ConfigMap's: %v", p.name, c.EnvFrom)
				}
			}
		}
		for _, hpa := range each[*autoscalingv2.HorizontalPodAutoscaler](all) {
			standbys := 2
			if *hpa.Spec.MinReplicas == 1 { // it is for a look
				standbys = 1
			}
			if most = int(hpa.Spec.MaxReplicas); most != n+standbys {
				t.Errorf("%d slots and up to %d pods, want one for each and %d standbys", n, most, standbys)
			}
		}
		if len(each[*appsv1.StatefulSet](all)) == 0 {
			return
		}
		p := parameters(t, all)
		for _, name := range []string{"max_replication_slots", "max_wal_senders"} {
			if room, err := strconv.Atoi(p[name]); err != nil || room < 3*n+4 {
				t.Errorf("%s is %s: %d slots become %d, and others have some", name, p[name], n, 2*n)
			}
		}
		room, err := strconv.Atoi(cmp.Or(p["max_connections"], "100"))
		if need := connectionsOfAll(2*n, max(most, 10)+1); err != nil || need > room-reserved-50 { // KEDA's 10, and the surge of a rollout
			t.Errorf("relays of %d slots may take %d of %d connections, which leaves too few to applications", 2*n, need, room)
		}
		decoding := int64(2*n) * bytesOf(t, cmp.Or(p["logical_decoding_work_mem"], "64MB"))
		memory := find[*appsv1.StatefulSet](t, all, "postgresql").Spec.Template.Spec.Containers[0].Resources.Limits.Memory().Value()
		if shared := bytesOf(t, cmp.Or(p["shared_buffers"], "128MB")); decoding+shared > memory*3/4 {
			t.Errorf("%d slots may decode in %d bytes, with %d shared ones, of a limit of %d", 2*n, decoding, shared, memory)
		}
	})
}

// TestReadmeHasTheSizes: the numbers in k8s/README.md are those of the files.
func TestReadmeHasTheSizes(t *testing.T) {
	all := decode(t, "k8s", build(t, "k8s"))
	n, hpa := shardsOf(t, all), find[*autoscalingv2.HorizontalPodAutoscaler](t, all, "outbox-worker-hpa").Spec
	readme := strings.Join(strings.Fields(string(product.Read(t, "k8s/README.md"))), " ")
	p := parameters(t, all)
	for _, want := range []string{
		fmt.Sprintf("divided by key among %d replication slots", n),
		fmt.Sprintf("at least %d pods, so that a node can fail while another is drained; at most %d: up to %d own a slot each", *hpa.MinReplicas, hpa.MaxReplicas, n),
		fmt.Sprintf("keeps %d to %d pods by the metric", *hpa.MinReplicas, hpa.MaxReplicas),
		fmt.Sprintf("from %d to %d. To have more", *hpa.MinReplicas, hpa.MaxReplicas),
		fmt.Sprintf("`max_replication_slots`, `max_wal_senders` (%s of each here)", p["max_replication_slots"]),
		fmt.Sprintf("connections, of `max_connections` (%s)", p["max_connections"]),
		fmt.Sprintf("| %d of its owner, and up to %d that an owner's slots have in common | up to %d of %d pods, %d of %d; %d with %d slots and a rollout |", connectionsOfSlot, connectionsOfOwner,
			connectionsOfAll(n, int(*hpa.MinReplicas)), *hpa.MinReplicas, connectionsOfAll(n, int(hpa.MaxReplicas)), hpa.MaxReplicas, connectionsOfAll(2*n, int(hpa.MaxReplicas)+1), 2*n),
		fmt.Sprintf("`logical_decoding_work_mem` (%s MB) | up to 1 | up to %d MB |", strings.TrimSuffix(p["logical_decoding_work_mem"], "MB"), int64(n)*bytesOf(t, p["logical_decoding_work_mem"])>>20),
		fmt.Sprintf("%d while %d become %d |", 3*n, n, 2*n),
		fmt.Sprintf("reports `RELAY_SHARDS=%d is not used`", n),
		fmt.Sprintf("| %d pods, and few events are pending |", hpa.MaxReplicas),
	} {
		if !strings.Contains(readme, want) {
			t.Errorf("k8s/README.md does not have %q", want)
		}
	}
	for _, old := range []string{"idle", "One slot has one owner", "one of which owns the slot"} {
		if strings.Contains(readme, old) {
			t.Errorf("k8s/README.md has %q", old)
		}
	}
	if config, job := strings.Index(readme, "kubectl apply -f k8s/configmap.yaml"), strings.Index(readme, "kubectl apply -f k8s/migration-job.yaml"); config < 0 || config > job {
		t.Error("the quick start migrates before there is a ConfigMap: a new table has one slot then")
	}
	// The Job that a line of it makes.
	line := regexp.MustCompile(`(?m)^(sed .*--shards.*) k8s/migration-job.yaml \| kubectl replace --force -f -$`).FindSubmatch(product.Read(t, "k8s/README.md"))
	if line == nil {
		t.Fatal("the README has no line that makes the Job of a change")
	}
	cmd := exec.Command("bash", "-c", string(line[1]))
	cmd.Stdin = bytes.NewReader(product.Read(t, "k8s/migration-job.yaml"))
	made, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	change := find[*batchv1.Job](t, decode(t, "README", made), "sagaz-migration").Spec.Template.Spec
	if got := strings.Join(change.Containers[0].Args, " "); got != "migrate --wait 5m --shards 4" {
		t.Errorf("the change runs %s", got)
	}
}

// TestUpgradeKeepsOneSlot: over an installation from before the Job succeeds, and says what to do;
// applied again with another number, too. On PostgreSQL 14 a new one ends with exit code 2.
func TestUpgradeKeepsOneSlot(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"14", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			db := newDatabaseOf(t, version, nil)
			secrets := example(t, db, "127.0.0.1:1")
			if out, err := db.script(t, "role.sh"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			p := run(t, migration(t), secrets, nil)
			switch code := p.Exit(); {
			case version == "14" && (code != 2 || !strings.Contains(p.String(), "RELAY_SHARDS=1")):
				t.Errorf("a new database on %s: exit code %d: %s", version, code, p)
			case version != "14" && (code != 0 || !strings.Contains(p.String(), "divided among 8 slots")):
				t.Errorf("a new database on %s: exit code %d: %s", version, code, p)
			}
			conn, err := db.connect(t, secrets["sagaz-db-credentials connection-string"])
			if err != nil {
				t.Fatal(err)
			}
			// As the version before has left it.
			if _, err := conn.Exec(t.Context(), `DELETE FROM saga_outbox_set`); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(t.Context(), `INSERT INTO saga_outbox_relay (slot, epoch, owner) VALUES ('sagaz_outbox', 3, 'outbox-worker-1')`); err != nil {
				t.Fatal(err)
			}
			for _, shards := range []string{"", "7"} {
				env := map[string]string{}
				if shards != "" {
					env["RELAY_SHARDS"] = shards
				}
				p := run(t, migration(t), secrets, env)
				if code := p.Exit(); code != 0 || !strings.Contains(p.String(), "is not used") || strings.Contains(p.String(), "migrate --shards") != (version != "14") {
					t.Errorf("over an installation from before: exit code %d: %s", code, p)
				}
				var n int
				if err := conn.QueryRow(t.Context(), `SELECT shards FROM saga_outbox_set`).Scan(&n); err != nil || n != 1 {
					t.Errorf("%d slots, %v; want one", n, err)
				}
			}
		})
	}
}
