package kubernetes

import (
	"bytes"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// What must not happen to others in a namespace, as far as the files tell. Package cluster does it on an API server.

// TestNamespaceWarnsOnly: the namespace may be in use, by pods that "restricted" would refuse, such as the library's PostgreSQL.
func TestNamespaceWarnsOnly(t *testing.T) {
	for _, name := range []string{"k8s/namespace.yaml", "monitoring/namespace.yaml"} {
		for _, ns := range each[*corev1.Namespace](decode(t, name, product.Read(t, name))) {
			if level := ns.Labels["pod-security.kubernetes.io/enforce"]; level != "" {
				t.Errorf("%s enforces %s over whoever is there", name, level)
			}
			for _, mode := range []string{"warn", "audit"} {
				if ns.Labels["pod-security.kubernetes.io/"+mode] != "restricted" {
					t.Errorf("%s does not %s: %v", name, mode, ns.Labels)
				}
			}
		}
	}
	for _, dir := range []string{"k8s", "monitoring"} {
		if strings.Contains(string(product.Read(t, filepath.Join(dir, "kustomization.yaml"))), "- namespace.yaml") {
			t.Errorf("kubectl delete -k %s/ would take the namespace, and all that is in it", dir)
		}
	}
	if !strings.Contains(string(product.Read(t, "k8s/README.md")), "kubectl label --dry-run=server --overwrite namespace sagaz pod-security.kubernetes.io/enforce=restricted") {
		t.Error("k8s/README.md does not tell how to enforce it")
	}
}

// reaches says whether pods with these labels may talk to a peer: a pod of a namespace, or an address.
func reaches(t *testing.T, all []object, from labels.Set, namespace, pod labels.Set, address string, port int32) bool {
	t.Helper()
	matches := func(s *metav1.LabelSelector, set labels.Set) bool {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		return selector.Matches(set)
	}
	denied := false
	for _, x := range each[*networkingv1.NetworkPolicy](all) {
		if x.Namespace != "sagaz" || !slices.Contains(x.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) || !matches(&x.Spec.PodSelector, from) {
			continue
		}
		denied = true
		for _, rule := range x.Spec.Egress {
			open := len(rule.Ports) == 0
			for _, p := range rule.Ports {
				last := p.Port.IntVal
				if p.EndPort != nil {
					last = *p.EndPort
				}
				open = open || port >= p.Port.IntVal && port <= last
			}
			there := len(rule.To) == 0
			for _, peer := range rule.To {
				switch {
				case peer.IPBlock != nil:
					there = there || address != "" && netip.MustParsePrefix(peer.IPBlock.CIDR).Contains(netip.MustParseAddr(address))
				case address != "":
				case peer.NamespaceSelector == nil:
					there = there || namespace["kubernetes.io/metadata.name"] == "sagaz" && matches(peer.PodSelector, pod)
				default:
					there = there || matches(peer.NamespaceSelector, namespace) && (peer.PodSelector == nil || matches(peer.PodSelector, pod))
				}
			}
			if open && there {
				return true
			}
		}
	}
	return !denied
}

// TestPolicies: who may talk to whom, with the base alone and with each component that opens or closes something.
func TestPolicies(t *testing.T) {
	worker, migrate, stranger := labels.Set{"app": "outbox-worker"}, labels.Set{"app": "sagaz-migration"}, labels.Set{"app": "shop"}
	in := func(name string) labels.Set { return labels.Set{"kubernetes.io/metadata.name": name} }
	dns := labels.Set{"k8s-app": "kube-dns"}
	for _, tt := range []struct {
		name      string
		component string // none: the base
		from      labels.Set
		namespace labels.Set
		pod       labels.Set
		address   string
		port      int32
		want      bool
	}{
		{name: "DNS", from: worker, namespace: in("kube-system"), pod: dns, port: 53, want: true},
		{name: "DNSOfOpenShift", from: worker, namespace: in("openshift-dns"), pod: labels.Set{"dns.operator.openshift.io/daemonset-dns": "default"}, port: 5353, want: true},
		{name: "NodeLocalDNS", from: migrate, address: "169.254.20.10", port: 53, want: true},
		{name: "CloudDNS", from: worker, address: "169.254.169.254", port: 53, want: true},
		{name: "TheMetadataServer", from: worker, address: "169.254.169.254", port: 80},
		{name: "Database", from: worker, namespace: in("sagaz"), pod: labels.Set{"app": "postgresql"}, port: 5432, want: true},
		{name: "DatabaseOutside", from: worker, address: "203.0.113.7", port: 5432},
		{name: "DatabaseOutside", component: "external-database", from: worker, address: "203.0.113.7", port: 5432, want: true},
		{name: "DatabaseOutside", component: "external-database", from: migrate, address: "203.0.113.7", port: 5432, want: true},
		{name: "DatabaseInAnotherNamespace", component: "external-database", from: migrate, namespace: in("databases"), pod: labels.Set{"app": "pg"}, port: 5432, want: true},
		{name: "KafkaInAnotherNamespace", from: worker, namespace: in("kafka"), port: 9092, want: true},
		{name: "KafkaOutside", from: worker, address: "203.0.113.8", port: 9093},
		{name: "KafkaOutside", component: "external-broker", from: worker, address: "203.0.113.8", port: 9093, want: true},
		{name: "RabbitMQOutside", component: "external-broker", from: worker, address: "203.0.113.8", port: 5671, want: true},
		{name: "TheRestOutside", component: "external-broker", from: worker, address: "203.0.113.8", port: 443},
		{name: "AStranger", from: stranger, address: "203.0.113.9", port: 443, want: true},
		{name: "AStranger", component: "default-deny", from: stranger, address: "203.0.113.9", port: 443},
		{name: "AStrangersDNS", component: "default-deny", from: stranger, namespace: in("kube-system"), pod: dns, port: 53, want: true},
		{name: "AClient", component: "default-deny", from: labels.Set{"outbox-client": "true"}, namespace: in("sagaz"), pod: labels.Set{"app": "postgresql"}, port: 5432, want: true},
	} {
		t.Run(tt.name+"/"+tt.component, func(t *testing.T) {
			dir := "k8s"
			if tt.component != "" {
				dir = "k8s/components/" + tt.component
			}
			if got := reaches(t, decode(t, dir, build(t, dir)), tt.from, tt.namespace, tt.pod, tt.address, tt.port); got != tt.want {
				t.Errorf("allowed %v, want %v", got, tt.want)
			}
		})
	}
}

// selectors are what cannot be changed any more: an apply over what is there would fail.
var selectors = map[string]string{
	"apps/v1/Deployment outbox-worker": "app=outbox-worker",
	"apps/v1/StatefulSet postgresql":   "app=postgresql",
}

// TestRecommendedLabels: every object says what it is and what it is part of; selectors stay what they were.
func TestRecommendedLabels(t *testing.T) {
	everyBuild(t, func(t *testing.T, all []object) {
		for _, o := range all {
			if o.kind == "v1/Namespace" || o.kind == "v1/Secret" {
				continue
			}
			for _, name := range []string{"name", "component", "part-of"} {
				if o.GetLabels()["app.kubernetes.io/"+name] == "" {
					t.Errorf("%s has no label app.kubernetes.io/%s", o, name)
				}
			}
			var selector *metav1.LabelSelector
			switch x := o.Object.(type) {
			case *appsv1.Deployment:
				selector = x.Spec.Selector
			case *appsv1.StatefulSet:
				selector = x.Spec.Selector
			default:
				continue
			}
			if want, ok := selectors[o.kind+" "+o.GetName()]; ok && metav1.FormatLabelSelector(selector) != want {
				t.Errorf("%s selects %s, want %s", o, metav1.FormatLabelSelector(selector), want)
			}
		}
		for _, p := range pods(all) {
			for _, name := range []string{"name", "component", "part-of"} {
				if p.meta.Labels["app.kubernetes.io/"+name] == "" && strings.Contains(p.name, "sagaz") {
					t.Errorf("the pods of %s have no label app.kubernetes.io/%s", p.name, name)
				}
			}
		}
	})
}

// TestNobodysBrokerChanges: no file names a broker, so none is changed by applying it, and two addresses in the secret are not an answer either.
func TestNobodysBrokerChanges(t *testing.T) {
	everyBuild(t, func(t *testing.T, all []object) {
		broker := find[*corev1.ConfigMap](t, all, "outbox-worker-config").Data["BROKER_TYPE"]
		if dev := strings.HasSuffix(t.Name(), "dev"); dev != (broker == "stdout") || !dev && broker != "" {
			t.Errorf("BROKER_TYPE is %q", broker)
		}
	})
	const url = "sagaz-db-credentials connection-string"
	secrets := map[string]string{url: "postgresql://saga_user:hush@127.0.0.1:1/saga_db", "sagaz-broker-credentials rabbitmq-url": "amqp://u:hush@mq/"}
	p := run(t, worker(t), secrets, nil)
	if code := p.exit(t); code != 2 || !strings.Contains(p.out.String(), "BROKER_TYPE: not set") || !strings.Contains(p.out.String(), "RABBITMQ_URL in RELAY_SECRETS_DIR") || strings.Contains(p.out.String(), "hush") {
		t.Errorf("exit code %d: %s", code, p.out)
	}
}

// TestFromTheLibrary starts the worker of the manifests, with nothing said of a broker, on a table that the library's worker has used. It must ask;
// told, it delivers; and without being told again it does not deliver elsewhere.
func TestFromTheLibrary(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, nil)
	secrets := example(t, db, "127.0.0.1:1")
	if out, err := db.script(t, "role.sh"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if code := run(t, migration(t), secrets, nil).exit(t); code != 0 {
		t.Fatalf("the migration ends with %d", code)
	}
	conn, err := db.connect(t, secrets["sagaz-db-credentials connection-string"])
	if err != nil {
		t.Fatal(err)
	}
	insert := func(id int, status string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, status)
			VALUES ($1::uuid, 'saga-1', 'order', 'order-1', 'order.created', '{}', $2)`, event(id), status); err != nil {
			t.Fatal(err)
		}
	}
	waits := func() (n int) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox WHERE status <> 'sent'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	refuses := func(secrets map[string]string, says string) {
		t.Helper()
		p := run(t, worker(t), secrets, map[string]string{"METRICS_PORT": "0"})
		if code := p.exit(t); code != 2 || !strings.Contains(p.out.String(), says) {
			t.Errorf("exit code %d, want 2, and %q: %s", code, says, p.out)
		}
		if n := waits(); n != 1 {
			t.Errorf("%d rows wait, want 1", n)
		}
	}
	insert(1, "sent") // by theirs
	insert(2, "pending")
	refuses(secrets, "another worker has sent rows of saga_outbox")
	both := map[string]string{"sagaz-broker-credentials rabbitmq-url": "amqp://saga:hush@127.0.0.1:1/"}
	for k, v := range secrets {
		both[k] = v
	}
	refuses(both, "RABBITMQ_URL in RELAY_SECRETS_DIR is set, which only another broker needs")

	p := run(t, worker(t), secrets, map[string]string{"BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(t.TempDir(), "events.jsonl"), "METRICS_PORT": "0"})
	until(t, "the row is sent", func() bool { return waits() == 0 })
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	insert(3, "pending")
	refuses(secrets, "the relay before this one delivered to file")
}

// TestRemoval runs what the README's section on removal makes of the migration Job, with the rights of the role that role.sh has made. Nothing of the
// relay stays on the server, and the applications' table does.
func TestRemoval(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, nil)
	secrets := example(t, db, "127.0.0.1:1")
	if out, err := db.script(t, "role.sh"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if code := run(t, migration(t), secrets, nil).exit(t); code != 0 {
		t.Fatalf("the migration ends with %d", code)
	}
	conn, err := db.connect(t, secrets["sagaz-db-credentials connection-string"])
	if err != nil {
		t.Fatal(err)
	}
	left := func() (n int) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_replication_origin) + (SELECT count(*) FROM pg_publication)`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	relay := run(t, worker(t), secrets, map[string]string{"BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(t.TempDir(), "events.jsonl"), "METRICS_PORT": "0"})
	until(t, "slot, publication and origin are there", func() bool { return left() >= 3 })
	if err := relay.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	relay.exit(t)

	_, text, ok := strings.Cut(string(product.Read(t, "k8s/README.md")), "\n## Removing it\n")
	line := regexp.MustCompile(`(?m)^(sed .*) k8s/migration-job.yaml \| kubectl replace --force -f -$`).FindStringSubmatch(text)
	if !ok || line == nil {
		t.Fatal("the README does not tell how")
	}
	cmd := exec.Command("bash", "-c", line[1])
	cmd.Stdin = bytes.NewReader(product.Read(t, "k8s/migration-job.yaml"))
	made, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	spec := find[*batchv1.Job](t, decode(t, "README", made), "sagaz-migration").Spec.Template.Spec
	if got := strings.Join(spec.Containers[0].Args, " "); got != "uninstall --yes" {
		t.Fatalf("it runs %s", got)
	}
	p := run(t, spec, secrets, nil)
	if code := p.exit(t); code != 0 || left() != 0 {
		t.Errorf("exit code %d, %d things are left: %s", code, left(), p.out)
	}
	if _, err := conn.Exec(t.Context(), `SELECT FROM saga_outbox`); err != nil {
		t.Error(err)
	}
}

// TestComponentsForFiles: what the components for certificates and registries put where their comments say.
func TestComponentsForFiles(t *testing.T) {
	all := decode(t, "tls", build(t, "k8s/components/tls"))
	found := pods(all)
	for _, p := range found {
		for _, c := range p.spec.Containers {
			if ours(c) != (mountOf(c, "tls") == "/etc/sagaz/tls") {
				t.Errorf("%s has the certificates at %q", p.name, mountOf(c, "tls"))
			}
		}
	}
	known := product.Settings(t)
	text := string(product.Read(t, "k8s/components/tls/kustomization.yaml"))
	for _, name := range []string{"RELAY_KAFKA_TLS_CA_FILE", "RELAY_KAFKA_TLS_CERT_FILE", "RELAY_KAFKA_TLS_KEY_FILE"} {
		if _, ok := known[name]; !ok || !strings.Contains(text, name) {
			t.Errorf("%s: no such setting, or not told", name)
		}
	}
	all = decode(t, "image-pull-secret", build(t, "k8s/components/image-pull-secret"))
	for _, name := range []string{"outbox-worker", "sagaz-migration"} {
		if s := find[*corev1.ServiceAccount](t, all, name).ImagePullSecrets; len(s) != 1 || s[0].Name != "sagaz-registry" {
			t.Errorf("%s pulls with %v", name, s)
		}
	}
}

// TestJobStays: a Job that removes itself comes again at each apply, an endless difference for what compares cluster and repository.
func TestJobStays(t *testing.T) {
	job := find[*batchv1.Job](t, file(t, "migration-job.yaml"), "sagaz-migration")
	if job.Spec.TTLSecondsAfterFinished != nil {
		t.Errorf("it is gone after %d s", *job.Spec.TTLSecondsAfterFinished)
	}
	for name, want := range map[string]string{
		"argocd.argoproj.io/hook": "Sync", "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation", "kustomize.toolkit.fluxcd.io/force": "enabled",
	} {
		if job.Annotations[name] != want {
			t.Errorf("annotation %s is %q, want %q", name, job.Annotations[name], want)
		}
	}
	if out, err := exec.Command("bash", "-n", filepath.Join(product.Root(), "k8s/from-library.sh")).CombinedOutput(); err != nil {
		t.Errorf("from-library.sh: %s", out)
	}
}
