package engine

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func validConfig() Config {
	cfg := DefaultConfig()
	cfg.WorkerID = "worker-1"
	return cfg
}

func TestConfigDefaults(t *testing.T) {
	cfg := validConfig()
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

// Everything that is wrong is reported at once, each by the first of its variables' names.
func TestConfigValidateTellsEverything(t *testing.T) {
	cfg := Config{
		Lanes: 0, BatchSize: -1, BatchBytes: 1, InflightEvents: 0, InflightBytes: 1, MarkBatch: 0, MarkLinger: -1,
		PublishTimeout: 0, BackoffMin: 0, BackoffMax: -1, DrainTimeout: 0, RetryMax: -1, UnroutablePatience: -1, WALBudget: -1, StallTimeout: -1, Retention: -1,
	}
	reportedOnce(t, reflect.TypeOf(cfg), cfg.Validate())
}

// reportedOnce checks that err is about each of the settings of a Config struct, once.
func reportedOnce(t *testing.T, s reflect.Type, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("got nil")
	}
	for i := range s.NumField() {
		if kind := s.Field(i).Type.Kind(); kind == reflect.Interface || kind == reflect.Pointer || kind == reflect.Map || s.Field(i).Name == "BrokerTypes" {
			continue // what the program hands over, no setting
		}
		name, _, _ := strings.Cut(s.Field(i).Tag.Get("env"), ",")
		if name == "" {
			t.Errorf("%s has no variable", s.Field(i).Name)
			continue
		}
		if s.Field(i).Type.Kind() == reflect.Bool {
			continue // both values are right
		}
		lines := 0
		for line := range strings.Lines(err.Error()) {
			if strings.HasPrefix(line, name+"=") || strings.HasPrefix(line, name+":") {
				lines++
			}
		}
		if lines != 1 {
			t.Errorf("%s is reported %d times, want once, in:\n%v", name, lines, err)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	for _, tt := range []struct {
		name    string
		do      func(*Config)
		problem string // empty: valid
	}{
		{"TooManyLanes", func(c *Config) { c.Lanes = 257 }, "RELAY_LANES=257: want at most 256"},
		{"MarkBatchTooLarge", func(c *Config) { c.MarkBatch = 32768 }, "RELAY_MARK_BATCH=32768: want at most 32767"},
		{"LingerTooLong", func(c *Config) { c.MarkLinger = time.Hour }, "RELAY_MARK_LINGER=1h0m0s: want 0 to 10s"},
		{"NoLinger", func(c *Config) { c.MarkLinger = 0 }, ""},
		{"BackoffTurnedRound", func(c *Config) { c.BackoffMin, c.BackoffMax = 2*time.Second, time.Second }, "RELAY_BACKOFF_MAX=1s: want at least RELAY_BACKOFF_MIN=2s"},
		{"BackoffConstant", func(c *Config) { c.BackoffMin, c.BackoffMax = time.Second, time.Second }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := validConfig()
			tt.do(&cfg)
			err := cfg.Validate()
			switch {
			case tt.problem == "" && err != nil:
				t.Errorf("got %v, want it valid", err)
			case tt.problem != "" && (err == nil || !strings.Contains(err.Error(), tt.problem)):
				t.Errorf("got %v, want %q", err, tt.problem)
			}
		})
	}
}

// A name that cannot be a label, a column or a line of the log is refused before it is used as one.
func TestConfigWorkerID(t *testing.T) {
	for _, name := range []string{"caf\xe9", "a\nb", "\x00", strings.Repeat("x", 256)} {
		cfg := validConfig()
		cfg.WorkerID = name
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "WORKER_ID: want") || strings.Contains(err.Error(), name) {
			t.Errorf("WORKER_ID %q: %v", name, err)
		}
	}
}
