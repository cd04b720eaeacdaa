package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// Lines have the library's keys, in its order, with its level names.
func TestLogLines(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(&out, hclog.Trace).Named("relay").With("slot", "sagaz_outbox").Named("sink.kafka")
	before := time.Now().Truncate(time.Microsecond)
	log.Warn("event refused", "sink", "kafka", "event_id", relay.UUID{1}, "attempt", 3, "backoff", 1500*time.Millisecond, "lsn", relay.LSN(0x16_B374D848),
		"error", errors.New("a \"quoted\"\nline"), "ok", true, "names", []string{"a", "b"}, "role", relay.Owner, "left over")
	line := out.String()
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "}\n") {
		t.Fatalf("not one line: %q", line)
	}
	if !strings.HasPrefix(line, `{"timestamp":"`) || !strings.Contains(line, `","level":"WARNING","logger":"relay.sink.kafka","message":"event refused","`) {
		t.Errorf("keys are not those of docs/observability.md: %s", line)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	at, err := time.Parse(time.RFC3339, got["timestamp"].(string))
	if err != nil || at.Before(before) || time.Since(at) > time.Minute {
		t.Errorf("timestamp %v: %v", got["timestamp"], err)
	}
	delete(got, "timestamp")
	want := map[string]any{
		"level": "WARNING", "logger": "relay.sink.kafka", "message": "event refused", "slot": "sagaz_outbox", "sink": "kafka",
		"event_id": "01000000-0000-0000-0000-000000000000", "attempt": 3.0, "backoff": "1.5s", "lsn": "16/B374D848",
		"error": "a \"quoted\"\nline", "ok": true, "names": []any{"a", "b"}, "role": "owner",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
}

func TestLogLevels(t *testing.T) {
	for _, tt := range []struct {
		name string
		want string // the levels that get through
	}{
		{"TRACE", "DEBUG DEBUG INFO WARNING ERROR"},
		{"debug", "DEBUG INFO WARNING ERROR"},
		{"INFO", "INFO WARNING ERROR"},
		{"WARNING", "WARNING ERROR"},
		{"warn", "WARNING ERROR"},
		{"ERROR", "ERROR"},
		{"CRITICAL", "ERROR"},
	} {
		level, err := parseLevel(tt.name)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var out bytes.Buffer
		log := newLogger(&out, level)
		log.Trace("x")
		log.Debug("x")
		log.Info("x")
		log.Warn("x")
		log.Error("x")
		var got []string
		for line := range strings.Lines(out.String()) {
			var fields map[string]string
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			got = append(got, fields["level"])
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("LOG_LEVEL=%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	for _, bad := range []string{"", "LOUD", "NOTSET"} {
		if _, err := parseLevel(bad); err == nil || !strings.Contains(err.Error(), "LOG_LEVEL="+bad) {
			t.Errorf("LOG_LEVEL=%s: got %v", bad, err)
		}
	}
}
