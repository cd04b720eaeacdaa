package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/variables"
)

// Every setting of every struct has a tag of the one form, and whatever is called as a secret is
// one.
func TestTagsOfAllSettings(t *testing.T) {
	seen := 0
	for _, c := range defaultSettings().configs() {
		s := reflect.TypeOf(c).Elem()
		for i := range s.NumField() {
			f := s.Field(i)
			parsed, err := variables.ParseTag(f.Name, f.Tag)
			if err != nil {
				t.Errorf("%s: %v", s, err)
			}
			if parsed == nil && f.IsExported() && variables.CalledAsSecret(strings.ToUpper(f.Name)) {
				t.Errorf("%s.%s is called as a secret is, and has no tag", s, f.Name)
			}
			if parsed != nil {
				seen++
			}
		}
	}
	if seen < 90 {
		t.Errorf("%d settings: the test looks in the wrong place", seen)
	}
}

// The variables that users of the library know reach the settings that they mean.
func TestSettingsOfTheLibrary(t *testing.T) {
	env := map[string]string{
		"DATABASE_URL": "postgresql://relay@db/shop", "BROKER_TYPE": "stdout", "WORKER_BATCH_SIZE": "50", "WORKER_ID": "worker-9", "LOG_LEVEL": "WARNING",
		"METRICS_PORT": "9000", "SAGAZ_OUTBOX_MODE": "cdc",
	}
	s, err := loadSettings(func(name string) (string, bool) { value, ok := env[name]; return value, ok }, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.all(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, got, want string }{
		{"WORKER_ID", s.relay.WorkerID, "worker-9"},
		{"WORKER_ID in the store", s.store.Owner, "worker-9"},
		{"DATABASE_URL in the store", s.store.DatabaseURL, env["DATABASE_URL"]},
		{"SAGAZ_OUTBOX_MODE", s.relay.Mode, "cdc"},
		{"METRICS_PORT", s.httpAddr(), ":9000"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, tt.got, tt.want)
		}
	}
	if s.relay.BatchSize != 50 {
		t.Errorf("WORKER_BATCH_SIZE: got %d, want 50", s.relay.BatchSize)
	}
}
