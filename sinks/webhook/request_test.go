package webhook

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// send publishes one record and returns what the receiver got.
func send(t *testing.T, cfg Config, r *receiver, rec *relay.Record) *request {
	t.Helper()
	if err := open(t, cfg).Publish(soon(t), []*relay.Record{rec}); err != nil {
		t.Fatal(err)
	}
	got := r.got()
	if len(got) != 1 {
		t.Fatalf("%d requests, want 1", len(got))
	}
	return got[0]
}

func TestHeaders(t *testing.T) {
	r := newReceiver(t, nil)
	cfg := r.config()
	cfg.Headers = []string{"X-Api-Key=a%2Cb%25", "authorization=Bearer%20abc"}
	rec := sinktest.NewRecord("OrderCreated", "k", 0, 0)
	rec.Headers = []relay.Header{
		{Key: "event_id", Value: "id-1"},
		{Key: "Customer_Name", Value: "Jane \"J\" Doe"},
		{Key: "percent", Value: "50% off"},
		{Key: "Grüße", Value: "Jürgen"},
		{Key: "lines", Value: "a\r\nHost: evil"},
		{Key: "spaces", Value: " a b "},
		{Key: "empty", Value: ""},
		{Key: "", Value: "nameless"},
		{Key: "baggage", Value: "user=J%C3%BCrgen"},
		{Key: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		{Key: "content_type", Value: "application/vnd.shop+json"},
		// What a row may not set.
		{Key: "Host", Value: "evil"},
		{Key: "Content-Length", Value: "0"},
		{Key: "transfer_encoding", Value: "chunked"},
		{Key: "Authorization", Value: "evil"},
		{Key: "webhook-signature", Value: "v1,evil"},
		{Key: "WEBHOOK_ID", Value: "evil"},
		{Key: "x-api-key", Value: "evil"},
		{Key: "User-Agent", Value: "evil"},
		// One name for HTTP.
		{Key: "a_b", Value: "1"},
		{Key: "A-B", Value: "2"},
	}
	got := send(t, cfg, r, rec)
	want := map[string]string{
		"event-id": "id-1", "customer-name": `Jane "J" Doe`, "percent": "50%25 off", "gr%c3%bc%c3%9fe": "J%C3%BCrgen", "lines": "a%0D%0AHost: evil", "spaces": "%20a b%20", "empty": "", "row-": "nameless",
		"baggage": "user=J%C3%BCrgen", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "content-type": "application/vnd.shop+json",
		"row-host": "evil", "row-content-length": "0", "row-transfer-encoding": "chunked", "row-authorization": "evil", "row-webhook-signature": "v1,evil", "row-webhook-id": "evil", "row-x-api-key": "evil", "row-user-agent": "evil",
		"x-api-key": "a,b%", "authorization": "Bearer abc", "user-agent": "sagaz-relay", "webhook-id": rec.EventID.String(), "a-b": "1, 2",
	}
	for name, value := range got.Header {
		name = strings.ToLower(name)
		if name == "webhook-timestamp" || name == "content-length" {
			continue
		}
		if joined := strings.Join(value, ", "); want[name] != joined {
			t.Errorf("%s: got %q, want %q", name, joined, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("did not arrive: %v", want)
	}
	if got.Host != r.addr || string(got.body) != string(rec.Value) || got.Method != http.MethodPost || got.URL.Path != "/events/OrderCreated" {
		t.Errorf("%s %s, host %s, body %q", got.Method, got.URL, got.Host, got.body)
	}
}

// Binary mode of the HTTP protocol binding of CloudEvents 1.0.2; the encoded value is the
// specification's own example (3.1.3.2).
func TestCloudEvent(t *testing.T) {
	r := newReceiver(t, nil)
	rec := sinktest.NewRecord("OrderCreated", "k", 0, 0)
	rec.CloudEvent = true
	rec.Headers = []relay.Header{
		{Key: "ce_specversion", Value: "1.0"},
		{Key: "ce_id", Value: "1"},
		{Key: "ce_subject", Value: "Euro € 😀"},
		{Key: "ce_quoted", Value: `a "b" 5%`},
		{Key: "content-type", Value: "application/json"},
		{Key: "mine", Value: "a b"},
	}
	h := send(t, r.config(), r, rec).Header
	for name, want := range map[string]string{
		"ce-specversion": "1.0", "ce-id": "1", "ce-subject": "Euro%20%E2%82%AC%20%F0%9F%98%80", "ce-quoted": "a%20%22b%22%205%25", "content-type": "application/json", "mine": "a b",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// A topic is one segment of the path, or one value of the query, whatever is in it.
func TestTopicInURL(t *testing.T) {
	r := newReceiver(t, nil)
	cfg := r.config()
	cfg.URL = "http://" + r.addr + "/a%2Fb/{topic}?of={topic}&x=1%262"
	s := open(t, cfg)
	for topic, want := range map[string]string{
		"orders.created":      "/a%2Fb/orders.created?of=orders.created&x=1%262",
		"../admin?x=1#f":      "/a%2Fb/..%2Fadmin%3Fx=1%23f?of=..%2Fadmin%3Fx%3D1%23f&x=1%262",
		"über all%2F&{topic}": "/a%2Fb/%C3%BCber%20all%252F&%7Btopic%7D?of=%C3%BCber+all%252F%26%7Btopic%7D&x=1%262",
	} {
		if err := s.Publish(soon(t), []*relay.Record{sinktest.NewRecord(topic, "k", 0, 0)}); err != nil {
			t.Fatal(err)
		}
		all := r.got()
		if got := all[len(all)-1].RequestURI; got != want {
			t.Errorf("topic %q: got %s, want %s", topic, got, want)
		}
	}
	for _, topic := range []string{"", ".", ".."} {
		recs := []*relay.Record{sinktest.NewRecord(topic, "k", 0, 0), sinktest.NewRecord("fine", "k", 1, 0), sinktest.NewRecord("fine", "other", 0, 0)}
		if cfg.CheckRoute(relay.Route{Topic: topic}) == nil || cfg.CheckRoute(relay.Route{Topic: "fine"}) != nil || (&Config{URL: "http://x/"}).CheckRoute(relay.Route{Topic: topic}) != nil {
			t.Errorf("topic %q: a rule with it is judged otherwise", topic)
		}
		errs := outcomes(t, 3, s.Publish(soon(t), recs))
		if r, ok := relay.Refused(errs[0]); !ok || r.Reason != relay.ReasonEncode || !errors.Is(errs[1], relay.ErrBehind) || errs[2] != nil {
			t.Errorf("topic %q: %v", topic, errs)
		}
	}
}

func TestBasicAuthorization(t *testing.T) {
	r := newReceiver(t, nil)
	cfg := r.config()
	cfg.URL = "http://relay:p%40ss%2Fword@" + r.addr + "/events"
	user, password, ok := send(t, cfg, r, sinktest.NewRecord("OrderCreated", "k", 0, 0)).BasicAuth()
	if !ok || user != "relay" || password != "p@ss/word" {
		t.Errorf("user %q, password %q", user, password)
	}
}

// The environment's proxy is not asked.
func TestNoProxy(t *testing.T) {
	r, proxy := newReceiver(t, nil), newReceiver(t, nil)
	t.Setenv("HTTP_PROXY", "http://"+proxy.addr)
	t.Setenv("http_proxy", "http://"+proxy.addr)
	cfg := r.config()
	cfg.URL = strings.Replace(cfg.URL, "127.0.0.1", "receiver.localhost", 1)
	_ = open(t, cfg).Publish(soon(t), []*relay.Record{sinktest.NewRecord("OrderCreated", "k", 0, 0)}) // the name need not resolve
	if proxy.count() > 0 {
		t.Error("the proxy of the environment got a request")
	}
}
