package main

import (
	"encoding/json"
	"strings"
	"testing"
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
		"KAFKA_BOOTSTRAP_SERVERS (set) BROKER_URL",
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
