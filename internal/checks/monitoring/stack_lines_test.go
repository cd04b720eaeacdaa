package monitoring

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grafana/alloy/syntax/ast"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/checks/beside"
	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

func TestMain(m *testing.M) { os.Exit(brokertest.Run(pgtest.Closing(m))) }

// Every LogQL expression of README.md, as it stands there, and of the dashboards finds lines that a real relay has written, with the labels and the
// metadata that Alloy's configuration makes of them. Loki itself is not here: what the expressions mean is evaluated by find, below.
func TestExpressionsFindLines(t *testing.T) {
	lines := relayLines(t)
	asked := documentedLogQL(t)
	files, err := filepath.Glob(filepath.Join(product.Root(), "monitoring", "grafana-dashboard-*.json"))
	if err != nil {
		t.Fatal(err)
	}
	filled := strings.NewReplacer("$saga_id", "abc-123", "$correlation_id", "order-4711", "$search", "event", "$namespace", ".+", "$pod", ".+", "$level", ".+")
	for _, file := range files {
		var d any
		if err := json.Unmarshal(product.Read(t, filepath.Join("monitoring", filepath.Base(file))), &d); err != nil {
			t.Fatal(err)
		}
		for _, expr := range lokiExpressions(d) {
			asked = append(asked, logQuestion{filepath.Base(file), filled.Replace(expr), base})
		}
	}
	if len(asked) < 18 {
		t.Fatalf("only %d expressions", len(asked))
	}
	product.Eventually(t, 2*time.Minute, "each expression finds lines", func() (wrong string) {
		text := lines()
		made := map[string][]logEntry{}
		for _, q := range asked {
			key := strings.Join(q.files, " ")
			if made[key] == nil {
				made[key] = entries(t, text, q.files)
			}
			if !find(t, q.expr, made[key]) {
				wrong += fmt.Sprintf("\n%s: %s finds nothing", q.where, q.expr)
			}
		}
		return wrong
	})

	// A saga's way is told from its receipt to its mark, by either of its two ids, and by its trace.
	all := entries(t, lines(), base)
	for _, expr := range []string{`{namespace="sagaz"} | saga_id="abc-123"`, `{namespace="sagaz"} | correlation_id="order-4711"`, `{namespace="sagaz"} | trace_id="4bf92f3577b34da6a3ce929d0e0e4736"`} {
		for _, message := range []string{"event received", "event published", "event marked"} {
			if !find(t, expr+` |= "`+message+`"`, all) {
				t.Errorf("%s does not tell %q", expr, message)
			}
		}
	}
	for _, e := range all {
		if len(e.labels) > 6 || e.labels["saga_id"] != "" {
			t.Fatalf("a stream has the labels %v", e.labels)
		}
	}
}

// logQuestion is an expression, and the configuration of Alloy with which it is to work.
type logQuestion struct {
	where, expr string
	files       []string
}

func documentedLogQL(t *testing.T) (all []logQuestion) {
	t.Helper()
	section, inside := "", false
	for i, line := range strings.Split(string(product.Read(t, "monitoring/README.md")), "\n") {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = title
		}
		if strings.HasPrefix(line, "```") {
			inside = line == "```logql"
			continue
		}
		if !inside || strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		files := base
		if section == "How many streams" {
			files = withSagaIDs
		}
		all = append(all, logQuestion{fmt.Sprintf("README.md:%d", i+1), line, files})
	}
	return all
}

// relayLines runs a relay at DEBUG through what the expressions ask for, with the ids that they name: a saga that is delivered, events that no queue
// takes until they are dead letters, and a broker that does not answer in time. It returns what the relay has written so far.
func relayLines(t *testing.T) func() string {
	t.Helper()
	db := pgtest.NewAt(t, pgtest.OwnServer(t, pgtest.Newest, nil).DSN("postgres"), pgtest.Migrated())
	rabbit := brokertest.RabbitMQ(t)
	proxy := pgtest.NewProxy(t, rabbit.URL)
	exchange := fmt.Sprintf("lines-%d", time.Now().UnixNano())
	conn, err := amqp.Dial(rabbit.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err == nil {
		err = ch.ExchangeDeclare(exchange, "topic", true, false, false, false, nil)
	}
	if err == nil {
		_, err = ch.QueueDeclare(exchange, false, true, true, false, nil)
	}
	if err == nil {
		err = ch.QueueBind(exchange, "OrderCreated", exchange, false, nil)
	}
	if err != nil {
		t.Fatal(err)
	}

	cmd := exec.Command(product.Binary(t), "run")
	cmd.Env = []string{
		"HOME=/nonexistent", "DATABASE_URL=" + db.DSN, "BROKER_TYPE=rabbitmq", "RABBITMQ_URL=" + proxy.DSN, "RABBITMQ_EXCHANGE=" + exchange, "RELAY_HTTP_ADDR=127.0.0.1:0",
		"LOG_LEVEL=DEBUG", "MAX_RETRIES=3", "RELAY_UNROUTABLE_PATIENCE=0s", "INITIAL_RETRY_DELAY_SECONDS=1", "MAX_RETRY_DELAY_SECONDS=1", "RELAY_RABBITMQ_CONFIRM_TIMEOUT=1s", "RELAY_PUBLISH_TIMEOUT=3s",
	}
	cmd.Dir = t.TempDir()
	_, said := beside.Start(t, "the relay", cmd)
	insert := func(eventType string) {
		t.Helper()
		_, err := db.Pool.Exec(t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, headers) VALUES (gen_random_uuid(), 'abc-123', $1, $1, '{}',
			'{"saga_name": "order", "step_name": "pay", "correlation_id": "order-4711", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}')`, eventType)
		if err != nil {
			t.Fatal(err)
		}
	}
	says := func(what string) {
		t.Helper()
		product.Eventually(t, 2*time.Minute, "the relay says "+what, func() string {
			if strings.Contains(said.String(), what) {
				return ""
			}
			return "not yet"
		})
	}
	insert("OrderCreated")
	insert("OrderLost")
	says(`"message":"event marked"`)
	says(`"message":"event given up: it is a dead letter"`)
	proxy.Freeze()
	insert("OrderCreated")
	says(`"error_type":"timeout"`)
	proxy.Thaw()
	proxy.Cut()
	return said.String
}

// logEntry is a line as Loki would hold it.
type logEntry struct {
	labels, metadata map[string]string
	line             string
}

// entries makes of lines what Alloy does: labels by its relabel rules from what discovery knows of the relay's pod, the rest by its stages.
func entries(t *testing.T, text string, files []string) (all []logEntry) {
	t.Helper()
	c := alloyMakes(t, files...)
	template := workerTemplate(t)
	discovered := podLabels("sagaz", "outbox-worker-x", template, template.Spec.Containers[0].Ports[0])
	target := make(map[string]string)
	alloyBlocks(t, files, func(_, name string, b *ast.BlockStmt) {
		to, ok := attribute(b, "target_label").(*ast.LiteralExpr)
		from, ok2 := attribute(b, "source_labels").(*ast.ArrayExpr)
		if name == "rule" && ok && ok2 {
			target[strings.Trim(to.Value, `"`)] = discovered[strings.Trim(from.Elements[0].(*ast.LiteralExpr).Value, `"`)]
		}
	})
	for line := range strings.Lines(text) {
		var keys map[string]any
		if !strings.HasSuffix(line, "\n") {
			continue // not written to its end
		}
		if err := json.Unmarshal([]byte(line), &keys); err != nil {
			t.Fatalf("the relay wrote a line that is not JSON: %s", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(keys[c.read["ts"]])); err != nil {
			t.Fatalf("stage.timestamp could not read %s: %v", line, err)
		}
		e := logEntry{make(map[string]string), make(map[string]string), strings.TrimSpace(line)}
		for name, value := range target {
			e.labels[name] = value
		}
		for name, key := range c.read {
			if value, ok := keys[key]; ok && slices.Contains(c.labels, name) {
				e.labels[name] = fmt.Sprint(value)
			} else if ok && slices.Contains(c.metadata, name) {
				e.metadata[name] = fmt.Sprint(value)
			}
		}
		all = append(all, e)
	}
	return all
}

var (
	logQuery   = regexp.MustCompile("\\{([^{}]*)\\}((?:\"(?:[^\"\\\\]|\\\\.)*\"|`[^`]*`|[^\\[\"`])*)")
	logStage   = regexp.MustCompile("\\s*(\\|=|\\|~|\\|)\\s*((?:\"(?:[^\"\\\\]|\\\\.)*\"|`[^`]*`|[^|\"`])*)")
	logPair    = regexp.MustCompile("^\\s*(\\w+)\\s*(=~|!=|=|>)\\s*(\"(?:[^\"\\\\]|\\\\.)*\"|`[^`]*`|\\d+)[\\s)]*$")
	logRenamed = regexp.MustCompile(`^json(?:\s+(\w+)="(\w+)")?\s*$`)
)

// find says whether an expression's selector and stages let through any line. It knows as much of LogQL as README.md and the dashboards use: what it
// does not know fails the test. What aggregates around it, and over which time, it leaves away.
func find(t *testing.T, expr string, all []logEntry) bool {
	t.Helper()
	query := logQuery.FindStringSubmatch(expr)
	if query == nil {
		t.Fatalf("%s has no selector", expr)
	}
	for _, e := range all {
		fields := make(map[string]string)
		for _, known := range []map[string]string{e.labels, e.metadata} {
			for name, value := range known {
				fields[name] = value
			}
		}
		passes := true
		for _, m := range strings.Split(query[1], ",") {
			passes = passes && holds(t, expr, m, e.labels)
		}
		for _, s := range logStage.FindAllStringSubmatch(query[2], -1) {
			stage := strings.TrimSpace(s[2])
			renamed := logRenamed.FindStringSubmatch(stage)
			switch {
			case s[1] == "|=":
				passes = passes && strings.Contains(e.line, unquoted(stage))
			case s[1] == "|~":
				passes = passes && regexp.MustCompile(unquoted(stage)).MatchString(e.line)
			case renamed != nil:
				var keys map[string]any
				if err := json.Unmarshal([]byte(e.line), &keys); err != nil {
					t.Fatal(err)
				}
				for key, value := range keys {
					if _, taken := fields[key]; !taken && (renamed[1] == "" || renamed[2] == key) {
						fields[key] = fmt.Sprint(value)
					}
				}
			case strings.HasPrefix(stage, "line_format "):
				for _, m := range regexp.MustCompile(`\{\{\.(\w+)\}\}`).FindAllStringSubmatch(stage, -1) {
					passes = passes && fields[m[1]] != ""
				}
			default:
				passes = passes && holds(t, expr, stage, fields)
			}
		}
		if passes {
			return true
		}
	}
	return false
}

// holds evaluates name op value.
func holds(t *testing.T, expr, text string, fields map[string]string) bool {
	t.Helper()
	m := logPair.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("%s: this test cannot evaluate %q", expr, text)
	}
	got, want := fields[m[1]], unquoted(m[3])
	switch m[2] {
	case "=":
		return got == want
	case "!=":
		return got != want
	case "=~":
		return regexp.MustCompile("^(?:" + want + ")$").MatchString(got)
	}
	a, err := strconv.ParseFloat(got, 64)
	b, _ := strconv.ParseFloat(want, 64)
	return err == nil && a > b
}

func unquoted(text string) string {
	if value, err := strconv.Unquote(strings.TrimSpace(text)); err == nil {
		return value
	}
	return strings.TrimSpace(text)
}
