package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// A receiver that redirects, asks to wait, hangs up, and at last takes events: they come in order
// per key, each signed, with nothing lost. What it refuses for good is a dead letter, and the next
// of its key goes on.
func TestWebhook(t *testing.T) {
	t.Parallel()
	const secret, token = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "hush-token"
	w := newWorld(t)
	hook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got []verify.Event
	phase, requests := 0, 0 // answers by phase, until the test goes on
	var busyAt, nextAt time.Time
	receiver := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if err := hook.Verify(body, r.Header); err != nil {
			t.Errorf("signature: %v", err)
		}
		if r.Header.Get("X-Token") != token || r.URL.Path != "/hook/order.placed" {
			t.Errorf("a request to %s, token %t", r.URL.Path, r.Header.Get("X-Token") == token)
		}
		mu.Lock()
		defer mu.Unlock()
		requests++
		switch {
		case phase == 0: // every one, until the test has seen that they wait
			http.Redirect(rw, r, "http://elsewhere.example.com/hush", http.StatusMovedPermanently)
			return
		case bytes.Contains(body, []byte(`"poison"`)):
			rw.WriteHeader(http.StatusGone)
			return
		case busyAt.IsZero():
			busyAt = time.Now()
			rw.Header().Set("Retry-After", "1")
			rw.WriteHeader(http.StatusTooManyRequests)
			return
		case nextAt.IsZero():
			nextAt = time.Now()
			panic(http.ErrAbortHandler) // no answer
		}
		id, err := relay.ParseUUID(r.Header.Get("webhook-id"))
		if err != nil || id.String() != r.Header.Get("event-id") {
			t.Errorf("webhook-id %q, event-id %q", r.Header.Get("webhook-id"), r.Header.Get("event-id"))
		}
		got = append(got, verify.Event{ID: id, Key: r.Header.Get("of-key")})
	}))
	defer receiver.Close()

	env := settings{
		"BROKER_TYPE": "webhook", "RELAY_WEBHOOK_URL": receiver.URL + "/hook/{topic}", "RELAY_WEBHOOK_SECRETS": secret + ",whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("n"), 32)),
		"RELAY_WEBHOOK_HEADERS": "X-Token=" + token, "RELAY_WEBHOOK_CONCURRENCY": "1", // so that the answers go by turns
		"INITIAL_RETRY_DELAY_SECONDS": "0.1", "MAX_RETRY_DELAY_SECONDS": "0.3", "MAX_RETRIES": "2", "RELAY_BACKOFF_MAX": "300ms",
	}
	p := w.relay("webhook", env)
	p.waitStreaming()
	rows := w.randomKeys(newRand(t), 60, "order.placed")
	for i := range rows {
		rows[i].headers = `{"of_key": "` + rows[i].key + `"}`
	}
	ids := w.insert(rows...)
	w.waitLedger(p, "webhook", len(rows)) // the first of each key is refused, the others wait behind it
	refused := p.waitLog("event refused")
	if text := refused.text("error"); !strings.Contains(text, "redirects are not followed, this one points to http://elsewhere.example.com: put") || strings.Contains(text, "hush") {
		t.Errorf("refused because of %q", text)
	}
	mu.Lock()
	phase = 1
	mu.Unlock()
	poison := w.insert(row{key: "p", topic: "order.placed", payload: `{"note": "poison"}`, headers: `{"of_key": "p"}`}, row{key: "p", topic: "order.placed", headers: `{"of_key": "p"}`})
	w.waitNonePending(p)
	if status, lastError := w.fate(poison[0]); status != "dead_letter" || !strings.Contains(lastError, "rejected") || !strings.Contains(lastError, "410 Gone") {
		t.Errorf("the event that is refused for good is %s: %s", status, lastError)
	}
	out, code := w.command(env, "sinks")
	if code != 0 || !strings.Contains(out, receiver.URL) || strings.Contains(out, "/hook") {
		t.Errorf("sinks: exit code %d, %s", code, out)
	}
	if out, code = w.command(env, "verify", "--since", "1h"); code != 2 || out != "" {
		t.Errorf("verify: exit code %d, %s", code, out)
	}
	p.stop()
	for _, line := range p.log() {
		if text := fmt.Sprint(line); strings.Contains(text, token) || strings.Contains(text, secret) || strings.Contains(text, "/hook/") {
			t.Errorf("a secret is logged: %s", text)
		}
	}

	mu.Lock()
	defer mu.Unlock()
	if wait := nextAt.Sub(busyAt); wait < time.Second {
		t.Errorf("the request after Retry-After: 1 came after %s", wait)
	}
	check := verify.New(verify.Options{}, "webhook")
	for i, id := range ids {
		check.Commit(verify.Event{ID: id, Key: rows[i].key})
	}
	check.Commit(verify.Event{ID: poison[1], Key: "p"})
	check.Deliver("webhook", got...)
	if err := check.Report().Err(); err != nil {
		t.Error(err)
	}
}
