package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/doctor"
	"github.com/sagaz-relay/relay/relay/repair"
	"github.com/sagaz-relay/relay/relay/store"
)

// foreign is what a row may hold: what a terminal obeys, what changes the direction of text, what a
// shell runs, and forged lines.
const foreign = "x\x1b[2J\x1b]0;t\x07\u009b31m\u202egpj\u2066\u200b'; touch /tmp/x; $(touch x) `touch y` \"q\" \\\nFORGED\tline\r"

// obeyed returns the first character that a terminal obeys, except line breaks.
func obeyed(text string) string {
	for _, r := range text {
		if r != '\n' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)) || r == utf8.RuneError {
			return fmt.Sprintf("%U", r)
		}
	}
	return ""
}

// Whatever is in the tables, no command prints anything that a terminal obeys, and no line is
// forged.
func TestForeignTextOfRows(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	ctx := t.Context()
	conn := db.Conn(t)
	for _, sql := range []string{
		`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, retry_count, last_error, worker_id)
			SELECT '` + deadEvent + `'::uuid, f, f, f, f, jsonb_build_object(f, f), jsonb_build_object(f, f), 'dead_letter', 5, f, f FROM (SELECT $1::text AS f) x`,
		`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, status, sent_at) SELECT '` + sentEvent + `'::uuid, 'saga', f, f, '{}', 'sent', now() FROM (SELECT $1::text AS f) x`,
		`INSERT INTO saga_outbox_relay (slot, epoch, owner, released_at) VALUES ($1, 3, $1, now())`,
		`INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, attempts, reason, last_error)
			SELECT '` + deadEvent + `'::uuid, f, f, 7, f, 1, f, 'dead', 5, f, f FROM (SELECT $1::text AS f) x`,
	} {
		if _, err := conn.Exec(ctx, sql, foreign); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	lines := filepath.Join(t.TempDir(), "events.jsonl")
	line, err := json.Marshal(map[string]any{"event_id": "0a6f1f2e-6f3c-4c58-9f0a-3f9c1f6b7a09", "headers": map[string]string{foreign: foreign}, "topic": foreign, "key": foreign, "value": map[string]any{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lines, append(line, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"DATABASE_URL": db.DSN, "BROKER_TYPE": "file", "RELAY_FILE_PATH": lines, "RELAY_SLOT": "foreign_" + strings.ToLower(db.Name[len(db.Name)-8:])}
	for _, command := range []string{
		"status", "status --json", "dead-letter list", "dead-letter list --state all --json", "dead-letter show " + deadEvent, "dead-letter show --payload " + deadEvent, "dead-letter show --payload --json " + deadEvent,
		"dead-letter retry --all --dry-run", "dead-letter retry --all --dry-run --json", "dead-letter discard --all --dry-run", "replay --saga-id saga --dry-run", "replay --saga-id saga --dry-run --json",
		"verify --since 1h", "verify --since 1h --json", "doctor", "doctor --json", "dead-letter retry --all", "dead-letter discard --state all --all",
	} {
		text, _ := outcome(t, env, strings.Fields(command)...)
		if char := obeyed(text); char != "" {
			t.Errorf("%s prints %s:\n%q", command, char, text)
		}
		if strings.Contains(text, "\nFORGED") {
			t.Errorf("%s prints a forged line:\n%s", command, text)
		}
		if len(text) == 0 {
			t.Errorf("%s prints nothing", command)
		}
	}
}

// What is printed is printed well without the belt around every command, too.
func TestForeignTextWithoutTheBelt(t *testing.T) {
	var out bytes.Buffer
	now := time.Now()
	letter := repair.Letter{EventID: deadEvent, Sink: foreign, Slot: foreign, State: repair.State(foreign), Reason: foreign, Key: foreign, EventType: foreign, LastError: foreign, RowStatus: foreign}
	err := errors.Join(
		repair.PrintLetters(&out, []repair.Letter{letter}, 1, now),
		repair.PrintEvent(&out, &repair.Event{EventID: deadEvent, Row: &repair.Row{SagaID: foreign, EventType: foreign, Status: foreign, LastError: foreign, Headers: []string{foreign}, WorkerID: foreign}, Entries: []repair.Letter{letter}}, now),
		printOverview(&out, &store.Overview{Slots: []store.SlotOverview{{Slot: foreign, Owner: foreign}}, Ledger: []store.LedgerSummary{{Sink: foreign, State: foreign, Reason: foreign, Slot: foreign}}}, map[string]string{"lines": "file"}),
		(&doctor.Report{Findings: []doctor.Finding{{Check: "c", Summary: foreign, Why: foreign, Fix: []doctor.Step{{Do: foreign}}}}}).Print(&out),
		term.WriteJSON(&out, map[string]string{foreign: foreign}),
	)
	printReplay(&out, &replayResult{Plan: &repair.Plan{Unsent: map[string]int{foreign: 1}}, changed: changed{DryRun: true, Done: &repair.Done{}}}, nil)
	printDone(&out, "retried", &changed{Done: &repair.Done{Sinks: map[string]int{foreign: 1}}, Relay: []store.SlotOwner{{Slot: foreign, Owner: foreign, Running: true}}})
	if err != nil {
		t.Fatal(err)
	}
	if char := obeyed(out.String()); char != "" {
		t.Errorf("prints %s:\n%q", char, out.String())
	}
	if strings.Contains(out.String(), "\nFORGED") {
		t.Errorf("prints a forged line:\n%s", out.String())
	}
	if text := errorText(fmt.Errorf("dial: %w", &relay.SetupError{Problem: foreign, Fix: foreign})); obeyed(text) != "" {
		t.Errorf("an error prints %s", obeyed(text))
	}
	out.Reset()
	newLogger(&out, 3).Info(foreign, foreign, foreign)
	if char := obeyed(out.String()); char != "" {
		t.Errorf("a log line has %s:\n%q", char, out.String())
	}
	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["message"] != foreign {
		t.Errorf("the log line reads %q (%v)", back["message"], err)
	}
}

// A command of doctor is pasted whole: a shell runs nothing of its text.
func TestCommandsToPaste(t *testing.T) {
	dir := t.TempDir()
	word := term.Shell("$(touch x)`touch y`'; touch z; '\x1b[2J")
	var out bytes.Buffer
	if err := (&doctor.Report{Findings: []doctor.Finding{{Check: "c", Fix: []doctor.Step{{Run: "echo routing_key=" + word}}}}}).Print(&out); err != nil {
		t.Fatal(err)
	}
	_, command, _ := strings.Cut(out.String(), "fix  ")
	command, _, _ = strings.Cut(command, "\n")
	cmd := exec.Command("bash", "-c", command)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(text), "routing_key=$(touch x)") {
		t.Errorf("%s: %v\n%s", command, err, text)
	}
	if made, _ := os.ReadDir(dir); len(made) > 0 {
		t.Errorf("the shell made %v", made)
	}
}

// Statements to paste mean what was meant, on a real server.
func TestStatementsToPaste(t *testing.T) {
	conn := pgtest.New(t).Conn(t)
	for _, text := range []string{"a", "it's", `"q"`, `back\slash`, foreign, "é\u202e", `'; DROP TABLE x; --`, `\'`} {
		for _, standard := range []string{"on", "off"} {
			if strings.ContainsFunc(text, unicode.IsControl) && standard == "off" {
				continue // U&'…' is for conforming strings alone; the server refuses it
			}
			var got, name string
			if _, err := conn.Exec(t.Context(), "SET standard_conforming_strings = "+standard); err != nil {
				t.Fatal(err)
			}
			short := term.Cut(text, 20)
			rows, err := conn.Query(t.Context(), `SELECT `+term.Literal(text)+` AS `+term.Ident(short))
			if err != nil {
				t.Fatal(err)
			}
			name = rows.FieldDescriptions()[0].Name
			for rows.Next() {
				err = rows.Scan(&got)
			}
			if rows.Close(); err != nil || rows.Err() != nil || got != text || name != short {
				t.Errorf("%q (%s): got %q as %q, %v, %v", text, standard, got, name, err, rows.Err())
			}
		}
	}
}

// Nobody quotes for SQL, shells or terminals by hand outside the one package for it, and cdc's own
// for the replication protocol, which knows neither E” nor U&”.
func TestForeignTextHasOneHome(t *testing.T) {
	// label.go bounds the values of metric labels, config.go refuses a WORKER_ID, glob.go a pattern:
	// none prints for people.
	allowed := map[string]bool{"internal/term/term.go": true, "cdc/setup.go": true, "relay/label.go": true, "relay/engine/config.go": true, "relay/route/glob.go": true}
	root := filepath.Join("..", "..")
	for _, dir := range []string{"cdc", "cmd/sagaz-relay", "relay", "sinks"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			name, _ := filepath.Rel(root, path)
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil || allowed[filepath.ToSlash(name)] {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					for _, bad := range []string{"oneLine", "shellQuote", "quoteShell", "quoteLiteral", "quoteIdent", "literal", "printable"} {
						if n.Name.Name == bad {
							t.Errorf("%s: func %s: internal/term does that", name, bad)
						}
					}
				case *ast.SelectorExpr:
					if of, ok := n.X.(*ast.Ident); ok && of.Name == "unicode" && (n.Sel.Name == "IsControl" || n.Sel.Name == "IsPrint") {
						t.Errorf("%s: unicode.%s: internal/term does that", name, n.Sel.Name)
					}
				case *ast.CallExpr: // fmt.Fprint… of a field that rows or brokers fill
					f, ok := n.Fun.(*ast.SelectorExpr)
					if !ok || !strings.HasPrefix(f.Sel.Name, "Fprint") || !printsForPeople(filepath.ToSlash(name)) {
						break
					}
					for _, arg := range n.Args {
						if field, ok := arg.(*ast.SelectorExpr); ok && foreignFields[field.Sel.Name] {
							t.Errorf("%s: %s is printed as it is: want term.Text", name, field.Sel.Name)
						}
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// printsForPeople reports whether a file is one of those that print what the commands show.
func printsForPeople(name string) bool {
	return strings.HasPrefix(name, "cmd/") || strings.HasPrefix(name, "relay/") && strings.HasSuffix(name, "/print.go")
}

// foreignFields are the fields that others fill, by the names that they have in our structs.
var foreignFields = map[string]bool{
	"Slot": true, "Owner": true, "Sink": true, "State": true, "Reason": true, "Key": true, "EventType": true, "SagaID": true, "LastError": true, "WorkerID": true, "AggregateID": true, "AggregateType": true,
	"Summary": true, "Why": true, "Do": true, "SQL": true, "Run": true, "Status": true,
}
