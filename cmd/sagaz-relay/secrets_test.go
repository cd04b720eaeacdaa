package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/redact"
)

// sentinel is a part of every password here, and of no text of ours.
const sentinel = "S3NT1NEL"

// outcome runs a command line in this process and returns all that it writes, and its error as main
// prints it.
func outcome(t *testing.T, env map[string]string, args ...string) (text string, code int) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
	defer func() {
		for name := range env {
			os.Unsetenv(name)
		}
	}()
	cmd := newRoot()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := cmd.ExecuteContext(ctx); err != nil {
		return out.String() + errorText(err), exitCode(err)
	}
	return out.String(), 0
}

// everyCommand is each of them, with the least that it wants.
var everyCommand = []string{
	"run", "migrate --wait 1ms", "migrate --tune --slot --wait 1ms", "status", "status --json", "health", "health --live", "settings", "settings --all", "settings --json", "doctor", "doctor --json",
	"dead-letter list", "dead-letter show 0194f4c8-0000-7000-8000-000000000000", "dead-letter retry --all", "dead-letter discard --all", "replay --saga-id s", "verify --since 1h --queue q", "load --events 1",
	"sinks", "sinks --json", "sinks rename kafka orders", "view", "view --json", "view make v k=aggregate_id t=event_type p=payload", "view drop v", "bench --help", "demo --help", "version", "run --help",
}

func TestNoSecretOfADatabaseIsShown(t *testing.T) {
	for _, url := range []string{
		"postgresql://u:12/S3NT1NEL@host.invalid/db", "postgresql://u:/S3NT1NEL@host.invalid/db", "postgresql://u:a?S3NT1NEL@host.invalid/db", "postgresql://u:a#S3NT1NEL@host.invalid/db",
		"postgresql://u:12?x=S3NT1NEL@host.invalid/db", "postgresql://u:a@S3NT1NEL@host.invalid/db", "postgresql://u:a%S3NT1NEL@host.invalid/db", "postgresql://u:a S3NT1NEL@host.invalid/db",
		"postgresql://u:S3NT1NEL", "postgresql://u:S3NT1NEL/db", "postgresql://u:a:S3NT1NEL@host.invalid/db", "postgresql://u%3AS3NT1NEL@host.invalid/db", "postgresql://host.invalid/db?password=x&S3NT1NEL",
		"postgresql://host.invalid/db?password=x&S3NT1NEL=1", "postgresql://host.invalid:5432:S3NT1NEL/db", "postgresql:/u:S3NT1NEL@host.invalid/db", "POSTGRESQL://u:S3NT1NEL@host.invalid/db",
		"jdbc:postgresql://host.invalid/db?user=u&password=S3NT1NEL", "mysql://u:S3NT1NEL@host.invalid/db", "u:S3NT1NEL@host.invalid/db", "host=host.invalid password=my S3NT1NEL dbname=x",
		"host=host.invalid password=a'b S3NT1NEL=1", "host=host.invalid password='my S3NT1NEL", "host=u:S3NT1NEL@host.invalid dbname=x", "host=host.invalid port=S3NT1NEL",
		"host=host.invalid dbname=postgresql://u:S3NT1NEL@host.invalid/db", "user=u:S3NT1NEL host=host.invalid", "postgresql://u:S3NT1NEL@host.invalid/db?sslmode=maybe", "postgresql://u:S3NT1NEL@host.invalid/db?sslrootcert=/nowhere/S3NT1NEL",
		"host=host.invalid password=S3NT1NEL sslmode=maybe", "postgresql://u:p@host.invalid/db\nS3NT1NEL", "service=S3NT1NEL",
	} {
		for _, command := range everyCommand {
			text, code := outcome(t, map[string]string{"DATABASE_URL": url, "BROKER_TYPE": "stdout"}, strings.Fields(command)...)
			if strings.Contains(text, sentinel) {
				t.Errorf("%s with %q shows it:\n%s", command, url, text)
			}
			if harmless := strings.HasSuffix(command, "--help") || command == "version"; harmless != (code == 0) || !harmless && code != exitConfig {
				t.Errorf("%s with %q: exit code %d", command, url, code)
			}
		}
	}
}

// A well-formed address whose server is not there is reported without its password, too.
func TestNoSecretOfAServerThatIsAwayIsShown(t *testing.T) {
	passFile := writeFile(t, "pgpass", "127.0.0.1:1:*:*:S3NT1NEL\n")
	service := writeFile(t, "services", "[shop]\nhost=127.0.0.1\nport=1\npassword=S3NT1NEL\n")
	for _, env := range []map[string]string{
		{"DATABASE_URL": "postgresql://u:S3NT1NEL@127.0.0.1:1/db"},
		{"DATABASE_URL": "postgresql://u:a%2FS3NT1NEL%40@127.0.0.1:1,127.0.0.1:2/db"},
		{"DATABASE_URL": "host=127.0.0.1 port=1 user=u password='it\\'s S3NT1NEL' dbname=db"},
		{"DATABASE_URL": "postgresql://127.0.0.1:1/db?password=S3NT1NEL&user=u"},
		{"DATABASE_URL": "postgresql://u@127.0.0.1:1/db", "PGPASSFILE": passFile},
		{"DATABASE_URL": "postgresql://u@127.0.0.1:1/db", "PGPASSWORD": "S3NT1NEL"},
		{"DATABASE_URL": "service=shop user=u", "PGSERVICEFILE": service},
		{"DATABASE_URL": "postgresql:///db", "PGHOST": "u:S3NT1NEL@127.0.0.1"},
		{"DATABASE_URL": "postgresql://u@127.0.0.1:1/", "PGDATABASE": "postgresql://u:S3NT1NEL@127.0.0.1/db"},
	} {
		env["BROKER_TYPE"] = "stdout"
		for _, command := range everyCommand {
			if command == "run" || command == "load --events 1" { // they wait for the database
				continue
			}
			text, _ := outcome(t, env, strings.Fields(command)...)
			if strings.Contains(text, sentinel) {
				t.Errorf("%s with %v shows it:\n%s", command, env, text)
			}
		}
	}
}

func TestNoSecretOfABrokerIsShown(t *testing.T) {
	for sink, list := range map[string][]map[string]string{
		"rabbitmq": oneEach("RABBITMQ_URL", "amqp://u:12/S3NT1NEL@host.invalid/v", "amqp://u:/S3NT1NEL@host.invalid", "amqp://u:a?S3NT1NEL@host.invalid", "amqp://u:a#S3NT1NEL@host.invalid", "amqp://u:a@S3NT1NEL@host.invalid/",
			"amqp://u:a%S3NT1NEL@host.invalid/", "amqp://u:a S3NT1NEL@host.invalid/", "amqp://u:S3NT1NEL", "amqp://host.invalid/a/S3NT1NEL", "amqp://host.invalid/?x&S3NT1NEL", "amqp:/u:S3NT1NEL@host.invalid",
			"rabbitmq://u:S3NT1NEL@host.invalid", "u:S3NT1NEL@host.invalid"),
		"kafka": append(oneEach("KAFKA_BOOTSTRAP_SERVERS", "u:S3NT1NEL@host.invalid:9092", "u:12,S3NT1NEL@host.invalid:9092", "host.invalid:S3NT1NEL", "u:12/S3NT1NEL@host.invalid:9092", "kafka://u:S3NT1NEL@host.invalid",
			"S3NT1NEL://host.invalid", "host.invalid:9092/S3NT1NEL"), oneEach("BROKER_URL", "amqp://u:S3NT1NEL@host.invalid/", "SASL_SSL://u:S3NT1NEL@host.invalid:9093")...),
		"stdout": append(append(oneEach("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:S3NT1NEL@host.invalid:4318", "http://u:12/S3NT1NEL@host.invalid:4318", "http://u:S3NT1NEL", "http://host.invalid?S3NT1NEL", "http://host.invalid:4318/?api-key=S3NT1NEL", "u:S3NT1NEL@host.invalid"),
			oneEach("RELAY_HTTP_TOKEN", "S3NT1NEL", "short S3NT1NEL with spaces", "S3NT1NEL\x01")...),
			oneEach("RELAY_HTTP_ADDR", "http://u:S3NT1NEL@host.invalid", "u:S3NT1NEL@host.invalid")...),
		"file": oneEach("RELAY_KAFKA_TLS_KEY_FILE", "-----BEGIN PRIVATE KEY-----\nS3NT1NEL\n-----END PRIVATE KEY-----"),
	} {
		for _, env := range list {
			env["DATABASE_URL"], env["BROKER_TYPE"], env["METRICS_PORT"] = "postgresql://relay@127.0.0.1:1/shop", sink, "0"
			for _, command := range everyCommand {
				// they know no broker
				if strings.HasPrefix(command, "load") || strings.HasPrefix(command, "migrate") || strings.HasSuffix(command, "--help") {
					continue
				}
				text, code := outcome(t, env, strings.Fields(command)...)
				if strings.Contains(text, sentinel) {
					t.Errorf("%s with %v shows it:\n%s", command, env, text)
				}
				if uses := command == "run" || strings.HasPrefix(command, "settings"); uses && code != exitConfig {
					t.Errorf("%s with %v: exit code %d, want %d", command, env, code, exitConfig)
				}
			}
		}
	}
	// Not used, so not refused; settings shows it all the same.
	for _, env := range []map[string]string{
		{"KAFKA_BOOTSTRAP_SERVERS": "u:S3NT1NEL@host.invalid:9092"},
		{"RABBITMQ_URL": "amqp://u:S3NT1NEL@host.invalid/"},
		{"BROKER_URL": "amqp://u:S3NT1NEL@host.invalid/"},
		{"KAFKA_SASL_PASSWORD": "S3NT1NEL"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://u:S3NT1NEL@host.invalid:4318", "OTEL_SDK_DISABLED": "true"},
		{"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20S3NT1NEL"},
	} {
		env["BROKER_TYPE"] = "file"
		for _, command := range []string{"settings", "settings --json", "settings --all"} {
			if text, code := outcome(t, env, strings.Fields(command)...); strings.Contains(text, sentinel) || code != 0 {
				t.Errorf("%s with %v (exit code %d) shows it:\n%s", command, env, code, text)
			}
		}
	}
}

func oneEach(name string, values ...string) (envs []map[string]string) {
	for _, v := range values {
		envs = append(envs, map[string]string{name: v})
	}
	return envs
}

// Secrets in places where they do not belong: in place of a file's name, in YAML, on the command
// line.
func TestNoMisplacedSecretIsShown(t *testing.T) {
	write := func(text string) string { return writeFile(t, "relay.yaml", text) }
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "RELAY_LANES"), []byte("S3NT1NEL@x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		env  map[string]string
		args []string
	}{
		{map[string]string{"DATABASE_URL_FILE": "postgresql://u:S3NT1NEL@host.invalid/db"}, []string{"status"}},
		{map[string]string{"KAFKA_SASL_PASSWORD_FILE": "S3NT1NEL"}, []string{"run"}},
		{map[string]string{"RELAY_HTTP_TOKEN_FILE": "/S3NT1NEL"}, []string{"settings"}},
		{map[string]string{"RELAY_SECRETS_DIR": "postgresql://u:S3NT1NEL@host.invalid/db"}, []string{"settings"}},
		{map[string]string{"RELAY_SECRETS_DIR": dir}, []string{"settings"}},
		{map[string]string{"RELAY_LANES": "postgresql://u:S3NT1NEL@host.invalid/db"}, []string{"settings"}},
		{map[string]string{"RELAY_postgresql://u:S3NT1NEL@host.invalid/db": "1"}, []string{"settings"}},
		{nil, []string{"settings", "--config", write("postgresql://u:S3NT1NEL@host.invalid/db")}},
		{nil, []string{"settings", "--config", write("DATABASE_URL postgresql://u:S3NT1NEL@host.invalid/db: 1")}},
		{nil, []string{"settings", "--config", write("DATABASE_URL: *S3NT1NEL")}},
		{nil, []string{"settings", "--config", write("- S3NT1NEL")}},
		{nil, []string{"settings", "--config", write("S3NT1NEL")}},
		{nil, []string{"settings", "--config", write("KAFKA_SASL_PASSWORD: {S3NT1NEL: 1}")}},
		{nil, []string{"settings", "--config", write("KAFKA_SASL_PASSWORD: \"S3NT1NEL")}},
		{nil, []string{"settings", "--config", write("DATABASE_URL: postgresql://u:12/S3NT1NEL@host.invalid/db")}},
		{nil, []string{"settings", "--config", write("\"KAFKA_SASL_PASSWORD=S3NT1NEL\": x")}},
		{nil, []string{"settings", "--config", "postgresql://u:S3NT1NEL@host.invalid/db"}},
		{nil, []string{"run", "postgresql://u:S3NT1NEL@host.invalid/db"}},
		{nil, []string{"postgresql://u:S3NT1NEL@host.invalid/db"}},
		{nil, []string{"dead-letter", "u:S3NT1NEL@host.invalid/db"}},
		{nil, []string{"dead-letter", "show", "postgresql://u:S3NT1NEL@host.invalid/db"}},
		{nil, []string{"migrate", "--wait=postgresql://u:S3NT1NEL@host.invalid/db"}},
		{nil, []string{"run", "--database-url=postgresql://u:S3NT1NEL@host.invalid/db"}},
		{map[string]string{"DATABASE_URL": "postgresql://127.0.0.1:1/db"}, []string{"verify", "--since", "postgresql://u:S3NT1NEL@host.invalid/db"}},
		{nil, []string{"replay", "--since", "postgresql://u:S3NT1NEL@host.invalid/db"}},
		{nil, []string{"dead-letter", "list", "--state", "postgresql://u:S3NT1NEL@host.invalid/db"}},
	} {
		text, code := outcome(t, tt.env, tt.args...)
		if strings.Contains(text, sentinel) {
			t.Errorf("%d: %v %v shows it:\n%s", i, tt.env, tt.args, text)
		}
		if code != exitConfig {
			t.Errorf("%d: %v %v: exit code %d, want %d", i, tt.env, tt.args, code, exitConfig)
		}
	}
}

// A log line that carries a secret all the same is written without it.
func TestLogIsRedacted(t *testing.T) {
	t.Cleanup(func() { redacted.Know(nil) })
	redacted.Know([]string{"hunter2-S3NT1NEL"})
	var out bytes.Buffer
	newLogger(&out, 3).Info("dial hunter2-S3NT1NEL", "error", fmt.Errorf("x: %w", os.ErrNotExist), "url", "http://u:a/b@h")
	if text := out.String(); strings.Contains(text, sentinel) || strings.Contains(text, "a/b") || !strings.Contains(text, redact.Hidden) {
		t.Errorf("got %s", text)
	}
}
