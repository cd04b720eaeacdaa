package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay/doctor"
)

// doctorReport is the JSON as scripts read it.
type doctorReport struct {
	Findings []struct {
		Check, Severity, Summary, Why string
		Fix                           []struct{ Do, SQL, Run string }
	}
	Counts map[string]int
}

func (r *doctorReport) worst(check string) string {
	worst := ""
	for _, f := range r.Findings {
		if f.Check == check && (worst == "" || f.Severity != "ok") {
			worst = f.Severity
		}
	}
	return worst
}

func TestDoctor(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	slot := strings.ToLower(db.Name[len(db.Name)-8:]) + "_doctor"
	env := map[string]string{"DATABASE_URL": db.DSN, "BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(t.TempDir(), "events.jsonl"), "RELAY_SLOT": slot}
	examine := func(code int) (string, *doctorReport) {
		t.Helper()
		text, err := execute(t, env, "doctor")
		if got := codeOf(err); got != code {
			t.Errorf("exit code %d (%v), want %d:\n%s", got, err, code, text)
		}
		for _, line := range strings.Split(text, "\n") {
			if utf8.RuneCountInString(line) > 100 && !strings.HasSuffix(line, ";") {
				t.Errorf("a line of %d characters: %s", utf8.RuneCountInString(line), line)
			}
		}
		out, err := execute(t, env, "doctor", "--json")
		if got := codeOf(err); got != code {
			t.Errorf("exit code %d with --json, want %d", got, code)
		}
		var r doctorReport
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		return text, &r
	}

	text, r := examine(0)
	if r.worst("database") != "ok" || r.worst("sink file") != "ok" || r.worst("owner") != "note" || r.Counts["broken"] != 0 {
		t.Errorf("a healthy database:\n%s", text)
	}
	if _, there := r.Counts["degraded"]; !there {
		t.Errorf("the counts leave out what is 0: %v", r.Counts)
	}
	if !strings.HasSuffix(text, fmt.Sprintf("%d note, %d ok\n", r.Counts["note"], r.Counts["ok"])) {
		t.Errorf("the last line does not count %v:\n%s", r.Counts, text)
	}

	if _, err := db.Pool.Exec(t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, status)
		VALUES (gen_random_uuid(), 's', 'k', 'T', '{}', 'dead_letter')`); err != nil {
		t.Fatal(err)
	}
	if text, r = examine(1); r.worst("rows") != "degraded" || !strings.Contains(text, "sagaz-relay dead-letter retry --sink -") {
		t.Errorf("a dead letter:\n%s", text)
	}

	if _, err := db.Pool.Exec(t.Context(), `DROP TABLE saga_outbox_delivery`); err != nil {
		t.Fatal(err)
	}
	text, r = examine(2)
	if r.worst("tables") != "broken" || r.worst("rows") != "degraded" || !strings.Contains(text, "sagaz-relay migrate") {
		t.Errorf("without the ledger:\n%s", text)
	}

	// Every problem of the settings is reported, next to what the rest of them can reach.
	env["RELAY_LANES"], env["BROKER_TYPE"], env["RELAY_TOPIC"] = "0", "file,pigeon", "{nonsense}"
	text, r = examine(2)
	for _, want := range []string{"RELAY_LANES=0", "BROKER_TYPE=pigeon", "RELAY_TOPIC"} {
		if !strings.Contains(text, want) {
			t.Errorf("nothing about %s:\n%s", want, text)
		}
	}
	if r.worst("database") != "ok" || r.worst("sink file") != "ok" || r.Counts["broken"] != 4 {
		t.Errorf("with bad settings: %v\n%s", r.Counts, text)
	}
}

func codeOf(err error) int {
	if err == nil {
		return 0
	}
	return exitCode(err)
}

func TestDoctorExitCodes(t *testing.T) {
	for _, tt := range []struct {
		worst doctor.Severity
		code  int
	}{{doctor.OK, 0}, {doctor.Note, 0}, {doctor.Unknown, 0}, {doctor.Degraded, exitFailure}, {doctor.Broken, exitConfig}} {
		r := &doctor.Report{Findings: []doctor.Finding{{Severity: doctor.OK}, {Severity: tt.worst}, {Severity: doctor.Note}}}
		if got := codeOf(worst(r)); got != tt.code {
			t.Errorf("%s: exit code %d, want %d", tt.worst, got, tt.code)
		}
	}
}

func TestDoctorWithoutDatabase(t *testing.T) {
	text, err := execute(t, map[string]string{"BROKER_TYPE": "stdout"}, "doctor")
	if codeOf(err) != exitConfig || !strings.Contains(text, "DATABASE_URL: not set") {
		t.Errorf("%v\n%s", err, text)
	}
	text, err = execute(t, map[string]string{"DATABASE_URL": "postgresql://relay:s3cr3tword@127.0.0.1:1/shop", "BROKER_TYPE": "stdout"}, "doctor")
	if codeOf(err) != exitConfig || !strings.Contains(text, "connect to 127.0.0.1:1/shop as relay") || strings.Contains(text, "s3cr3tword") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestAllErrors(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	got := allErrors(configError{errors.Join(a, errors.Join(b, c))})
	if len(got) != 3 || got[0] != a || got[1] != b || got[2] != c {
		t.Errorf("got %v", got)
	}
}
