package nats

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestCheckRoutes(t *testing.T) {
	server := natstest.Start(t, "")
	fine := newStream(t, server.URL, nil)
	silent := newStream(t, server.URL, func(c *streamConfig) { c.NoAck = true })
	full := newStream(t, server.URL, func(c *streamConfig) { c.MaxMsgs, c.Discard = 1, jetstream.DiscardNew })
	s := newSink(t, config(server))
	if err := publish(t, s, sinktest.NewRecord(full, "k", 0, 0)); err != nil {
		t.Fatal(err)
	}
	var routes []relay.Route
	for _, subject := range []string{fine, "nobody.listens", "$JS.API.STREAM.DELETE.x", silent, full, fine} {
		routes = append(routes, relay.Route{EventType: "of " + subject, Topic: subject, RoutingKey: "r"})
	}
	problems, err := s.CheckRoutes(soon(t), routes)
	if err != nil {
		t.Fatal(err)
	}
	want := []struct{ subject, problem, fix, note string }{
		{"nobody.listens", "no stream has subject", "nats stream add STREAM --subjects nobody.listens", ""},
		{"$JS.API.STREAM.DELETE.x", "servers' own", "RELAY_TOPIC", ""},
		{silent, "acknowledges nothing", "--ack", ""},
		{full, "is full", "raise its limits", "wait"},
	}
	if len(problems) != len(want) {
		t.Fatalf("got %+v", problems)
	}
	for i, w := range want {
		p := problems[i]
		if p.Route.Topic != w.subject || !strings.Contains(p.Problem, w.problem) || !strings.Contains(p.Fix, w.fix) || !strings.Contains(p.Note, w.note) || (p.Note == "") != (w.note == "") {
			t.Errorf("got %+v, want %+v", p, w)
		}
	}
	cfg := config(server)
	cfg.Stream = "ORDERS"
	problems, err = newSink(t, cfg).CheckRoutes(soon(t), routes[:1])
	if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Problem, "not ORDERS's") {
		t.Errorf("another stream: %+v, %v", problems, err)
	}
	place := s.Place(nil)
	if place.System != "nats" || place.Host != "127.0.0.1" || place.Port != server.Port || s.Destination(&relay.Record{Topic: "x"}) != "x" {
		t.Errorf("place %+v", place)
	}
}

func TestReadBack(t *testing.T) {
	server := natstest.Start(t, "")
	one, two, empty := newStream(t, server.URL, nil), newStream(t, server.URL, nil), newStream(t, server.URL, nil)
	s := newSink(t, config(server))
	before := sinktest.NewRecord(one, "old", 0, 0)
	if err := publish(t, s, before); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond) // times have milliseconds
	since := time.Now()
	recs := append(sinktest.Records(one, "a", 0, 30), sinktest.Records(two, "b", 0, 3)...)
	recs[1].Headers = append(recs[1].Headers, relay.Header{Key: "größe", Value: "a\nb"})
	if err := publish(t, s, recs...); err != nil {
		t.Fatal(err)
	}
	var got []Stored
	if err := ReadBack(soon(t), config(server), []string{one, two, empty, "nobody.listens", "not legal"}, since, func(s Stored) error {
		got = append(got, s)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(recs) {
		t.Fatalf("read %d messages, want %d", len(got), len(recs))
	}
	place := make(map[string]int)
	for i, rec := range recs {
		place[rec.EventID.String()] = i
	}
	last := map[string]int{one: -1, two: -1}
	for _, m := range got {
		at, ok := place[m.EventID]
		if !ok || string(recs[at].Value) != string(m.Value) || recs[at].Topic != m.Subject || at <= last[m.Subject] {
			t.Fatalf("got %+v behind %d", m, last[m.Subject])
		}
		last[m.Subject] = at
		for _, h := range recs[at].Headers {
			if !slices.Contains(m.Headers, h) {
				t.Errorf("record %d has no header %v: %v", at, h, m.Headers)
			}
		}
	}
	if err := ReadBack(soon(t), config(server), []string{"nobody.listens"}, since, nil); err == nil {
		t.Error("no stream: no error")
	}
}
