//go:build cluster

package cluster

import (
	"strings"
	"testing"
)

const library = "internal/checks/cluster/testdata/library.yaml"

// spec prints an object's spec without what the cluster or the autoscaler chooses.
const spec = ` -o json | kubectl patch --local -f - --type=merge -p '{"spec":{"replicas":null,"clusterIP":null,"clusterIPs":null}}' -o jsonpath='{.spec}{"\n"}{.metadata.labels}'`

// objects are those of outbox-worker.yaml.
var objects = []string{"deployment/outbox-worker", "service/outbox-worker-metrics", "hpa/outbox-worker-hpa", "pdb/outbox-worker-pdb", "serviceaccount/outbox-worker"}

// TestFromTheLibrary goes the README's way from the library's worker to ours, however theirs was
// installed: what is there afterwards is what a fresh installation has, the number of pods stays,
// and so does the broker.
func TestFromTheLibrary(t *testing.T) {
	for name, install := range map[string]string{
		"Applied":        "kubectl apply -f " + library,
		"ServerSide":     "kubectl apply --server-side -f " + library,
		"WithoutAnyNote": "kubectl create -f " + library, // as Helm and other tools leave it
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t)
			c.sh("kubectl create namespace sagaz")
			c.sh(install)
			c.sh("kubectl -n sagaz scale deployment/outbox-worker --replicas=7") // their autoscaler
			if name == "Applied" {
				// They asked for another number once; what is applied must not bring it back.
				c.want("kubectl -n sagaz get deployment outbox-worker -o jsonpath='{.spec.replicas}'", "7")
			}
			c.sh("kubectl replace --force -f k8s/migration-job.yaml")
			c.want("kubectl -n sagaz get job sagaz-migration -o jsonpath='{.spec.template.spec.containers[*].name} {.spec.ttlSecondsAfterFinished}'", "migrate")
			said := c.sh("bash k8s/from-library.sh")
			if strings.Contains(said, "theirs") || strings.Contains(said, "DECIDE") {
				t.Errorf("it shows a password, or asks for what it could find: %s", said)
			}
			c.sh("kubectl apply -f k8s/outbox-worker.yaml")

			c.want("kubectl -n sagaz get deployment outbox-worker -o jsonpath='{.spec.replicas} {.spec.template.spec.containers[*].name}'", "7 outbox-worker")
			c.want("kubectl -n sagaz get configmap outbox-worker-config -o jsonpath='{.data}'",
				`{"BROKER_TYPE":"rabbitmq","MAX_RETRY_ATTEMPTS":"10","RABBITMQ_EXCHANGE":"orders \"quoted\"","WORKER_BATCH_SIZE":"100"}`)
			c.want("kubectl -n sagaz get secret sagaz-broker-credentials -o jsonpath='{.data.rabbitmq-url}' | base64 -d", "amqp://saga:theirs@rabbitmq:5672/")
			c.unchanged("kubectl apply -f k8s/outbox-worker.yaml")

			got := make(map[string]string)
			for _, o := range objects {
				got[o] = c.sh("kubectl -n sagaz get " + o + spec)
			}
			c.sh("kubectl delete -f k8s/outbox-worker.yaml")
			c.sh("kubectl apply -f k8s/outbox-worker.yaml")
			for _, o := range objects {
				if want := c.sh("kubectl -n sagaz get " + o + spec); got[o] != want {
					t.Errorf("%s is\n%s\nand would be, without theirs before,\n%s", o, got[o], want)
				}
			}
		})
	}
}

// TestCarriesTheBrokerOver: from wherever the library's Deployment has its broker, into where ours
// looks for it. What contradicts is asked for.
func TestCarriesTheBrokerOver(t *testing.T) {
	c := start(t)
	for _, tt := range []struct {
		name    string
		env     string // of their container
		secrets string // of sagaz-broker-credentials before
		config  string // data of the ConfigMap afterwards
		rabbit  string // rabbitmq-url afterwards
		servers string // bootstrap-servers afterwards
		asks    string // a line that begins with DECIDE has this
	}{
		{name: "url-plain", env: `[{name: BROKER_TYPE, value: rabbitmq}, {name: RABBITMQ_URL, value: "amqp://u:hush@mq/"}]`, config: `{"BROKER_TYPE":"rabbitmq"}`, rabbit: "amqp://u:hush@mq/"},
		{
			name: "broker-url-of-rabbitmq", env: `[{name: BROKER_TYPE, value: rabbitmq}, {name: BROKER_URL, valueFrom: {secretKeyRef: {name: sagaz-broker-credentials, key: bootstrap-servers}}}]`,
			secrets: `bootstrap-servers=amqp://u:hush@mq/`, config: `{"BROKER_TYPE":"rabbitmq"}`, rabbit: "amqp://u:hush@mq/", servers: "amqp://u:hush@mq/",
		},
		{name: "broker-url-of-kafka", env: `[{name: BROKER_TYPE, value: kafka}, {name: BROKER_URL, value: "kafka:9092"}]`, config: `{"BROKER_TYPE":"kafka"}`, servers: "kafka:9092"},
		{name: "another-secret", env: `[{name: BROKER_TYPE, value: rabbitmq}, {name: RABBITMQ_URL, valueFrom: {secretKeyRef: {name: theirs, key: url}}}]`, config: `{"BROKER_TYPE":"rabbitmq"}`, rabbit: "amqp://u:hush@theirs/"},
		{name: "a-configmap-of-theirs", env: `[{name: BROKER_TYPE, valueFrom: {configMapKeyRef: {name: theirs, key: broker}}}]`, config: `{"BROKER_TYPE":"rabbitmq"}`},
		{
			name: "contradiction", env: `[{name: BROKER_TYPE, value: kafka}, {name: KAFKA_BOOTSTRAP_SERVERS, value: "new:9092"}]`, secrets: `bootstrap-servers=old:9092`,
			config: `{"BROKER_TYPE":"kafka"}`, servers: "old:9092", asks: "KAFKA_BOOTSTRAP_SERVERS is not what secret sagaz-broker-credentials has",
		},
		{name: "no-type", env: `[{name: KAFKA_BOOTSTRAP_SERVERS, value: "kafka:9092"}]`, servers: "kafka:9092", asks: "has BROKER_TYPE"},
		{name: "broker-url-of-what", env: `[{name: BROKER_URL, value: "kafka:9092"}]`, asks: "BROKER_URL is one broker's address"},
		{name: "whole-secret", env: `[{name: BROKER_TYPE, value: rabbitmq}]`, config: `{"BROKER_TYPE":"rabbitmq"}`, asks: "takes all of secret/theirs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &cluster{t, c.config}
			ns := " -n " + tt.name + " "
			c.sh("kubectl create namespace " + tt.name)
			c.sh("kubectl" + ns + "create secret generic theirs --from-literal=url=amqp://u:hush@theirs/")
			c.sh("kubectl" + ns + "create configmap theirs --from-literal=broker=rabbitmq")
			if tt.secrets != "" {
				c.sh("kubectl" + ns + "create secret generic sagaz-broker-credentials --from-literal='" + tt.secrets + "'")
			}
			from := ""
			if tt.name == "whole-secret" {
				from = "envFrom: [{secretRef: {name: theirs}}], "
			}
			c.sh("kubectl" + ns + `create -f - <<'END'
apiVersion: apps/v1
kind: Deployment
metadata: {name: outbox-worker}
spec:
  selector: {matchLabels: {app: outbox-worker}}
  template:
    metadata: {labels: {app: outbox-worker}}
    spec: {containers: [{name: worker, image: sagaz, ` + from + `env: ` + tt.env + `}]}
END`)
			for _, again := range []bool{false, true} {
				said, err := c.try("bash k8s/from-library.sh " + tt.name)
				if strings.Contains(said, "hush") {
					t.Errorf("a password is shown: %s", said)
				}
				if (err != nil) != (tt.asks != "") || !strings.Contains(said, tt.asks) || strings.Contains(said, "DECIDE") != (tt.asks != "") {
					t.Errorf("it ends with %v and says %s; want it to ask for %q", err, said, tt.asks)
				}
				if again && (strings.Contains(said, "ConfigMap outbox-worker-config: ") || strings.Contains(said, "\nsecret ")) {
					t.Errorf("the second time it changes what it has done: %s", said)
				}
			}
			of := func(object, path string) string {
				return c.sh("kubectl" + ns + "get " + object + " --ignore-not-found -o go-template='" + path + "'")
			}
			if got := c.sh("kubectl" + ns + "get configmap outbox-worker-config --ignore-not-found -o jsonpath='{.data}'"); got != tt.config {
				t.Errorf("ConfigMap %s, want %s", got, tt.config)
			}
			for key, want := range map[string]string{"rabbitmq-url": tt.rabbit, "bootstrap-servers": tt.servers} {
				if got := of("secret sagaz-broker-credentials", `{{with .data}}{{with index . "`+key+`"}}{{. | base64decode}}{{end}}{{end}}`); got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
		})
	}
}
