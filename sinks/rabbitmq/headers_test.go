package rabbitmq

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestMoreRoutes(t *testing.T) {
	long := strings.Repeat("r", 256)
	for value, want := range map[string][]any{
		`audit`:              {"audit"},
		``:                   {""},
		`["a","b"]`:          {"a", "b"},
		`[]`:                 {},
		`["é"]`:              {"é"},
		`[broken`:            {"[broken"},
		`{"a":1}`:            {`{"a":1}`},
		`5`:                  {"5"},
		`null`:               {"null"},
		`[1,2]`:              nil,
		`["a",null]`:         nil,
		`["a",["b"]]`:        nil,
		long:                 nil,
		`["` + long + `"]`:   nil,
		`["a", "` + long[1:]: nil, // no JSON, and too long for one key
	} {
		got, err := moreRoutes("CC", value)
		r, refused := relay.Refused(err)
		switch {
		case want == nil && (!refused || r.Reason != relay.ReasonEncode || !strings.Contains(err.Error(), "CC")):
			t.Errorf("%.40s: got %v, %v, want it refused", value, got, err)
		case want != nil && (err != nil || !slices.Equal(got, want)):
			t.Errorf("%.40s: got %v, %v, want %v", value, got, err, want)
		}
	}
}

// Rows with the headers CC and BCC as text made the broker close the channel for ever. They go out
// as the arrays that RabbitMQ wants, and what they name gets a copy; what cannot be one is refused.
// The others arrive at once.
func TestCarbonCopies(t *testing.T) {
	url := brokertest.RabbitMQ(t).URL
	r := newRoom(t, url, nil)
	if err := r.admin.QueueBind(r.name, "#", r.name, false, nil); err != nil {
		t.Fatal(err)
	}
	copies, err := r.admin.QueueDeclare(r.name+"-copies", false, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.admin.QueueDelete(copies.Name, false, false, false) }()
	for _, key := range []string{"audit", "ledger"} {
		if err := r.admin.QueueBind(copies.Name, key, r.name, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	s := newSink(t, r.config())
	var batch []*relay.Record
	for i, header := range []relay.Header{
		{Key: "CC", Value: "audit"},
		{Key: "BCC", Value: "ledger"},
		{Key: "CC", Value: `["audit","ledger"]`},
		{Key: "CC", Value: `[]`},
		{Key: "cc", Value: "audit"},
		{Key: "CC", Value: `[1]`},
		{Key: "BCC", Value: strings.Repeat("x", 300)},
	} {
		rec := sinktest.NewRecord(bound, fmt.Sprintf("cc%d", i), 0, 0)
		rec.Headers = append(rec.Headers, header)
		batch = append(batch, rec)
	}
	want := map[string]int{"cc0": 1, "cc1": 1, "cc2": 1, "cc3": 1, "cc4": 1}
	for i := range 40 {
		key := fmt.Sprintf("good%d", i%8)
		batch = append(batch, sinktest.NewRecord(bound, key, want[key], 0))
		want[key]++
	}
	for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
		switch i {
		case 5, 6:
			refused(t, err, relay.ReasonEncode, "more routing keys")
		default:
			if err != nil {
				t.Errorf("record %d: %v", i, err)
			}
		}
	}
	var got []sinktest.Delivered
	for _, d := range r.deliveries(t) {
		got = append(got, sinktest.Delivered{Value: d.Body})
	}
	sinktest.CheckOrder(t, got, want, false)
	q, err := r.admin.QueueDeclarePassive(copies.Name, false, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if q.Messages != 3 {
		t.Errorf("%d copies, want 3", q.Messages)
	}
}

// A real broker's text about a routing key of 250 bytes is cut. The record is found even so, and so
// is one with permissions by routing key that the broker does not name.
func TestForbiddenRoutingKeyWithCutText(t *testing.T) {
	broker := ownBroker(t)
	ctl := func(args ...string) {
		t.Helper()
		if _, err := broker.Ctl(soon(t), args...); err != nil {
			t.Fatal(err)
		}
	}
	r := newRoom(t, broker.URL, nil)
	ctl("add_user", "cut", "cut-secret")
	defer ctl("delete_user", "cut")
	ctl("set_permissions", "cut", ".*", ".*", ".*")
	ctl("set_topic_permissions", "cut", r.name, "^"+bound+"$", ".*")
	cfg := r.config()
	cfg.URL = strings.Replace(cfg.URL, broker.User+":"+broker.Password, "cut:cut-secret", 1)
	s, log := newLoggedSink(t, cfg)
	want := map[string]int{}
	var batch []*relay.Record
	for i := range 100 {
		key := fmt.Sprintf("k%d", i%9)
		if i%33 == 10 {
			batch = append(batch, sinktest.NewRecord(strings.Repeat("f", 250), fmt.Sprintf("bad%d", i), 9, 0))
			continue
		}
		batch = append(batch, sinktest.NewRecord(bound, key, want[key], 0))
		want[key]++
	}
	for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
		switch {
		case i%33 == 10:
			refused(t, err, relay.ReasonRejected, "topic")
		case err != nil:
			t.Errorf("record %d: %v", i, err)
		}
	}
	sinktest.CheckOrder(t, r.consume(t), want, true)
	if n := strings.Count(log.String(), "connected"); n != 1 {
		t.Errorf("%d connections, want one", n)
	}
}

// Headers of every kind that a row can have arrive, or are refused, and take no other record with
// them.
func TestOddHeaders(t *testing.T) {
	url := brokertest.RabbitMQ(t).URL
	r := newRoom(t, url, amqp.Table{"x-queue-type": "quorum"})
	s := newSink(t, r.config())
	var batch []*relay.Record
	want := map[string]int{}
	for i, header := range []relay.Header{
		{Key: "", Value: "no name"},
		{Key: "x-death", Value: "text"},
		{Key: "x-delay", Value: "soon"},
		{Key: "x-match", Value: "all"},
		{Key: "x-first-death-queue", Value: "q"},
		{Key: "x-delivery-count", Value: "many"},
		{Key: "x-received-from", Value: "u"},
		{Key: "expiration", Value: "never"},
		{Key: "user_id", Value: "somebody"},
		{Key: "x-stream-filter-value", Value: "\x00"},
		{Key: "bad utf-8 \xff", Value: "\xff\xfe"},
		{Key: "nul\x00", Value: "\x00"},
		{Key: strings.Repeat("n", 255), Value: "long name"},
		{Key: strings.Repeat("n", 256), Value: "too long"},
		{Key: "big", Value: strings.Repeat("v", 10<<20)},
	} {
		rec := sinktest.NewRecord(bound, fmt.Sprintf("odd%d", i), 0, 0)
		rec.Headers = append(rec.Headers, header)
		good := sinktest.NewRecord(bound, fmt.Sprintf("good%d", i), 0, 0)
		batch = append(batch, rec, good)
		want[good.Key] = 1
		if len(header.Key) < 256 && len(header.Value) < 1<<20 {
			want[rec.Key] = 1
		}
	}
	for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
		if _, isRefused := relay.Refused(err); isRefused != (want[batch[i].Key] == 0) || err != nil && !isRefused {
			t.Errorf("record %d of key %s: %v", i, batch[i].Key, err)
		}
	}
	var got []sinktest.Delivered
	arrived := make(map[string]amqp.Table) // headers, by event
	for _, d := range r.deliveries(t) {
		got = append(got, sinktest.Delivered{Value: d.Body})
		arrived[d.MessageId] = d.Headers
	}
	sinktest.CheckOrder(t, got, want, false)
	for _, rec := range batch {
		for _, h := range rec.Headers {
			// RabbitMQ counts deliveries itself.
			if headers := arrived[rec.EventID.String()]; headers != nil && headers[h.Key] != h.Value && h.Key != "x-delivery-count" {
				t.Errorf("header %q of %s arrived as %v, want %q", h.Key, rec.Key, headers[h.Key], h.Value)
			}
		}
	}
}
