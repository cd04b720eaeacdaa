package verify

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// auditOf makes an audit of rows given as "a0 a1 b0/t1!": the letters are the key, the order is
// that of created_at, and "/" names the topic. A last character is the status: "?" pending, "+"
// dead, "!" sent after a retry, and sent without one.
func auditOf(t *testing.T, rows string, sinks ...string) *Audit {
	t.Helper()
	a := NewAudit()
	for i, word := range strings.Fields(rows) {
		r := Row{CreatedAt: relay.Timestamp(i)}
		switch word[len(word)-1] {
		case '?':
			r.Status = Pending
		case '+':
			r.Status = Dead
		case '!':
			r.Retried = true
		}
		name, topic, _ := strings.Cut(strings.TrimRight(word, "?+!"), "/")
		r.ID, r.Key, r.Topic = id(name), strings.TrimRight(name, "0123456789"), topic
		a.Row(r)
	}
	for _, name := range sinks {
		a.Sink(name, name == "kafka")
	}
	return a
}

func (a *Audit) arrive(sink, names string) (unknown []string) {
	for _, name := range strings.Fields(names) {
		name, replayed := strings.CutPrefix(name, "again:")
		if !a.Arrived(sink, id(name), replayed) {
			unknown = append(unknown, name)
		}
	}
	return unknown
}

func named(list []Finding) string {
	var names []string
	for _, f := range list {
		id, err := relay.ParseUUID(f.ID)
		if err != nil {
			return err.Error()
		}
		names = append(names, strings.TrimRight(string(id[:]), "\x00"))
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func events2(list []Different) (out []Finding) {
	for _, d := range list {
		out = append(out, d.Event)
	}
	return out
}

func TestAuditOfOneSink(t *testing.T) {
	for _, tt := range []struct {
		name, rows, arrived          string
		missing, duplicates, earlier string
		pending, dead                int
	}{
		{name: "Nothing"},
		{name: "AllThere", rows: "a0 b0 a1", arrived: "b0 a0 a1"},
		{name: "Missing", rows: "a0 a1 a2", arrived: "a0 a2", missing: "a1"},
		{name: "MissingAll", rows: "a0 b0", missing: "a0 b0"},
		{name: "StillToCome", rows: "a0 a1? a2+ a3?", arrived: "a0 a3", pending: 1, dead: 1},
		{name: "Duplicate", rows: "a0 a1", arrived: "a0 a1 a0 a1 a1", duplicates: "a0 a1"},
		{name: "Replay", rows: "a0 a1", arrived: "a0 a1 again:a0 again:a0"},
		{name: "ReplayOfALostOne", rows: "a0", arrived: "again:a0"},
		{name: "Swap", rows: "a0 a1 a2", arrived: "a0 a2 a1", earlier: "a1"},
		{name: "TwoLate", rows: "a0 a1 a2 a3", arrived: "a3 a1 a0 a2", earlier: "a0 a1 a2"},
		{name: "RepeatIsNoDisorder", rows: "a0 a1 a2", arrived: "a0 a1 a2 a0 a1 a2", duplicates: "a0 a1 a2"},
		{name: "OtherKeysMayPass", rows: "a0 b0 a1 b1", arrived: "b0 b1 a0 a1"},
		{name: "RetriedMayBeLate", rows: "a0! a1 a2", arrived: "a1 a2 a0"},
		{name: "TopicsOfOneKeyHaveAnOrder", rows: "a0/x a1/y", arrived: "a1 a0", earlier: "a0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := auditOf(t, tt.rows, "file")
			if unknown := a.arrive("file", tt.arrived); unknown != nil {
				t.Fatalf("unknown %v", unknown)
			}
			r := a.Report(-1)
			s := r.Sinks[0]
			if got := named(s.Missing.List); got != tt.missing {
				t.Errorf("missing %q, want %q", got, tt.missing)
			}
			if got := named(s.Duplicates.List); got != tt.duplicates {
				t.Errorf("duplicates %q, want %q", got, tt.duplicates)
			}
			if got := named(events2(s.EarlierArrivedLater.List)); got != tt.earlier {
				t.Errorf("earlier %q, want %q", got, tt.earlier)
			}
			if s.Pending != tt.pending || s.DeadLetters != tt.dead || s.Deliveries != len(strings.Fields(tt.arrived)) || r.Events != len(strings.Fields(tt.rows)) {
				t.Errorf("%d pending, %d dead, %d deliveries of %d events", s.Pending, s.DeadLetters, s.Deliveries, r.Events)
			}
		})
	}
}

func TestAuditBetweenSinks(t *testing.T) {
	for _, tt := range []struct {
		name, rows  string
		first       string
		one, other  string // of the second; "kafka" has an order per topic only
		disagreeing string
	}{
		{"Same", "a0 a1", "a1 a0", "file", "a1 a0", ""},
		{"Different", "a0 a1 a2", "a0 a1 a2", "file", "a0 a2 a1", "a2"},
		{"OneHasLess", "a0 a1 a2", "a0 a2", "file", "a0 a1 a2", ""},
		{"OtherKeys", "a0 b0", "a0 b0", "file", "b0 a0", ""},
		{"Topics", "a0/x a1/y", "a0 a1", "kafka", "a1 a0", ""},
		{"SameTopic", "a0/x a1/y a2/x", "a0 a1 a2", "kafka", "a1 a2 a0", "a2"},
		{"Retried", "a0! a1", "a0 a1", "file", "a1 a0", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := auditOf(t, tt.rows, "rabbitmq", tt.one)
			a.arrive("rabbitmq", tt.first)
			a.arrive(tt.one, tt.other)
			r := a.Report(-1)
			got := len(r.Disagreements.List)
			if want := len(strings.Fields(tt.disagreeing)); got != want || r.Disagreements.Count != want {
				t.Fatalf("%d disagreements, want %d: %v", got, want, r.Disagreements.List)
			}
			if got == 1 {
				d := r.Disagreements.List[0]
				if d.Sink != "rabbitmq" || d.Other != tt.one || !strings.Contains(d.String(), "at "+tt.one+" before it") {
					t.Errorf("got %v", d)
				}
			}
		})
	}
}

// The ledger knows better than the row's status, which is one for all sinks.
func TestAuditLedger(t *testing.T) {
	a := auditOf(t, "a0? b0? c0+ d0", "kafka", "rabbitmq")
	a.Parked(id("a0"), "kafka", Pending)
	a.Parked(id("b0"), "kafka", Dead)
	a.Parked(id("b0"), "gone", Pending)
	a.Parked(id("nobody"), "kafka", Pending)
	r := a.Report(-1)
	if k := r.Sinks[0]; k.Pending != 1 || k.DeadLetters != 2 || named(k.Missing.List) != "d0" {
		t.Errorf("kafka: %+v", k)
	}
	if q := r.Sinks[1]; q.Pending != 0 || q.DeadLetters != 1 || named(q.Missing.List) != "a0 b0 d0" {
		t.Errorf("rabbitmq has no entry for a0 and b0, so it must have had them: %+v", q)
	}
}

// What a rule keeps from a sink is not missing there, and there is an order in each topic that its
// rules have made.
func TestAuditRoutes(t *testing.T) {
	a := NewAudit()
	for i, r := range []Row{
		{Topic: "T", To: []To{{Sink: "kafka", Topic: "own"}, {Sink: "rabbitmq", Dropped: true}}},
		{Topic: "T", To: []To{{Sink: "kafka", Topic: "own"}, {Sink: "rabbitmq", Dropped: true}}},
		{Topic: "T", To: []To{{Sink: "kafka", Topic: "other"}, {Sink: "rabbitmq", Topic: "T"}}},
		{Topic: "U", Status: Pending, To: []To{{Sink: "kafka", Dropped: true}}},
		{Topic: "T", To: []To{{Sink: "kafka", Dropped: true}, {Sink: "rabbitmq", Dropped: true}}},
	} {
		r.ID, r.Key, r.CreatedAt = id(fmt.Sprint("a", i)), "a", relay.Timestamp(i)
		a.Row(r)
	}
	a.Sink("kafka", true)
	a.Sink("rabbitmq", false)
	if got := a.Topics("kafka"); !slices.Equal(got, []string{"T", "own", "other", "U"}) {
		t.Errorf("topics of kafka: %q", got)
	}
	if got := a.Topics("rabbitmq"); !slices.Equal(got, []string{"T", "U"}) {
		t.Errorf("topics of rabbitmq: %q", got)
	}
	a.Parked(id("a4"), "rabbitmq", Dead)
	a.arrive("kafka", "a2 a1 a0") // a2 is in another topic than those behind it
	r := a.Report(-1)
	if k := r.Sinks[0]; k.Events != 3 || k.Dropped != 2 || k.Missing.Count != 0 || k.EarlierArrivedLater.Count != 1 || k.EarlierArrivedLater.List[0].Event.Topic != "own" {
		t.Errorf("kafka: %+v", k)
	}
	if q := r.Sinks[1]; q.Dropped != 2 || q.Pending != 1 || q.DeadLetters != 1 || named(q.Missing.List) != "a2" {
		t.Errorf("rabbitmq: %+v", q)
	}
	if text := r.Text(); !strings.Contains(text, "2 are not there by a rule of RELAY_ROUTES") {
		t.Error(text)
	}
}

func TestAuditLimitsAndTwins(t *testing.T) {
	a := auditOf(t, "a0 a1 a2 a3 a1", "file") // a1 on its way into the archive
	r := a.Report(2)
	if m := r.Sinks[0].Missing; r.Events != 4 || m.Count != 4 || len(m.List) != 2 {
		t.Errorf("%d events, %d missing, %d listed, want 4, 4, 2", r.Events, m.Count, len(m.List))
	}
	if unknown := a.arrive("file", "a0 z9"); !slices.Equal(unknown, []string{"z9"}) {
		t.Errorf("unknown %v", unknown)
	}
	for range 300 {
		a.arrive("file", "a0")
	}
	if d := a.Report(2).Sinks[0].Duplicates; d.Count != 1 || d.List[0].Times != 256 {
		t.Errorf("duplicates %+v, want one that counts to its end", d)
	}
}

// What the documentation promises of memory, with some room.
func TestAuditMemory(t *testing.T) {
	const events, perKey = 200_000, 4
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	a := NewAudit()
	for i := range events {
		var u relay.UUID
		binary.BigEndian.PutUint64(u[:], uint64(i)*0x9E3779B97F4A7C15)
		a.Row(Row{ID: u, Key: fmt.Sprintf("order-%036d", i/perKey), Topic: "OrderCreated", CreatedAt: relay.Timestamp(i)})
	}
	a.Sink("kafka", true)
	a.Sink("rabbitmq", false)
	runtime.GC()
	runtime.ReadMemStats(&after)
	perEvent := float64(after.HeapAlloc-before.HeapAlloc) / events
	if perEvent > 150 {
		t.Errorf("%.0f bytes an event, with a key of 42 bytes for every %d", perEvent, perKey)
	}
	t.Logf("%.0f bytes an event", perEvent)
	runtime.KeepAlive(a)
}
