package monitoring

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

var update = flag.Bool("update", false, "write monitoring/components/prometheus-operator/prometheus-rule.yaml from monitoring/prometheus-alerts.yaml")

const ruleHead = `# Made from prometheus-alerts.yaml: cd internal/checks && go test ./monitoring -run OperatorRules -update
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: outbox-worker
  namespace: sagaz
  labels:
    app: outbox-worker
    app.kubernetes.io/name: outbox-worker
    app.kubernetes.io/part-of: sagaz
    # kube-prometheus-stack looks only at what carries its release's name; kube-prometheus at these two.
    release: kube-prometheus-stack
    prometheus: k8s
    role: alert-rules
spec:
`

// The operator's rules are those of the plain file, indented below spec.
func TestOperatorRules(t *testing.T) {
	text := ruleHead
	for line := range strings.Lines(string(product.Read(t, "monitoring/prometheus-alerts.yaml"))) {
		if line != "\n" {
			line = "  " + line
		}
		text += line
	}
	path := filepath.Join(product.Root(), "monitoring", "components", "prometheus-operator", "prometheus-rule.yaml")
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := product.Read(t, "monitoring/components/prometheus-operator/prometheus-rule.yaml"); string(got) != text {
		t.Error("prometheus-rule.yaml is not prometheus-alerts.yaml: cd internal/checks && go test ./monitoring -run OperatorRules -update")
	}
}
