//go:build cluster

package cluster

import (
	"strings"
	"testing"
)

// TestNamespaceInUse: what runs in a namespace goes on running when ours comes, and goes on
// existing when ours goes.
func TestNamespaceInUse(t *testing.T) {
	c := start(t)
	c.sh("kubectl create namespace sagaz")
	c.sh("kubectl apply -f " + library)
	pod := `kubectl -n sagaz run %s --image=postgres:16-alpine`
	c.sh(strings.ReplaceAll(pod, "%s", "postgresql-0"))

	c.sh("kubectl apply -f k8s/namespace.yaml -f monitoring/namespace.yaml")
	if said := c.sh(strings.ReplaceAll(pod, "%s", "postgresql-1")); !strings.Contains(said, "would violate PodSecurity") {
		t.Errorf("no warning: %s", said)
	}
	c.sh("kubectl -n monitoring run node-exporter --image=node-exporter --privileged")

	// The step of the README that enforces it: first it says whom it would hit, then it hits.
	if said := c.sh("kubectl label --dry-run=server --overwrite namespace sagaz pod-security.kubernetes.io/enforce=restricted"); !strings.Contains(said, "postgresql-0") {
		t.Errorf("the dry run does not name the pod: %s", said)
	}
	c.sh("kubectl label --overwrite namespace sagaz pod-security.kubernetes.io/enforce=restricted")
	if said, err := c.try(strings.ReplaceAll(pod, "%s", "postgresql-2")); err == nil || !strings.Contains(said, "violates PodSecurity") {
		t.Errorf("it is not enforced: %s", said)
	}
	c.sh("kubectl apply -f k8s/namespace.yaml") // and stays
	if _, err := c.try(strings.ReplaceAll(pod, "%s", "postgresql-3")); err == nil {
		t.Error("an apply took it back")
	}
}

// TestTwiceAndAway: a second apply changes nothing, and a removal takes what is ours and nothing
// else.
func TestTwiceAndAway(t *testing.T) {
	c := start(t)
	c.sh("kubectl apply -f k8s/namespace.yaml")
	for _, object := range []string{"configmap/strangers", "secret/strangers"} {
		kind, name, _ := strings.Cut(object, "/")
		c.sh("kubectl -n sagaz create " + strings.Replace(kind, "secret", "secret generic", 1) + " " + name + " --from-literal=a=b")
	}
	c.sh("kubectl -n sagaz create -f k8s/secrets-example.yaml")
	c.sh(`kubectl -n sagaz create -f - <<'END'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data-postgresql-0, labels: {app: postgresql}}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
END`)
	c.sh("kubectl apply -k k8s/")
	c.unchanged("kubectl apply -k k8s/")

	// The Job is there still, done or not, and a new image is a new Job by the README's command.
	if said, err := c.try(`sed 's/sagaz-relay:0.1.0/sagaz-relay:0.2.0/' k8s/migration-job.yaml | kubectl apply -f -`); err == nil || !strings.Contains(said, "immutable") {
		t.Errorf("a Job was changed: %s", said)
	}
	c.sh(`sed 's/sagaz-relay:0.1.0/sagaz-relay:0.2.0/' k8s/migration-job.yaml | kubectl replace --force -f -`)
	c.want("kubectl -n sagaz get job sagaz-migration -o jsonpath='{.spec.template.spec.containers[0].image} {.spec.ttlSecondsAfterFinished}'", "sagaz-relay:0.2.0")

	// "The next apply undoes patch hpa."
	c.sh(`kubectl -n sagaz patch hpa outbox-worker-hpa --patch '{"spec":{"minReplicas":5}}'`)
	c.sh("kubectl apply -f k8s/outbox-worker.yaml")
	c.want("kubectl -n sagaz get hpa outbox-worker-hpa -o jsonpath='{.spec.minReplicas}'", "3")

	// Nobody but the API server deletes here, so a finalizer of a controller would stay: do not
	// wait for it.
	c.sh("kubectl delete -k k8s/ --wait=false")
	c.want("kubectl get namespace sagaz -o jsonpath='{.status.phase}'", "Active")
	c.want("kubectl -n sagaz get configmap,secret,pvc -o name | sort",
		"configmap/strangers\npersistentvolumeclaim/data-postgresql-0\nsecret/sagaz-broker-credentials\nsecret/sagaz-db-credentials\nsecret/strangers")
	c.want("kubectl -n sagaz get deployment,statefulset,service,hpa,networkpolicy -o name", "")
}

// TestComponents: every one of them is taken over the base, where a cluster knows its kinds.
func TestComponents(t *testing.T) {
	c := start(t)
	c.sh("kubectl apply -f k8s/namespace.yaml -f monitoring/namespace.yaml")
	for _, dir := range []string{"default-deny", "external-broker", "external-https", "external-database", "image-pull-secret", "priority-class", "tls"} {
		c.sh(`dir=$(mktemp -d) && trap 'rm -r "$dir"' EXIT && up=$(realpath --relative-to="$dir" k8s) && printf '%s\n' 'apiVersion: kustomize.config.k8s.io/v1beta1' 'kind: Kustomization' \
			"resources: [$up]" "components: [$up/components/` + dir + `]" > "$dir/kustomization.yaml" && kubectl apply --dry-run=server -k "$dir"`)
	}
	c.sh("kubectl apply -k k8s/overlays/production --dry-run=server")
	c.sh("kubectl apply -k monitoring/ --dry-run=server")
}
