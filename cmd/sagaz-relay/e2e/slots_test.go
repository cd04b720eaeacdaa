package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
)

// scripted is a file sink that is down while its directory is missing.
type scripted struct {
	t   testing.TB
	dir string
	env settings
}

func newScripted(t testing.TB) *scripted {
	dir := filepath.Join(t.TempDir(), "mounted")
	return &scripted{t: t, dir: dir, env: settings{
		"BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(dir, "events.jsonl"), "RELAY_FILE_FSYNC": "false", "RELAY_BACKOFF_MAX": "500ms", "MAX_RETRIES": "2",
	}}
}

// back makes the sink work.
func (s *scripted) back() {
	s.t.Helper()
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
}

// got is what the sink has, in order.
func (s *scripted) got() []verify.Event {
	s.t.Helper()
	if _, err := os.Stat(s.env["RELAY_FILE_PATH"]); os.IsNotExist(err) {
		return nil
	}
	return lineEvents(s.t, func(f func(file.Line) error) error { return file.Read(s.env["RELAY_FILE_PATH"], f) })
}

// wants compares what the sink has with events, each once and in order.
func (s *scripted) wants(ids ...relay.UUID) {
	s.t.Helper()
	var got []relay.UUID
	for _, e := range s.got() {
		got = append(got, e.ID)
	}
	if !slices.Equal(got, ids) {
		s.t.Errorf("the sink got %v, want %v", got, ids)
	}
}

// waitFate waits until rows have a status.
func (w *world) waitFate(p *process, want string, ids ...relay.UUID) {
	w.t.Helper()
	for i, id := range ids {
		eventually(w.t, patience, fmt.Sprintf("row %d is %s", i, want), func() string {
			if status, why := w.fate(id); status != want {
				return p.mustRun(status + " " + why)
			}
			return ""
		})
	}
}

// One transaction has an event and another of the same key that cannot be made into a record, while
// the sink is down. What is parked by a stop, or by the sink's isolation, keeps its place: nothing
// of the key is stuck, then or after a restart.
func TestUnfitEventBehindWhatIsOffered(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		isolated bool
	}{{"stop", false}, {"isolation", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, s := newWorld(t), newScripted(t)
			env := s.env
			if c.isolated {
				env = env.with(settings{"RELAY_SINK_ISOLATION": "1s"})
			}
			p := w.relay("relay", env)
			p.waitStreaming()
			ids := w.insert(row{key: "k", topic: "T"}, row{key: "k", topic: "T", headers: "[]"})
			a, b := ids[0], ids[1]
			p.waitLog("publish did not succeed")
			if c.isolated {
				p.waitLog("sink isolated")
				w.waitLedger(p, "file", 2)
				s.back()
			} else {
				p.stop()
				w.waitGone()
				if n := w.ledger("file", ""); n != 2 {
					t.Errorf("a stop left %d entries in the ledger, want 2", n)
				}
				s.back()
				p = w.relay("restarted", env)
			}
			third := w.insert(row{key: "k", topic: "T"})[0]
			w.waitFate(p, "sent", a, third)
			w.waitFate(p, "dead_letter", b)
			s.wants(a, third)

			p.stop()
			w.waitGone()
			p = w.relay("again", env)
			last := w.insert(row{key: "k", topic: "T"})[0]
			w.waitFate(p, "sent", last)
			s.wants(a, third, last)
			if n := w.ledger("file", "NOT (state = 'dead' AND detached)"); n != 0 {
				t.Errorf("%d entries are stuck in the ledger", n)
			}
			p.stop()
		})
	}
}

func (w *world) hasSlot(name string) bool {
	w.t.Helper()
	return value[bool](w, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, name)
}

// RELAY_SLOT is changed while events wait for a sink that is down: the relay of the new name
// delivers them, in front of what comes, and the old replication slot goes once the new one
// streams. A name that is of no use to us costs nothing.
func TestRenamedSlot(t *testing.T) {
	t.Parallel()
	w, s := newWorld(t), newScripted(t)
	p := w.relay("old", s.env)
	p.waitStreaming()
	a := w.insert(row{key: "k", topic: "T"})[0]
	p.waitLog("publish did not succeed")
	p.stop()
	w.waitGone()

	mistyped := w.slot + "_z"
	w.exec(`SELECT pg_create_logical_replication_slot($1, 'test_decoding')`, mistyped)
	w.fails(t, s.env.with(settings{"RELAY_SLOT": mistyped}), mistyped, "test_decoding", "RELAY_SLOT")
	if !w.hasSlot(w.slot) {
		t.Error("a mistyped name of a slot cost the old slot")
	}
	w.waitGone()

	renamed := w.slot + "_y"
	p = w.relay("new", s.env.with(settings{"RELAY_SLOT": renamed}))
	p.waitStreaming()
	b := w.insert(row{key: "k", topic: "T"})[0]
	s.back()
	w.waitFate(p, "sent", a, b)
	s.wants(a, b)
	w.db.Until(t, `SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, w.slot)
	if !w.hasSlot(mistyped) || !w.hasSlot(renamed) {
		t.Error("a slot that is not ours to drop is gone")
	}
	if n := w.ledger("file", ""); n != 0 {
		t.Errorf("%d entries are left in the ledger", n)
	}
	p.stop()
}

// Two relays with different RELAY_SLOT on one table: the second is a standby and reports for which.
// When the first is killed it takes over, and nothing is lost.
func TestTwoSlotsOfOneTable(t *testing.T) {
	t.Parallel()
	w, s, s2 := newWorld(t), newScripted(t), newScripted(t)
	s.back()
	s2.back()
	first := w.relay("first", s.env)
	first.waitStreaming()
	l := w.load(loadOptions{topic: "T", rate: 300})
	l.waitCommitted(50)

	second := w.relay("second", s2.env.with(settings{"RELAY_SLOT": w.slot + "_2", "RELAY_LEASE_TTL": "5s"}))
	found := second.waitLog("standing by: the table's events are delivered through another slot")
	if found.text("other") != w.slot || found.text("owner") != "first" {
		t.Errorf("the log names slot %s of %s, want %s of first", found.text("other"), found.text("owner"), w.slot)
	}
	other := fmt.Sprintf("%s, owned by first since 20", w.slot)
	eventually(t, patience, "the status shows what the second has found", func() string {
		st := second.status()
		if len(st.Slots) != 1 || st.Slots[0].Role != relay.Standby || !strings.HasPrefix(st.Slots[0].Other, other) {
			return second.mustRun(fmt.Sprintf("%+v", st.Slots))
		}
		if v := st.Verdict(); v.Level == relay.LevelOK || !strings.Contains(strings.Join(v.Reasons, "; "), other) {
			return fmt.Sprintf("verdict %+v", v)
		}
		return ""
	})
	_, body := second.get("/status.json")
	if _, verdict, _ := strings.Cut(string(body), `"verdict"`); !strings.Contains(verdict, other) {
		t.Errorf("the verdict in /status.json does not show what the second has found: %s", body)
	}
	l.waitCommitted(300)
	l.finish(first)
	if got := s.got(); len(got) != l.committed() || len(s2.got()) != 0 {
		t.Errorf("%d deliveries by the first and %d by the second of %d events", len(got), len(s2.got()), l.committed())
	}

	l.start()
	l.waitCommitted(100)
	first.crash()
	l.waitCommitted(100)
	second.waitStreaming()
	l.finish(second)
	second.stop()
	l.check.Deliver("file", s.got()...)
	again := l.judge("file", s2.got(), 1000)
	t.Logf("%d events again after the kill", again)
}
