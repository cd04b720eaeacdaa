package e2e

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sagaz-relay/relay/internal/testbed/natstest"
)

// The program with NATS from the outside: the server is killed under load, the subject of some
// events has no stream for a while, and verify finds all, and finds it when one is gone.
func TestNATS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rnd := newRand(t)
	server := natstest.Start(t, "")
	nc, err := nats.Connect(server.URL, nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.order"}})
	if err != nil {
		t.Fatal(err)
	}
	env := settings{
		"BROKER_TYPE": "nats", "NATS_URL": server.URL, "RELAY_TOPIC": "outbox.{event_type}", "RELAY_NATS_ACK_TIMEOUT": "2s",
		"INITIAL_RETRY_DELAY_SECONDS": "0.1", "MAX_RETRY_DELAY_SECONDS": "0.3", "RELAY_BACKOFF_MAX": "300ms", "RELAY_UNROUTABLE_PATIENCE": "10m",
	}
	if out, code := w.command(env, "sinks"); code != 0 || !strings.Contains(out, server.URL) {
		t.Errorf("sinks: exit code %d, %s", code, out)
	}
	p := w.relay("nats", env)
	p.waitStreaming()
	w.insert(w.randomKeys(rnd, 300, "order")...)
	server.Kill(t)
	w.insert(w.randomKeys(rnd, 300, "order")...)
	server.Restart(t)
	w.insert(w.randomKeys(rnd, 5, "refund")...)
	w.db.Until(t, `SELECT count(*) > 0 FROM saga_outbox_delivery WHERE sink = 'nats' AND reason = 'unroutable' AND attempts >= 2`)
	out, code := w.command(env, "doctor")
	if !strings.Contains(out, `no stream has subject "outbox.refund"`) || !strings.Contains(out, "nats stream add") {
		t.Errorf("doctor: exit code %d, %s", code, out)
	}
	if _, err := js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}}); err != nil {
		t.Fatal(err)
	}
	w.waitNonePending(p)
	w.waitLedger(p, "nats", 0)
	if out, code = w.command(env, "verify", "--since", "1h"); code != 0 || !strings.Contains(out, "605") {
		t.Errorf("verify: exit code %d, %s", code, out)
	}
	if err := stream.DeleteMsg(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	if out, code = w.command(env, "verify", "--since", "1h"); code != 1 || !strings.Contains(out, " 1 missing") {
		t.Errorf("verify without a message: exit code %d, %s", code, out)
	}
	p.stop()
}
