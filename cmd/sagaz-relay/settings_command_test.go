package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/variables"
)

func TestSettingsCommand(t *testing.T) {
	secret := writeFile(t, "secret", "postgresql://relay:hush1@db/app\n")
	config := writeFile(t, "relay.yaml", "RELAY_LANES: 9\n")
	env := map[string]string{
		"DATABASE_URL_FILE": secret, "BROKER_URL": "amqp://relay:hush2@mq/", "WORKER_BATCH_SIZE": "17", "KAFKA_SASL_PASSWORD": "hush3", "BROKER_TYPE": "rabbitmq,file",
		"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hush4",
	}
	var environ []string
	for name, value := range env {
		environ = append(environ, name+"="+value)
	}
	run := func(args ...string) string {
		t.Helper()
		var out strings.Builder
		cmd := newSettings(func() (*settings, error) {
			return loadSettings(func(name string) (string, bool) { v, ok := env[name]; return v, ok }, environ, config)
		})
		cmd.SetArgs(args)
		cmd.SetOut(&out)
		if err := cmd.Execute(); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "hush") {
			t.Errorf("a secret is shown:\n%s", out.String())
		}
		return out.String()
	}

	var got []string
	for _, line := range strings.Split(strings.TrimSpace(run()), "\n") {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"SETTING VALUE FROM",
		"DATABASE_URL (set) DATABASE_URL_FILE",
		"BROKER_TYPE rabbitmq,file BROKER_TYPE",
		"RELAY_LANES 9 RELAY_LANES in --config",
		"BATCH_SIZE 17 WORKER_BATCH_SIZE",
		"KAFKA_BOOTSTRAP_SERVERS amqp://mq/ BROKER_URL",
		"KAFKA_SASL_PASSWORD (set) KAFKA_SASL_PASSWORD",
		"RABBITMQ_URL (set) BROKER_URL",
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL grpc OTEL_EXPORTER_OTLP_PROTOCOL",
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS (set) OTEL_EXPORTER_OTLP_HEADERS",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	var shown []shownSetting
	if err := json.Unmarshal([]byte(run("--json")), &shown); err != nil {
		t.Fatal(err)
	}
	if len(shown) != len(allVariables()) {
		t.Errorf("%d settings as JSON, want %d", len(shown), len(allVariables()))
	}
	for _, s := range shown {
		if s.Names[0] == "METRICS_PORT" && (s.Default != "8000" || s.Value != "8000" || s.Source != "") {
			t.Errorf("a setting with its default: %+v", s)
		}
	}
	if all := run("--all"); !strings.Contains(all, "METRICS_PORT") || strings.Count(all, "\n") != len(shown)+1 {
		t.Errorf("--all prints\n%s", all)
	}
}

// With a name the command explains, whatever is set.
func TestSettingsExplained(t *testing.T) {
	env := map[string]string{"RELAY_LANES": "none", "RELAY_NO_SUCH": "1"}
	for name, want := range map[string]string{
		"RELAY_LANES":                  "RELAY_LANES  [4]\n    The number of ordered lanes per sink. One key always uses one lane, so more lanes publish",
		"WORKER_BATCH_SIZE":            "BATCH_SIZE or WORKER_BATCH_SIZE  [1000]\n    The most events",
		"RELAY_SINK_ORDERS_TOPIC_WAIT": "RELAY_KAFKA_TOPIC_WAIT  [5s]\n    How long to wait",
		"RELAY_SINK_ORDERS_KIND":       "RELAY_SINKS\n    Lists sinks with names",
		"RELAY_MARK_LINGER":            "RELAY_MARK_LINGER  [20ms]\n    RELAY_MARK_BATCH is the most rows marked in one transaction, RELAY_MARK_LINGER the",
	} {
		if text, code := outcome(t, env, "settings", name); code != 0 || !strings.HasPrefix(text, want) {
			t.Errorf("settings %s: exit code %d\n%s\nwant\n%s", name, code, text, want)
		}
	}
	for _, v := range allVariables() {
		if explained[v.names[0]] == "" {
			t.Errorf("%s is not explained", v.names[0])
		}
	}
	if text, code := outcome(t, nil, "settings", "RELAY_LANE"); code != exitConfig || !strings.Contains(text, "RELAY_LANE: no such setting: did you mean RELAY_LANES?") {
		t.Errorf("no such setting: exit code %d\n%s", code, text)
	}
}

// settings refuses what run refuses, and prints what is set all the same.
func TestSettingsAreValidated(t *testing.T) {
	for name, value := range map[string]string{
		"RELAY_MODE": "foo", "RELAY_LANES": "0", "LOG_LEVEL": "LOUD", "RELAY_ENVELOPE": "paper", "RELAY_MARK": "erase", "BROKER_TYPE": "pigeon", "METRICS_PORT": "70000", "RELAY_LEASE_TTL": "1ms",
	} {
		for _, command := range []string{"settings", "settings --json"} {
			out, err := execute(t, map[string]string{name: value}, strings.Fields(command)...)
			if err == nil || exitCode(err) != exitConfig || !strings.Contains(err.Error(), name) {
				t.Errorf("%s=%s: %s ends with %v, want exit code 2 and its name", name, value, command, err)
			}
			if !strings.Contains(out, name) {
				t.Errorf("%s=%s: %s does not print it", name, value, command)
			}
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
			t.Setenv(name, "")
		}
	}
	if text, code := outcome(t, nil, "settings"); code != 0 || !strings.Contains(text, "note: DATABASE_URL is not set") || !strings.Contains(text, "note: KAFKA_BOOTSTRAP_SERVERS is not set") {
		t.Errorf("nothing set: exit code %d\n%s", code, text)
	}
}

// A variable that is called almost as a setting may be one: it is reported, with the name that was
// meant.
func TestTypos(t *testing.T) {
	for name, want := range map[string]string{
		"MAX_RETRYS": "MAX_RETRIES", "DATABSE_URL": "DATABASE_URL", "BATCHSIZE": "BATCH_SIZE", "KAFKA_BOOTSTRAP_SERVER": "KAFKA_BOOTSTRAP_SERVERS", "RABBITMQ_URI": "RABBITMQ_URL", "BROKER_TYP": "BROKER_TYPE",
		"METRIC_PORT": "METRICS_PORT", "LOGLEVEL": "LOG_LEVEL", "KAFKA_SASL_PASWORD": "KAFKA_SASL_PASSWORD", "WORKERID": "WORKER_ID",
		"PATH": "", "HOME": "", "KAFKA_OTHER": "", "OTEL_BLRP_SCHEDULE_DELAY": "", "OTEL_METRICS_EXPORTER": "", "DATABASE_URL": "", "MAX_RETRIES_X_Y": "",
	} {
		v := variables.New(func(string) (string, bool) { return "", false }, "")
		for _, c := range defaultSettings().configs() {
			v.Fill(c)
		}
		got := strings.Join(v.Typos([]string{name + "=S3NT1NEL", "METRIC_PORT=tcp://10.0.0.1:80", name + "S="}), "\n")
		if strings.Contains(got, sentinel) {
			t.Errorf("%s: the value is shown: %s", name, got)
		}
		if want == "" && got != "" || want != "" && got != name+" is set and is no setting: did you mean "+want+"?" {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if text, code := outcome(t, map[string]string{"MAX_RETRYS": "3", "DATABASE_URL": "postgresql://127.0.0.1:1/x"}, "status"); code != exitFailure || !strings.Contains(text, "warning: MAX_RETRYS is set") {
		t.Errorf("status: exit code %d\n%s", code, text)
	}
}
