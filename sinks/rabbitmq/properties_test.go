package rabbitmq

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestPropertySettings(t *testing.T) {
	for item, text := range map[string]string{
		"correlation_id={header:correlation_id}": "",
		"priority={header:p|5}":                  "",
		" app_id = shop ":                        "",
		"expiration=315360000000":                "",
		"expiration=315360000001":                "expiration=315360000001: want a whole number of milliseconds, at most 315360000000",
		"expiration=1s":                          "want a whole number of milliseconds",
		"expiration={header:ttl|-1}":             "want a whole number of milliseconds",
		"priority=300":                           "priority=300: want a whole number from 0 to 255",
		"priority":                               "want PROPERTY={header:NAME}",
		"priority=":                              "want PROPERTY={header:NAME}",
		"priority={header:}":                     "want {header:NAME}",
		"priority={header:x|}":                   "want {header:NAME}",
		"priority={header:x":                     "want {header:NAME}",
		"type={header:x}.v1":                     "want {header:NAME}",
		"type={event_type}":                      "want one {header:NAME} and no text next to it",
		"user_id=shop":                           "the properties that can be set are correlation_id, reply_to,",
		"message_id={header:x}":                  "the properties that can be set are",
		"reply_to=amq.rabbitmq.reply-to":         "is for those who consume on the same connection",
		"app_id=" + strings.Repeat("x", 256):     "it has 256 bytes, AMQP allows 255",
	} {
		cfg := DefaultConfig()
		cfg.Properties = []string{"app_id=other", item}
		if strings.Contains(item, "app_id") {
			cfg.Properties = cfg.Properties[1:]
		}
		err := cfg.Validate()
		if text == "" && err != nil || text != "" && (err == nil || !strings.Contains(err.Error(), "RELAY_RABBITMQ_PROPERTIES: ") || !strings.Contains(err.Error(), text)) {
			t.Errorf("%s: got %v, want %q", item, err, text)
		}
	}
	cfg := DefaultConfig()
	cfg.Properties = []string{"type=a", "type=b"}
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "type is there twice") {
		t.Errorf("a property twice: %v", err)
	}
}

// Headers become properties. What RabbitMQ would close the channel for is refused, by name of header
// and property and without the value, and holds up nothing but its key.
func TestProperties(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	cfg := r.config()
	cfg.Properties = []string{
		"correlation_id={header:correlation_id}", "reply_to={header:reply}", "expiration={header:ttl|315360000000}", "priority={header:priority|3}", "type={header:type}", "app_id=shop",
	}
	s := newSink(t, cfg)
	var batch []*relay.Record
	add := func(key string, seq int, headers ...string) {
		rec := sinktest.NewRecord(bound, key, seq, 0)
		for i := 0; i < len(headers); i += 2 {
			rec.Headers = append(rec.Headers, relay.Header{Key: headers[i], Value: headers[i+1]})
		}
		batch = append(batch, rec)
	}
	add("all", 0, "correlation_id", "c-1", "reply", "answers", "ttl", "060000", "priority", "255", "type", "OrderCreated.v2")
	add("none", 0)
	add("none", 1, "correlation_id", "", "ttl", "", "priority", "", "type", "")
	add("none", 2, "correlation_id", "null", "ttl", "null", "priority", "null", "type", "null")
	first := len(batch)
	bad := [][2]string{
		{"ttl", "1s"},
		{"ttl", "-1"},
		{"ttl", "315360000001"},
		{"ttl", "1.5"},
		{"priority", "300"},
		{"priority", "high"},
		{"reply", "amq.rabbitmq.reply-to"},
		{"correlation_id", strings.Repeat("s3cret", 50)},
		{"type", strings.Repeat("x", 256)},
	}
	for i, b := range bad {
		add(fmt.Sprint("bad", i), 0, b[0], b[1])
		add(fmt.Sprint("bad", i), 1)
	}
	last := len(batch)
	add("late", 0, "priority", "0")
	for i, err := range fates(t, batch, s.Publish(soon(t), batch)) {
		switch {
		case i < first || i >= last:
			if err != nil {
				t.Errorf("record %d: %v", i, err)
			}
		case (i-first)%2 == 0:
			b := bad[(i-first)/2]
			refused(t, err, relay.ReasonEncode, "header "+b[0]+", for the property")
			if len(b[1]) > 50 && strings.Contains(err.Error(), b[1][:20]) {
				t.Errorf("record %d: the error has the value: %v", i, err)
			}
		case err != relay.ErrBehind: //nolint:errorlint // it is this one
			t.Errorf("record %d: %v, want it behind", i, err)
		}
	}
	type properties struct {
		correlation, reply, expiration, kind, app string
		priority                                  uint8
	}
	plain := properties{"", "", "315360000000", "OrderCreated", "shop", 3}
	want := map[string]properties{
		"all 0": {"c-1", "answers", "60000", "OrderCreated.v2", "shop", 255}, "none 0": plain, "none 1": plain, "none 2": plain, "late 0": {"", "", "315360000000", "OrderCreated", "shop", 0},
	}
	got := r.deliveries(t)
	if len(got) != len(want) {
		t.Fatalf("%d messages, want %d", len(got), len(want))
	}
	for _, d := range got {
		var place struct {
			Key string
			Seq int
		}
		if err := json.Unmarshal(d.Body, &place); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint(place.Key, " ", place.Seq)
		if p := (properties{d.CorrelationId, d.ReplyTo, d.Expiration, d.Type, d.AppId, d.Priority}); p != want[name] {
			t.Errorf("%s: %+v, want %+v", name, p, want[name])
		}
	}
}

// One more than the longest expiration is what RabbitMQ closes the channel for.
func TestLongestExpiration(t *testing.T) {
	r := newRoom(t, brokertest.RabbitMQ(t).URL, nil)
	ch := admin(t, r.url)
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := ch.PublishWithContext(soon(t), r.name, bound, false, false, amqp.Publishing{Expiration: fmt.Sprint(maxExpiration + 1)}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-closed:
		if err == nil || !strings.Contains(err.Reason, "expiration") {
			t.Errorf("closed for %v", err)
		}
	case <-soon(t).Done():
		t.Error("RabbitMQ takes it")
	}
}

// Properties count for the frame that has all headers.
func TestPropertiesSize(t *testing.T) {
	var msg amqp.Publishing
	long := strings.Repeat("x", 255)
	rec := &relay.Record{Headers: []relay.Header{{Key: "h", Value: long}}}
	properties, err := parseProperties([]string{"correlation_id={header:h}", "reply_to={header:h}", "app_id={header:h}", "type={header:h}"})
	if err != nil {
		t.Fatal(err)
	}
	if err := setProperties(&msg, rec, properties); err != nil || propertiesSize(&msg) < 4*len(long) {
		t.Errorf("%d bytes, %v", propertiesSize(&msg), err)
	}
}
