package e2e

import (
	"strings"
	"syscall"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// The load command writes as many events as it is asked for, whole sagas in order, with the headers
// that logs and traces are found by; a relay delivers them like any others.
func TestLoadCommand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	loading := func(args ...string) *process {
		t.Helper()
		return launch(t, program.Path(t), "load", w.env().with(settings{"RELAY_HTTP_ADDR": ""}), w.secrets(), append([]string{"load"}, args...)...)
	}
	p := loading("--events", "203", "--rate", "0", "--writers", "3")
	if code := p.end(patience); code != 0 {
		t.Fatalf("load: exit code %d: %s", code, p.stderr.String())
	}
	if text := p.stdout.String(); !strings.HasPrefix(text, "203 events of ") {
		t.Errorf("load printed %q, want 203 events", text)
	}
	if n := value[int](w, `SELECT count(*) FROM saga_outbox`); n != 203 {
		t.Errorf("%d rows, want 203", n)
	}
	if n := value[int](w, `SELECT count(*) FROM saga_outbox WHERE headers->>'correlation_id' IS DISTINCT FROM aggregate_id OR headers->>'saga_name' IS DISTINCT FROM 'order'
		OR headers->>'step_name' IS DISTINCT FROM event_type OR headers->>'traceparent' !~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-01$'`); n != 0 {
		t.Errorf("%d rows have other headers", n)
	}
	// The versions of an order count from 1, without a hole: it is one saga, step by step.
	if n := value[int](w, `SELECT count(*) FROM (SELECT aggregate_id FROM saga_outbox GROUP BY 1
		HAVING max((payload->>'version')::int) <> count(*) OR count(DISTINCT saga_id) <> 1) x`); n != 0 {
		t.Errorf("%d orders have holes or several sagas", n)
	}

	d := toFile(t)
	r := w.relay("relay", d.env)
	r.waitStreaming()
	p = loading("--rate", "200")
	eventually(t, patience, "rows are written", func() string {
		if n := value[int](w, `SELECT count(*) FROM saga_outbox`); n <= 203 {
			return p.mustRun("none yet")
		}
		return ""
	})
	p.signal(syscall.SIGTERM)
	if code := p.end(patience); code != 0 {
		t.Errorf("load: exit code %d after SIGTERM, want 0", code)
	}
	if n := w.waitNonePending(r)["sent"]; n != value[int](w, `SELECT count(*) FROM saga_outbox`) {
		t.Errorf("%d rows are sent", n)
	}
	r.stop()
}

func TestLoadCommandMistakes(t *testing.T) {
	t.Parallel()
	w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
	for _, c := range []struct {
		name  string
		env   settings
		args  []string
		words []string
	}{
		{"not migrated", nil, nil, []string{"saga_outbox", "sagaz-relay migrate"}},
		{"no DATABASE_URL", settings{"DATABASE_URL": ""}, nil, []string{"DATABASE_URL", "not set"}},
		{"a rate below 0", nil, []string{"--rate", "-1"}, []string{"--rate"}},
		{"no writer", nil, []string{"--writers", "0"}, []string{"--writers"}},
	} {
		p := launch(t, program.Path(t), "load", w.env().with(settings{"RELAY_HTTP_ADDR": ""}).with(c.env), w.secrets(), append([]string{"load"}, c.args...)...)
		if code := p.end(patience); code != 2 {
			t.Errorf("%s: exit code %d, want 2", c.name, code)
		}
		for _, word := range c.words {
			if !strings.Contains(p.stderr.String(), word) {
				t.Errorf("%s: the message does not name %s: %s", c.name, word, p.stderr.String())
			}
		}
	}
}
