package webhook

import (
	"crypto/ed25519"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// Of the tests of the libraries of Standard Webhooks (TestWebhookSign and its twins in the other
// languages), and so are secret, id, time and body of TestPublishedVector.
const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

func TestPublishedVector(t *testing.T) {
	signers, err := newSigners([]string{testSecret})
	if err != nil {
		t.Fatal(err)
	}
	got := signatures(signers, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A receiver with the library verifies what arrives, with the old secret and with the new one while
// they are replaced, and with the public key of an ed25519 secret.
func TestSignatures(t *testing.T) {
	const old, next = testSecret, "whsec_c2VjcmV0IG51bWJlciB0d28gb2YgdGhlIHRlc3Q="
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := newReceiver(t, nil)
	cfg := r.config()
	cfg.Secrets = []string{next, old, "whsk_" + base64.StdEncoding.EncodeToString(private.Seed()), "whsk_" + base64.StdEncoding.EncodeToString(private)}
	recs := sinktest.Records("OrderCreated", "a", 0, 2)
	recs[1].Value = nil
	if err := open(t, cfg).Publish(soon(t), recs); err != nil {
		t.Fatal(err)
	}
	for i, req := range r.got() {
		for _, secret := range []string{old, next} {
			hook, err := standardwebhooks.NewWebhook(secret)
			if err != nil {
				t.Fatal(err)
			}
			if err := hook.Verify(req.body, req.Header); err != nil {
				t.Errorf("record %d, secret %.9s: %v", i, secret, err)
			}
			if err := hook.Verify(append(req.body, ' '), req.Header); err == nil {
				t.Errorf("record %d, secret %.9s: another body has the same signature", i, secret)
			}
		}
		id := req.Header.Get("webhook-id")
		if id != recs[i].EventID.String() {
			t.Errorf("record %d: webhook-id %s, want %s", i, id, recs[i].EventID)
		}
		text := id + "." + req.Header.Get("webhook-timestamp") + "." + string(req.body)
		list := strings.Split(req.Header.Get("webhook-signature"), " ")
		if len(list) != 4 || list[2] != list[3] {
			t.Fatalf("record %d: signatures %q, want four, the last two the same", i, list)
		}
		signature, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(list[2], "v1a,"))
		if err != nil || !ed25519.Verify(public, []byte(text), signature) {
			t.Errorf("record %d: the public key does not verify %s: %v", i, list[2], err)
		}
	}
	if len(r.got()) != 2 {
		t.Errorf("%d requests, want 2", len(r.got()))
	}
}

// Without a secret there is no signature, and id and time all the same.
func TestUnsigned(t *testing.T) {
	r := newReceiver(t, nil)
	if err := open(t, r.config()).Publish(soon(t), []*relay.Record{sinktest.NewRecord("OrderCreated", "a", 0, 0)}); err != nil {
		t.Fatal(err)
	}
	h := r.got()[0].Header
	if h.Get("webhook-signature") != "" || h.Get("webhook-id") == "" || h.Get("webhook-timestamp") == "" {
		t.Errorf("headers %v", http.Header(h))
	}
}
