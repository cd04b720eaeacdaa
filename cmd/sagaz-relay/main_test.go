package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

func TestMain(m *testing.M) {
	// The tests see the settings that they make, not those of who runs them.
	for _, v := range allVariables() {
		for _, name := range v.names {
			os.Unsetenv(name)
			os.Unsetenv(name + "_FILE")
		}
		os.Unsetenv(v.fallback)
	}
	goleak.VerifyTestMain(pgtest.Closing(m))
}

// execute runs a command line in this process, without ever reaching a database.
func execute(t *testing.T, env map[string]string, args ...string) (output string, err error) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
	cmd := newRoot()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(args)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // run would go on for ever
	defer cancel()
	err = cmd.ExecuteContext(ctx)
	return out.String(), err
}

func TestExitCodes(t *testing.T) {
	const database = "postgresql://relay:s3cr3tword@127.0.0.1:1/shop"
	for _, tt := range []struct {
		name string
		env  map[string]string
		args string
		code int
		want string
	}{
		{"Help", nil, "--help", 0, ""},
		{"NoCommand", nil, "", 0, ""},
		{"Version", nil, "version", 0, ""},
		{"UnknownCommand", nil, "frobnicate", exitConfig, `unknown command "frobnicate"`},
		{"MistypedCommand", nil, "migrat", exitConfig, "migrate"},
		{"UnknownFlag", nil, "run --frobnicate", exitConfig, "see: sagaz-relay run --help"},
		{"UnknownFlagOfTheRoot", nil, "--frobnicate", exitConfig, "see: sagaz-relay --help"},
		{"BadFlagValue", nil, "migrate --wait soon", exitConfig, "--wait"},
		{"Argument", nil, "run now", exitConfig, `takes no argument, got "now"`},
		{"NoDatabase", nil, "run", exitConfig, "DATABASE_URL: not set"},
		{"NoDatabaseToMigrate", nil, "migrate", exitConfig, "DATABASE_URL: not set"},
		{"NoDatabaseToLookAt", nil, "status", exitConfig, "DATABASE_URL: not set"},
		{"BadDatabase", map[string]string{"DATABASE_URL": "shop"}, "migrate", exitConfig, "DATABASE_URL: cannot be read"},
		{"BadSetting", map[string]string{"DATABASE_URL": database, "BATCH_SIZE": "many", "BROKER_TYPE": "stdout"}, "run", exitConfig, "BATCH_SIZE=many: want a whole number"},
		{"UnknownBroker", map[string]string{"DATABASE_URL": database, "BROKER_TYPE": "carrier-pigeon"}, "run", exitConfig, "BROKER_TYPE=carrier-pigeon"},
		{"UnknownVariable", map[string]string{"RELAY_LANE": "8"}, "run", exitConfig, "did you mean RELAY_LANES?"},
		{"NoConfigFile", nil, "run --config /nowhere/relay.yaml", exitConfig, "--config: open /nowhere/relay.yaml"},
		{"VerifyWithoutSince", map[string]string{"DATABASE_URL": database}, "verify", exitConfig, "--since is not given"},
		{"VerifySinceWhen", map[string]string{"DATABASE_URL": database}, "verify --since yesterday", exitConfig, "--since=yesterday"},
		{"VerifyUntilWhen", map[string]string{"DATABASE_URL": database}, "verify --since 2h --until -1h", exitConfig, "--until=-1h"},
		{"VerifyStdout", map[string]string{"DATABASE_URL": database, "BROKER_TYPE": "stdout"}, "verify --since 2h", exitConfig, "stdout cannot be read back"},
		{"VerifyUnknownSink", map[string]string{"DATABASE_URL": database}, "verify --since 2h --sink pigeon", exitConfig, "no sink is called pigeon"},
		{"VerifyExchange", map[string]string{"DATABASE_URL": database, "BROKER_TYPE": "rabbitmq"}, "verify --since 2h", exitConfig, "rabbitmq needs --queue"},
		{"VerifyDatabaseAway", map[string]string{"DATABASE_URL": database}, "verify --since 2026-11-23T07:00:00Z --sink file", exitFailure, "connect to 127.0.0.1:1/shop as relay"},
		{"DatabaseAway", map[string]string{"DATABASE_URL": database}, "migrate --wait 1ms", exitFailure, "connect to 127.0.0.1:1/shop as relay"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := execute(t, tt.env, strings.Fields(tt.args)...)
			code := 0
			if err != nil {
				code = exitCode(err)
			}
			if code != tt.code {
				t.Errorf("exit code %d (%v), want %d", code, err, tt.code)
			}
			if err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q does not have %q", err, tt.want)
			}
			if err == nil && out == "" {
				t.Error("no output")
			}
			if err != nil && strings.Contains(err.Error(), "s3cr3tword") {
				t.Errorf("the password is shown: %v", err)
			}
		})
	}
}

func TestExitCodeOfErrors(t *testing.T) {
	setup := &relay.SetupError{Problem: "wal_level is replica"}
	for _, tt := range []struct {
		err  error
		want int
	}{
		{errors.New("disk full"), exitFailure},
		{setup, exitConfig},
		{fmt.Errorf("slot %q: %w", "a", setup), exitConfig},
		{configError{errors.New("x")}, exitConfig},
		{usageError{errors.New("x")}, exitConfig},
	} {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("%T: got %d, want %d", tt.err, got, tt.want)
		}
	}
}

// run reports every problem of every part at once.
func TestRunReportsEverything(t *testing.T) {
	_, err := execute(t, map[string]string{
		"RELAY_LANES": "0", "RELAY_MODE": "magic", "METRICS_PORT": "70000", "RELAY_HTTP_ADDR": "127.0.0.1", "LOG_LEVEL": "LOUD", "BROKER_TYPE": "stdout,Stdout", "RELAY_STATUS_INTERVAL": "1h",
	}, "run")
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"RELAY_LANES=0", "DATABASE_URL: not set", "RELAY_MODE=magic", "METRICS_PORT=70000", "RELAY_HTTP_ADDR=127.0.0.1: want host:port", "LOG_LEVEL=LOUD", "BROKER_TYPE: stdout occurs twice", "RELAY_STATUS_INTERVAL=1h0m0s",
	} {
		if n := strings.Count(err.Error(), want); n != 1 {
			t.Errorf("%s is reported %d times, want once, in:\n%v", want, n, err)
		}
	}
}

// No part of a password may reach an error, whatever is wrong with the connection string.
func TestDatabasePasswordIsNeverShown(t *testing.T) {
	for _, url := range []string{
		"postgresql://relay:s3cr3t/w0rd@db.invalid:5432/shop",
		"postgresql://relay:s3cr3t@w0rd@db.invalid:5432/shop",
		"postgresql://relay:s3cr3t%zzw0rd@db.invalid:5432/shop",
		"postgresql://relay:s3cr3t w0rd@db.invalid:5432/shop",
		"postgresql//relay:s3cr3tw0rd@db.invalid/shop",
		"host=db.invalid user=relay password=s3cr3t w0rd dbname=shop",
		"host=db.invalid user=relay password='s3cr3t w0rd dbname=shop",
		"host=db.invalid user=relay password=s3cr3tw0rd port=x",
		"mysql://relay:s3cr3tw0rd@db.invalid/shop",
		"relay:s3cr3tw0rd@db.invalid/shop",
		"postgresql://relay:s3cr3tw0rd@db.invalid/shop?sslmode=maybe",
	} {
		for _, command := range []string{"run", "status", "migrate --wait 1ms", "dead-letter list", "replay --saga-id s", "doctor"} {
			out, err := execute(t, map[string]string{"DATABASE_URL": url, "BROKER_TYPE": "stdout", "METRICS_PORT": "0"}, strings.Fields(command)...)
			if err == nil {
				t.Errorf("%s with %s: no error", command, url)
				continue
			}
			if shown := out + err.Error(); strings.Contains(shown, "s3cr3t") || strings.Contains(shown, "w0rd") {
				t.Errorf("%s with %s shows the password: %s", command, url, shown)
			}
			if exitCode(err) != exitConfig {
				t.Errorf("%s with %s: exit code %d (%v), want %d", command, url, exitCode(err), err, exitConfig)
			}
		}
	}
}

func TestRunHelpListsVariables(t *testing.T) {
	out, err := execute(t, nil, "run", "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"DATABASE_URL", "BATCH_SIZE or WORKER_BATCH_SIZE  [1000]", "RELAY_MARK_LINGER  [20ms]", "RELAY_SLOT  [sagaz_outbox]", "METRICS_PORT  [8000]", "BROKER_TYPE",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the help does not have %q", want)
		}
	}
	seen := make(map[string]bool)
	for _, v := range allVariables() {
		for _, name := range v.names {
			if seen[name] {
				t.Errorf("%s is listed twice", name)
			}
			seen[name] = true
		}
	}
}

func writeFile(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
