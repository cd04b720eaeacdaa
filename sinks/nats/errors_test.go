package nats

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

type streamConfig = jetstream.StreamConfig

func publish(t testing.TB, s *Sink, recs ...*relay.Record) error {
	t.Helper()
	return s.Publish(soon(t), recs)
}

func TestTooLarge(t *testing.T) {
	server := natstest.Start(t, "")
	s := newSink(t, config(server))
	subject := newStream(t, server.URL, func(c *streamConfig) { c.MaxMsgSize = 1000 })
	r := refusal(t, publish(t, s, sinktest.NewRecord(subject, "k", 0, 1000)), relay.ReasonTooLarge, "max_msg_size")
	if r.Size < 1000 {
		t.Errorf("size %d", r.Size)
	}
	subject = newStream(t, server.URL, nil)
	r = refusal(t, publish(t, s, sinktest.NewRecord(subject, "k", 0, 1<<20)), relay.ReasonTooLarge, "max_payload")
	if r.Limit != 1<<20 || r.Size <= r.Limit {
		t.Errorf("size %d, limit %d", r.Size, r.Limit)
	}
	// As large as possible: the size with headers is known to the byte.
	rec := sinktest.NewRecord(subject, "k", 0, 0)
	if r, ok := relay.Refused(fits(must(s.message(rec)), 1)); !ok {
		t.Fatal("no size")
	} else {
		rec.Value = append(rec.Value, strings.Repeat(" ", 1<<20-int(r.Size))...)
	}
	if err := publish(t, s, rec); err != nil {
		t.Errorf("a message of just max_payload: %v", err)
	}
	rec = sinktest.NewRecord(subject, "k", 1, 0)
	rec.Headers = append(rec.Headers, relay.Header{Key: "big", Value: strings.Repeat("x", 70_000)})
	if r := refusal(t, publish(t, s, rec), relay.ReasonTooLarge, "headers"); r.Limit != 64<<10 {
		t.Errorf("limit %d", r.Limit)
	}
}

func must(m *nats.Msg, err error) *nats.Msg {
	if err != nil {
		panic(err)
	}
	return m
}

// A stream that is full for a moment takes a small record behind a large one that it did not take.
// Nothing of a key may overtake there: the stream would drop it as a duplicate when it is repeated.
func TestNothingOvertakesInAFullStream(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, func(c *streamConfig) { c.MaxBytes, c.Discard = 20_000, jetstream.DiscardNew })
	s := newSink(t, config(server))
	a := []*relay.Record{sinktest.NewRecord(subject, "a", 0, 10_000), sinktest.NewRecord(subject, "a", 1, 15_000), sinktest.NewRecord(subject, "a", 2, 10)}
	b := sinktest.Records(subject, "b", 0, 3)
	err := publish(t, s, sinktest.Interleave(a, b)...)
	transient(t, err, "maximum bytes exceeded")
	var be *relay.BatchError
	if !errors.As(err, &be) || be.Errs[0] != nil || be.Errs[2] == nil || be.Errs[4] == nil || be.Errs[1] != nil || be.Errs[5] != nil {
		t.Fatalf("got %v, want a1 and a2 to be offered again", err)
	}
	js, done := admin(t, server.URL)
	defer done()
	stream, err := js.Stream(soon(t), streamOf(subject))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(soon(t), 1); err != nil { // a0 was consumed
		t.Fatal(err)
	}
	if err := publish(t, s, a[1:]...); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, d := range consume(t, server.URL, subject) {
		if strings.Contains(string(d.Value), `"a"`) {
			order = append(order, string(d.Value[:18]))
		}
	}
	if len(order) != 2 || !strings.Contains(order[0], `"seq":1`) || !strings.Contains(order[1], `"seq":2`) {
		t.Errorf("key a: %q, want 1 and 2", order)
	}
}

func TestStreamIsFull(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, func(c *streamConfig) { c.MaxMsgs, c.Discard = 2, jetstream.DiscardNew })
	s := newSink(t, config(server))
	if err := publish(t, s, sinktest.Records(subject, "a", 0, 2)...); err != nil {
		t.Fatal(err)
	}
	transient(t, publish(t, s, sinktest.Records(subject, "a", 2, 2)...), "maximum messages exceeded")
}

func TestStreamDeletedAndMadeAgain(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, nil)
	s := newSink(t, config(server))
	if err := publish(t, s, sinktest.Records(subject, "a", 0, 2)...); err != nil {
		t.Fatal(err)
	}
	js, done := admin(t, server.URL)
	defer done()
	if err := js.DeleteStream(soon(t), streamOf(subject)); err != nil {
		t.Fatal(err)
	}
	refusal(t, publish(t, s, sinktest.Records(subject, "a", 2, 1)...), relay.ReasonUnroutable, "no stream has subject")
	if _, err := js.CreateStream(soon(t), streamConfig{Name: streamOf(subject), Subjects: []string{subject}}); err != nil {
		t.Fatal(err)
	}
	if err := publish(t, s, sinktest.Records(subject, "a", 2, 1)...); err != nil {
		t.Error(err)
	}
}

// A plain subscriber is no stream: nobody acknowledges, and what it answers is no acknowledgement.
func TestPlainSubscriber(t *testing.T) {
	server := natstest.Start(t, "")
	nc, err := nats.Connect(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
	defer func() {
		nc.Close()
		<-closed
	}()
	stored := newStream(t, server.URL, nil)
	for _, subject := range []string{"plain", stored} {
		if _, err := nc.Subscribe(subject, func(m *nats.Msg) { _ = m.Respond([]byte("thanks")) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	cfg := config(server)
	cfg.AckTimeout = 300 * time.Millisecond
	s := newSink(t, cfg)
	refusal(t, publish(t, s, sinktest.NewRecord("plain", "k", 0, 0)), relay.ReasonUnroutable, "no stream has subject")
	if err := publish(t, s, sinktest.NewRecord(stored, "k", 0, 0)); err != nil {
		t.Errorf("with a stream besides: %v", err)
	}
}

// A stream that acknowledges nothing is not unroutable; its events wait.
func TestNoAcknowledgement(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, func(c *streamConfig) { c.NoAck = true })
	cfg := config(server)
	cfg.AckTimeout = 300 * time.Millisecond
	s := newSink(t, cfg)
	err := publish(t, s, sinktest.Interleave(sinktest.Records(subject, "a", 0, 2), sinktest.Records(subject, "b", 0, 2))...)
	transient(t, err, "no acknowledgement within 300ms")
	var be *relay.BatchError
	if !errors.As(err, &be) || !errors.Is(be.Errs[2], errHeld) || !errors.Is(be.Errs[3], errHeld) {
		t.Errorf("got %v, want the second ones held", err)
	}
	if got := len(consume(t, server.URL, subject)); got != 2 {
		t.Errorf("%d messages arrived, want the first of each key", got)
	}
}

func TestStreamOfAnotherName(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, nil)
	cfg := config(server)
	cfg.Stream = "ORDERS"
	s := newSink(t, cfg)
	refusal(t, publish(t, s, sinktest.NewRecord(subject, "k", 0, 0)), relay.ReasonUnroutable, "another stream's than ORDERS")
	cfg.Stream = streamOf(subject)
	if err := publish(t, newSink(t, cfg), sinktest.NewRecord(subject, "k", 0, 0)); err != nil {
		t.Error(err)
	}
}

func TestSealedStream(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, nil)
	js, done := admin(t, server.URL)
	defer done()
	if _, err := js.UpdateStream(soon(t), streamConfig{Name: streamOf(subject), Subjects: []string{subject}, Sealed: true}); err != nil {
		t.Fatal(err)
	}
	refusal(t, publish(t, newSink(t, config(server)), sinktest.NewRecord(subject, "k", 0, 0)), relay.ReasonRejected, "sealed")
}

// accounts has a user for each right that may be missing.
const accounts = `
accounts {
  A {
    jetstream: enabled
    users: [
      {user: admin, password: "hunter2-admin"}
      {user: narrow, password: "hunter2-narrow", permissions: {publish: ["events.>", "$JS.API.STREAM.NAMES"], subscribe: ["_INBOX.>"]}}
      {user: blind, password: "hunter2-blind", permissions: {publish: ["events.>", "elsewhere"], subscribe: ["_INBOX.>"]}}
      {user: deaf, password: "hunter2-deaf", permissions: {publish: [">"], subscribe: ["own.>"]}}
    ]
  }
  B { users: [{user: without, password: "hunter2-without"}] }
}`

func TestRights(t *testing.T) {
	server := natstest.Start(t, accounts)
	subject := newStream(t, server.URL, nil, nats.UserInfo("admin", "hunter2-admin"))
	as := func(user string) (*Sink, *sinkLog) {
		cfg := config(server)
		cfg.User, cfg.Password = user, "hunter2-"+user
		return newLoggedSink(t, cfg)
	}
	t.Run("publish", func(t *testing.T) {
		s, _ := as("narrow")
		denied := sinktest.NewRecord("other.subject", "k", 0, 0)
		err := publish(t, s, denied, sinktest.NewRecord(subject, "k", 0, 0), sinktest.NewRecord(subject, "l", 0, 0))
		refusal(t, err, relay.ReasonRejected, `no right to publish to subject "other.subject"`)
		var be *relay.BatchError
		if !errors.As(err, &be) || !errors.Is(be.Errs[1], relay.ErrBehind) || be.Errs[2] != nil {
			t.Errorf("got %v, want the one behind it held and the other one acknowledged", err)
		}
		if err := s.Check(soon(t)); err != nil { // who may not ask may still publish
			t.Errorf("check: %v", err)
		}
	})
	t.Run("ask for the stream", func(t *testing.T) {
		s, _ := as("blind")
		refusal(t, publish(t, s, sinktest.NewRecord("elsewhere", "k", 0, 0)), relay.ReasonUnroutable, "no stream has subject")
		_, err := s.CheckRoutes(soon(t), []relay.Route{{EventType: "X", Topic: subject}})
		if err == nil || !strings.Contains(err.Error(), "$JS.API.STREAM.NAMES") {
			t.Errorf("check of routes: %v, want the right that is missing", err)
		}
	})
	t.Run("subscribe", func(t *testing.T) {
		s, _ := as("deaf")
		err := publish(t, s, sinktest.NewRecord(subject, "k", 0, 0))
		var setup *relay.SetupError
		if !errors.As(err, &setup) || !strings.Contains(setup.Fix, "RELAY_NATS_INBOX_PREFIX") {
			t.Errorf("got %v, want the setting that fixes it", err)
		}
		cfg := config(server)
		cfg.User, cfg.Password, cfg.InboxPrefix = "deaf", "hunter2-deaf", "own"
		if err := publish(t, newSink(t, cfg), sinktest.NewRecord(subject, "k", 1, 0)); err != nil {
			t.Errorf("with the prefix that it may read: %v", err)
		}
	})
	t.Run("JetStream", func(t *testing.T) {
		s, _ := as("without")
		var setup *relay.SetupError
		if err := s.Check(soon(t)); !errors.As(err, &setup) || !strings.Contains(setup.Fix, "jetstream: enabled") {
			t.Errorf("got %v, want how to switch JetStream on", err)
		}
	})
	t.Run("login", func(t *testing.T) {
		for _, wrong := range []string{"hunter2-wrong", ""} {
			cfg := config(server)
			if wrong != "" {
				cfg.User, cfg.Password = "admin", wrong
			}
			s, log := newLoggedSink(t, cfg)
			err := publish(t, s, sinktest.NewRecord(subject, "k", 0, 0))
			transient(t, err, "NATS_PASSWORD")
			if text := err.Error() + log.String(); strings.Contains(text, "hunter2") {
				t.Errorf("a password is shown: %s", text)
			}
		}
	})
	t.Run("in the address", func(t *testing.T) {
		cfg := config(server)
		cfg.Servers = []string{fmt.Sprintf("nats://admin:hunter2-admin@127.0.0.1:%d", server.Port)}
		s, log := newLoggedSink(t, cfg)
		if err := publish(t, s, sinktest.NewRecord(subject, "k", 2, 0)); err != nil {
			t.Error(err)
		}
		server.Kill(t)
		err := publish(t, s, sinktest.NewRecord(subject, "k", 3, 0))
		server.Restart(t)
		if text := fmt.Sprint(err) + log.String(); err == nil || strings.Contains(text, "hunter2") {
			t.Errorf("server gone: want an error without the password: %s", text)
		}
	})
}

// Rights that are taken away while the relay runs.
func TestRightsTakenAway(t *testing.T) {
	server := natstest.Start(t, accounts)
	subject := newStream(t, server.URL, nil, nats.UserInfo("admin", "hunter2-admin"))
	cfg := config(server)
	cfg.User, cfg.Password = "narrow", "hunter2-narrow"
	s := newSink(t, cfg)
	if err := publish(t, s, sinktest.NewRecord(subject, "k", 0, 0)); err != nil {
		t.Fatal(err)
	}
	server.Reconfigure(t, strings.Replace(accounts, `publish: ["events.>", "$JS`, `publish: ["others.>", "$JS`, 1))
	eventually(t, "the right is gone", func() bool {
		r, ok := relay.Refused(publish(t, s, sinktest.NewRecord(subject, "k", 1, 0)))
		return ok && r.Reason == relay.ReasonRejected
	})
}

func TestUnreachable(t *testing.T) {
	server := natstest.Start(t, "")
	server.Kill(t)
	cfg := config(server)
	cfg.DialTimeout = time.Second
	s := newSink(t, cfg)
	var setup *relay.SetupError
	if err := s.Check(soon(t)); !errors.As(err, &setup) || !strings.Contains(setup.Fix, "nothing listens there") {
		t.Errorf("nobody there: %v", err)
	}
	server.Restart(t)
	thaw := server.Freeze(t)
	err := s.Check(soon(t))
	thaw()
	if !errors.As(err, &setup) || !strings.Contains(setup.Fix, "no answer in time") {
		t.Errorf("it hangs: %v", err)
	}
	cfg.Servers = []string{"nats://127.0.0.1:1", server.URL, "nats://no-such-host.invalid:4222"}
	several := newSink(t, cfg)
	subject := newStream(t, server.URL, nil)
	if err := publish(t, several, sinktest.NewRecord(subject, "k", 0, 0)); err != nil {
		t.Errorf("one of three servers is there: %v", err)
	}
}

// Many lanes and one connection that is cut again and again: each is told soon, none hangs.
func TestPublishEndsWithItsContext(t *testing.T) {
	server := natstest.Start(t, "")
	subject := newStream(t, server.URL, nil)
	s := newSink(t, config(server))
	if err := publish(t, s, sinktest.NewRecord(subject, "k", 0, 0)); err != nil {
		t.Fatal(err)
	}
	defer server.Freeze(t)()
	// More than the sockets take: the client hangs in a write, with its lock.
	var large []*relay.Record
	for i := range 40 {
		large = append(large, sinktest.NewRecord(subject, fmt.Sprint(i), 0, 900_000))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	begin := time.Now()
	err := s.Publish(ctx, large)
	if again, _ := sinktest.Failed(large, err); len(again) != len(large) {
		t.Errorf("%d of %d failed: %v", len(again), len(large), err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}
