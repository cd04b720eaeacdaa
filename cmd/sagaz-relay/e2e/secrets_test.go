package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// A relay that runs, with a secret in every setting that can hold one and nobody behind most of the
// addresses, writes none of them: not into its log at DEBUG, not into metrics, page and health.
func TestSecretsOfARunningRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const sentinel = "S3NT1NEL/@:"
	escaped := url.QueryEscape(sentinel)
	ports, err := child.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	away := fmt.Sprint("127.0.0.1:", ports[0])
	env := settings{
		"BROKER_TYPE": "kafka,rabbitmq,file", "RELAY_FILE_PATH": filepath.Join(t.TempDir(), "events.jsonl"), "LOG_LEVEL": "DEBUG", "RELAY_SINK_ISOLATION": "1s",
		"RABBITMQ_URL":            "amqp://u:" + escaped + "@" + away + "/",
		"KAFKA_BOOTSTRAP_SERVERS": away, "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": sentinel,
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + away, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20" + escaped,
		"RELAY_HTTP_TOKEN": sentinel + "0123456789",
	}
	p := w.relay("relay-a", env)
	p.waitLog("the broker cannot be used, events wait for it")
	w.insert(row{key: "k", topic: "t"})
	p.waitLog("sink isolated: its events go to the ledger until it is back")
	shown := p.stderr.String()
	addr := p.waitLog("serving metrics and health").text("address")
	for _, path := range []string{"/", "/metrics", "/status.json", "/health/ready", "/health/live", "/page.js"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("any", sentinel+"0123456789")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		if err := res.Write(&text); err != nil {
			t.Fatal(err)
		}
		if len(text.String()) < 20 || res.StatusCode == http.StatusUnauthorized {
			t.Errorf("%s: %s", path, res.Status)
		}
		shown += text.String()
	}
	if at := strings.Index(shown, "S3NT1NEL"); at >= 0 {
		t.Errorf("a secret is shown: …%s…", shown[max(0, at-200):at+20])
	}
	if strings.Contains(shown, "(hidden)") {
		at := strings.Index(shown, "(hidden)")
		t.Errorf("something printed a secret, and only the last redaction caught it: …%s…", shown[max(0, at-200):at+20])
	}
}
