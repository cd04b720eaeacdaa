package nats

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestSubjects(t *testing.T) {
	s := newSink(t, DefaultConfig())
	for subject, want := range map[string]string{
		"OrderCreated":                 "",
		"orders.OrderCreated":          "",
		"Bestellung.geändert":          "",
		"a*b.>c":                       "", // no wildcards: they are part of a token
		strings.Repeat("x", 300):       "",
		"":                             "empty",
		".a":                           "dot",
		"a.":                           "dot",
		"a..b":                         "dot",
		"a b":                          "space",
		"a\r\nPUB x 1":                 "control",
		"a.*":                          "wildcard",
		">":                            "wildcard",
		"$JS.API.STREAM.DELETE.ORDERS": "servers' own",
		"$SYS.REQ":                     "servers' own",
		"_INBOX.abc.1":                 "answers",
		strings.Repeat("x", 1025):      "1025 bytes",
	} {
		_, err := s.message(sinktest.NewRecord(subject, "k", 0, 0))
		if want == "" {
			if err != nil {
				t.Errorf("%.40q: %v", subject, err)
			}
			continue
		}
		if r, ok := relay.Refused(err); !ok || r.Reason != relay.ReasonUnknownTopic || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want it refused as unknown_topic: %s", subject, err, want)
		}
	}
}

// What a header is on the wire, for a reader in any language (docs/messages.md).
func TestHeaderForms(t *testing.T) {
	s := newSink(t, DefaultConfig())
	for _, c := range []struct{ name, value, wantName, want string }{
		{"event_type", "OrderCreated", "event_type", "OrderCreated"},
		{"quoted", `a "b" \ 50%`, "quoted", `a "b" \ 50%`},
		{"empty", "", "empty", ""},
		{"lines", "a\r\nb", "lines*", "UTF-8''a%0D%0Ab"},
		{"space", " a ", "space*", "UTF-8''%20a%20"},
		{"tab", "a\tb", "tab*", "UTF-8''a%09b"},
		{"umlaut", "Überweisung 5 €", "umlaut*", "UTF-8''%C3%9Cberweisung%205%20%E2%82%AC"},
		{"größe", "1", "gr%C3%B6%C3%9Fe*", "UTF-8''1"},
		{"a: b", "1", "a%3A%20b*", "UTF-8''1"},
		{"star*", "1", "star%2A*", "UTF-8''1"},
		{"a/b[c]@d", "1", "a%2Fb%5Bc%5D%40d*", "UTF-8''1"},
		{"", "1", "*", "UTF-8''1"},
	} {
		rec := sinktest.NewRecord("x", "k", 0, 0)
		rec.Headers = []relay.Header{{Key: c.name, Value: c.value}}
		m, err := s.message(rec)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Header[c.wantName]; len(got) != 1 || got[0] != c.want {
			t.Errorf("%q=%q: got %q, want %s=%q", c.name, c.value, m.Header, c.wantName, c.want)
		}
		back, err := Headers(m.Header)
		if err != nil || !slices.Equal(back, rec.Headers) {
			t.Errorf("%q=%q: read back as %q, %v", c.name, c.value, back, err)
		}
	}
	if _, err := Headers(nats.Header{"a*": {"b"}}); err == nil {
		t.Error("a header of another client that ends with a *: no error")
	}
}

func TestCloudEventHeaders(t *testing.T) {
	s := newSink(t, DefaultConfig())
	rec := sinktest.NewRecord("x", "k", 0, 0)
	rec.CloudEvent = true
	rec.Headers = []relay.Header{{Key: "ce_id", Value: "1"}, {Key: "ce_subject", Value: `ü "1" 50%`}, {Key: "content-type", Value: "application/json"}, {Key: "tenant", Value: "a"}}
	m, err := s.message(rec)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"ce-id": "1", "ce-subject": "%C3%BC%20%221%22%2050%25", "ce-datacontenttype": "application/json", "tenant": "a"} {
		if got := m.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	rec.Headers = []relay.Header{{Key: "ce_a b", Value: "1"}}
	if m, err = s.message(rec); err != nil || m.Header.Get("ce_a%20b*") != "UTF-8''1" {
		t.Errorf("no attribute's name: %v, %v", m, err)
	}
	rec.Headers = []relay.Header{{Key: "content-type", Value: "application/cloudevents+json"}}
	if m, err = s.message(rec); err != nil || m.Header.Get("content-type") != "application/cloudevents+json" {
		t.Errorf("structured: %v, %v", m, err)
	}
}

// Whatever a row's header is called, its event arrives: a name that the client refuses to send would
// be offered for ever.
func TestHeaderNames(t *testing.T) {
	server := natstest.Start(t, "")
	s := newSink(t, config(server))
	for _, cloudEvent := range []bool{false, true} {
		subject := newStream(t, server.URL, nil)
		var recs []*relay.Record
		for c := byte(1); c <= 0x7f; c++ {
			rec := sinktest.NewRecord(subject, fmt.Sprint("k", c), int(c), 0)
			rec.CloudEvent = cloudEvent
			rec.Headers = append(rec.Headers, relay.Header{Key: "a" + string(rune(c)) + "b", Value: "1"}, relay.Header{Key: "ce_a" + string(rune(c)) + "b", Value: "2"})
			recs = append(recs, rec)
		}
		if err := s.Publish(soon(t), recs); err != nil {
			t.Errorf("cloud event %t: %v", cloudEvent, err)
		}
		if got := consume(t, server.URL, subject); len(got) != len(recs) {
			t.Errorf("cloud event %t: %d messages in the stream, want %d", cloudEvent, len(got), len(recs))
		}
	}
}

// A row's header that NATS takes for a command must not reach it: this one would delete what is in
// the stream.
func TestCommandsInHeaders(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, func(c *streamConfig) { c.AllowRollup = true })
	s := newSink(t, config(server))
	if err := s.Publish(soon(t), sinktest.Records(subject, "k", 0, 3)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Nats-Rollup", "nats-rollup", "Nats-Msg-Id", "Nats-Expected-Last-Sequence"} {
		rec := sinktest.NewRecord(subject, "k", 3, 0)
		rec.Headers = append(rec.Headers, relay.Header{Key: name, Value: "all"})
		refusal(t, s.Publish(soon(t), []*relay.Record{rec}), relay.ReasonEncode, "header "+name)
	}
	if got := consume(t, server.URL, subject); len(got) != 3 {
		t.Errorf("%d messages in the stream, want the 3 of before", len(got))
	}
}

// The stream drops what it has seen; what a person replays, and what another sink sends, it has not.
func TestDuplicates(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, nil)
	s := newSink(t, config(server))
	cfg := config(server)
	cfg.Call("audit", func(text string) string { return text })
	other := newSink(t, cfg)
	rec := sinktest.NewRecord(subject, "k", 0, 0)
	replayed := *rec
	replayed.Headers = append(slices.Clone(rec.Headers), relay.Header{Key: relay.ReplayedHeader, Value: "2026-11-30T10:00:00Z"})
	for _, c := range []struct {
		sink *Sink
		rec  *relay.Record
		want int
	}{{s, rec, 1}, {s, rec, 1}, {s, &replayed, 2}, {s, &replayed, 2}, {other, rec, 3}, {other, rec, 3}} {
		if err := c.sink.Publish(soon(t), []*relay.Record{c.rec}); err != nil {
			t.Fatal(err)
		}
		if got := len(consume(t, server.URL, subject)); got != c.want {
			t.Errorf("%d messages, want %d", got, c.want)
		}
	}
	if err := errors.Join(s.Close(), other.Close()); err != nil {
		t.Error(err)
	}
}
