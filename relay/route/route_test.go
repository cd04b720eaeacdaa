package route

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// sinks of the tests: topics of up to 20 characters without a slash, and routing keys of up to 10.
var testSinks = []Sink{
	{Name: "orders-kafka", Check: func(r relay.Route) error {
		if len(r.Topic) > 20 || strings.Contains(r.Topic, "/") {
			return fmt.Errorf("%q is no legal topic", r.Topic)
		}
		return nil
	}},
	{Name: "audit-rabbit", RoutingKeys: true, Check: func(r relay.Route) error {
		if len(r.RoutingKey) > 10 {
			return errors.New("a routing key of more than 10 bytes")
		}
		return nil
	}},
	{Name: "file"},
}

func mustTable(t testing.TB, rules, noMatch string) *Table {
	t.Helper()
	table, err := New(Config{Rules: rules, NoMatch: noMatch}, testSinks)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func event(eventType, aggregateType string) *relay.Event {
	return &relay.Event{EventType: eventType, AggregateType: aggregateType, AggregateID: "o-1", SagaID: "saga-7"}
}

// record is what all sinks share of an event.
func record(ev *relay.Event, headers ...relay.Header) *relay.Record {
	return &relay.Record{EventType: ev.EventType, Topic: ev.EventType, RoutingKey: ev.EventType, Key: ev.AggregateID, Headers: headers, Value: []byte("{}")}
}

// said is a decision in one line: the rule, and what the sink gets.
func said(r relay.Router, rec *relay.Record, ev *relay.Event) string {
	routed := relay.RouteOf(r, rec, ev)
	name := r.Rules()[routed.Rule]
	switch {
	case routed.Drop:
		return name + " drops"
	case routed.Record == nil:
		return name
	default:
		return fmt.Sprintf("%s %s|%s|%s", name, routed.Record.Topic, routed.Record.RoutingKey, routed.Record.MessageKey())
	}
}

const someRules = `
- {name: no-internal, event_type: ["Internal*", "*Debug"], drop: true}
- name: eu-orders
  sinks: [orders-kafka, audit-rabbit]
  event_type: Order*
  headers: {region: eu-*, tier: [gold, silver]}
  topic: eu.{aggregate_type}
  routing_key: eu
  key: "{saga_id}"
- {name: orders, sinks: [orders-kafka], event_type: "Order*", aggregate_type: shop, topic: orders}
- {name: order-keys, sinks: [orders-kafka], event_type: "Order*", key: constant}
- {name: as-it-is, sinks: audit-rabbit, event_type: OrderPlaced}
- {name: rest, sinks: audit-rabbit, drop: true}
`

func TestRoute(t *testing.T) {
	table := mustTable(t, someRules, Deliver)
	eu := []relay.Header{{Key: "event_id", Value: "1"}, {Key: "region", Value: "eu-west"}, {Key: "tier", Value: "gold"}}
	for _, tt := range []struct {
		eventType, aggregateType string
		headers                  []relay.Header
		kafka, rabbit, file      string
	}{
		{"InternalTick", "shop", nil, "no-internal drops", "no-internal drops", "no-internal drops"},
		{"OrderDebug", "shop", eu, "no-internal drops", "no-internal drops", "no-internal drops"},
		{"OrderPlaced", "shop", eu, "eu-orders eu.shop|eu|saga-7", "eu-orders eu.shop|eu|saga-7", "default"},
		{"OrderPlaced", "shop", eu[:2], "orders orders|OrderPlaced|o-1", "as-it-is", "default"},
		{"OrderPlaced", "shop", []relay.Header{{Key: "region", Value: "us"}, {Key: "tier", Value: "gold"}}, "orders orders|OrderPlaced|o-1", "as-it-is", "default"},
		{"OrderShipped", "stock", nil, "order-keys OrderShipped|OrderShipped|constant", "rest drops", "default"},
		{"Paid", "shop", eu, "default", "rest drops", "default"},
	} {
		ev := event(tt.eventType, tt.aggregateType)
		for range 2 { // the second time it is known
			for sink, want := range map[string]string{"orders-kafka": tt.kafka, "audit-rabbit": tt.rabbit, "file": tt.file} {
				if got := said(table.Router(sink), record(ev, tt.headers...), ev); got != want {
					t.Errorf("%s of %s, headers %v: %s: got %q, want %q", tt.eventType, tt.aggregateType, tt.headers, sink, got, want)
				}
			}
		}
	}
}

// A header that is JSON's null is as good as none: applications write it where they have no value.
func TestNullHeader(t *testing.T) {
	table := mustTable(t, `[{name: tenants, sinks: [file], headers: {tenant: "*"}, topic: "{header:tenant}"}, {name: shared, sinks: [file], topic: "{header:tenant|shared}"}]`, Deliver)
	ev := event("OrderPlaced", "shop")
	for value, want := range map[string]string{"acme": "tenants acme|", "null": "shared shared|", "nullable": "tenants nullable|"} {
		if got := said(table.Router("file"), record(ev, relay.Header{Key: "tenant", Value: value}), ev); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %s", value, got, want)
		}
	}
}

// The shared record stays as it is, and the sink's own shares what is large.
func TestRecordIsShared(t *testing.T) {
	table := mustTable(t, someRules, Deliver)
	ev := event("OrderPlaced", "shop")
	rec := record(ev, relay.Header{Key: "a", Value: "b"})
	before := *rec
	own := relay.RouteOf(table.Router("orders-kafka"), rec, ev).Record
	if rec.Topic != before.Topic || rec.OwnKey != nil {
		t.Errorf("the shared record has changed: %+v", rec)
	}
	if own == nil || &own.Value[0] != &rec.Value[0] || &own.Headers[0] != &rec.Headers[0] || own.Key != rec.Key {
		t.Errorf("the own record is %+v", own)
	}
}

// A row that cannot be made into a record has no headers. It is dropped only where no header could
// have sent it elsewhere: otherwise what is wrong with it would not show.
func TestUnfit(t *testing.T) {
	table := mustTable(t, someRules, Deliver)
	for _, tt := range []struct{ eventType, sink, want string }{
		{"InternalTick", "orders-kafka", "no-internal drops"},
		{"OrderPlaced", "orders-kafka", "default"},
		{"Paid", "audit-rabbit", "rest drops"},
		{"OrderShipped", "audit-rabbit", "default"},
	} {
		if got := said(table.Router(tt.sink), nil, event(tt.eventType, "shop")); got != tt.want {
			t.Errorf("%s at %s: got %q, want %q", tt.eventType, tt.sink, got, tt.want)
		}
	}
	strict := mustTable(t, `[{name: one, headers: {a: b}}]`, Drop)
	if got := said(strict.Router("file"), nil, event("Paid", "shop")); got != "default" {
		t.Errorf("got %q, want default without a drop", got)
	}
	if ev := event("Paid", "shop"); said(strict.Router("file"), record(ev), ev) != "default drops" {
		t.Error("what no rule matches is not dropped")
	}
}

// A header in a template is the message's, and without it the event is refused for this sink.
func TestHeaderInTemplate(t *testing.T) {
	table := mustTable(t, `[{name: own, sinks: orders-kafka, topic: "{header:tenant}.orders", key: "{header:customer|none}"}]`, Deliver)
	r := table.Router("orders-kafka")
	ev := event("OrderPlaced", "shop")
	if got, want := said(r, record(ev, relay.Header{Key: "tenant", Value: "eu"}), ev), "own eu.orders|OrderPlaced|none"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	routed := relay.RouteOf(r, record(ev), ev)
	if routed.Drop || routed.Record != nil || routed.Unfit == nil || routed.Unfit.Reason != relay.ReasonEncode ||
		!strings.Contains(routed.Unfit.Error(), "the topic of rule own in RELAY_ROUTES: {header:tenant}.orders needs the header tenant") {
		t.Errorf("without the header: %+v", routed)
	}
	if !table.UsesHeaders() || mustTable(t, `[{name: a, topic: "{event_type}"}]`, Deliver).UsesHeaders() {
		t.Error("whether headers are needed is wrong")
	}
}

func TestNoRules(t *testing.T) {
	table := mustTable(t, " \n", Deliver)
	if r := table.Router("file"); r != nil || len(table.Routers()) != 0 {
		t.Errorf("got a router: %v", r)
	}
	table = mustTable(t, `[{"name": "one", "sinks": ["file"], "event_type": "A", "drop": true}]`, Deliver) // JSON
	if table.Router("orders-kafka") != nil || table.Router("file") == nil {
		t.Error("a sink without rules has a router, or one with rules has none")
	}
}

// Any number of types costs no more memory, and is routed the same.
func TestManyTypes(t *testing.T) {
	table := mustTable(t, `[{name: odd, event_type: "*1"}, {name: even, event_type: "*2", drop: true}]`, Deliver)
	r := table.Router("file").(*router)
	for i := range 5 * maxTypes {
		ev := event(fmt.Sprintf("Type%d", i), "shop")
		want := map[int]string{1: "odd", 2: "even drops"}[i%10]
		if want == "" {
			want = "default"
		}
		if got := said(r, record(ev), ev); got != want {
			t.Fatalf("%s: got %q, want %q", ev.EventType, got, want)
		}
	}
	if n := len(*r.known.Load()); n != maxTypes {
		t.Errorf("%d types are kept, want %d", n, maxTypes)
	}
}

// TestBadRules: what is wrong is named with the rule, and with what to do.
func TestBadRules(t *testing.T) {
	long := strings.Repeat("x", 256)
	for name, tt := range map[string]struct{ rules, want string }{
		"NotYAML":            {"[{name: a", "no YAML of the form that is wanted: want a list of rules in YAML or JSON"},
		"SecondDocument":     {"- {name: a, event_type: a}\n---\n- {name: b, drop: true}", "a line --- in it begins a second document"},
		"FieldTwice":         {"- name: a\n  event_type: a\n  event_type: b\n", "line 3: a name is there twice"},
		"NotAList":           {"name: a", "want a list of rules"},
		"AFileInPlace":       {"amqp://u:hush@mq/", "want a list of rules"},
		"NotAMapping":        {"[audit]", "rule 1: want a mapping"},
		"NoName":             {"[{drop: true}]", "rule 1: name: not set"},
		"BadName":            {"[{name: My Rule}]", "rule 1: name: My Rule: want 1 to 40 lower-case letters"},
		"NumberAsName":       {"[{name: 7}]", "in quotes if they are a number"},
		"ReservedName":       {"[{name: default}]", "name: default is what counts where no rule matches"},
		"TwoOfOneName":       {"[{name: a, event_type: A}, {name: b, event_type: B}, {name: a, event_type: C}]", "rules 1 and 3 are both called a"},
		"UnknownField":       {"[{name: a, topci: x}]", "rule 1 (a): topci: no such field: want some of name, sinks, event_type"},
		"UnknownSink":        {"[{name: a, sinks: [orders]}]", "rule 1 (a): sinks: no sink is called orders: want some of orders-kafka, audit-rabbit, file"},
		"NoSinks":            {"[{name: a, sinks: []}]", "sinks: an empty list"},
		"SinksNoText":        {"[{name: a, sinks: {x: y}}]", "sinks: want a text or a list of texts"},
		"Class":              {`[{name: a, event_type: "Order[AB]"}]`, `event_type: "Order[AB]": "[" has no meaning here: want * for any text`},
		"Braces":             {`[{name: a, event_type: "{A,B}"}]`, `"{" has no meaning here`},
		"EmptyGlob":          {`[{name: a, event_type: ""}]`, "event_type: it is empty and matches nothing"},
		"EmptyList":          {"[{name: a, aggregate_type: []}]", "aggregate_type: an empty list matches nothing"},
		"LongerThanColumn":   {"[{name: a, event_type: " + long + "*}]", "at least 256 characters, and the column has at most 255"},
		"NumberAsGlob":       {"[{name: a, event_type: [1]}]", "put numbers and true into quotes"},
		"ControlCharacter":   {`[{name: a, event_type: "a\tb"}]`, "without control characters"},
		"HeadersAList":       {"[{name: a, headers: [x]}]", "headers: want a mapping"},
		"HeaderEmptyName":    {`[{name: a, headers: {"": x}}]`, "headers: an empty name"},
		"HeaderNumber":       {"[{name: a, headers: {x: 1}}]", "headers: x: want a text or a list of texts"},
		"UnknownTemplate":    {`[{name: a, topic: "{event}"}]`, "topic: \"{event}\": {event} is not known, want one of {event_type}"},
		"EmptyTopic":         {`[{name: a, topic: ""}]`, "topic: want a name or a template"},
		"TopicNumber":        {"[{name: a, topic: 7}]", "topic: want a text"},
		"DropNoBool":         {"[{name: a, drop: maybe}]", "drop: want true or false"},
		"DropWithTopic":      {"[{name: a, drop: true, topic: x}]", "drop: true with topic, routing_key or key"},
		"LongTopic":          {"[{name: a, sinks: orders-kafka, topic: " + long + "}]", "is no legal topic (sink orders-kafka)"},
		"IllegalInTemplate":  {`[{name: a, sinks: orders-kafka, topic: "a/{event_type}"}]`, "is no legal topic (sink orders-kafka)"},
		"LongRoutingKey":     {"[{name: a, sinks: audit-rabbit, routing_key: abcdefghijk}]", "routing_key: a routing key of more than 10 bytes (sink audit-rabbit)"},
		"TopicForRabbit":     {"[{name: a, sinks: audit-rabbit, topic: x}]", "topic: audit-rabbit has routing keys and no topics: want routing_key"},
		"RoutingKeyForKafka": {"[{name: a, sinks: [orders-kafka, file], routing_key: x}]", "routing_key: orders-kafka, file has topics and no routing keys: want topic"},
		"BehindCatchAll":     {"[{name: all}, {name: b, event_type: B}]", "rule 2 (b): it never matches: all before it takes all that it could"},
		"BehindItself":       {"[{name: a, event_type: A}, {name: b, event_type: A}]", "rule 2 (b): it never matches: a before"},
		"BehindWiderGlob":    {`[{name: a, event_type: [X, A*]}, {name: b, event_type: [AB, "A?C"]}]`, "it never matches: a before"},
		"BehindTwo":          {"[{name: a, event_type: A*}, {name: b, event_type: B*}, {name: c, event_type: [A1, B1]}]", "it never matches: a, b before"},
		"BehindOnePerSink":   {"[{name: a, sinks: [file, orders-kafka]}, {name: b, sinks: audit-rabbit}, {name: c, event_type: C}]", "it never matches: a, b before"},
		"BehindFewerHeaders": {"[{name: a, headers: {x: y*}}, {name: b, headers: {x: y1, z: z}}]", "it never matches: a before"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(Config{Rules: tt.rules, NoMatch: Deliver}, testSinks)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "RELAY_ROUTES: ") {
				t.Errorf("got  %v\nwant RELAY_ROUTES: … %s", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Error("the error has a password")
			}
		})
	}
	for name, rules := range map[string]string{
		"AnotherSink":     "[{name: a, sinks: file}, {name: b, event_type: B}]",
		"NarrowerBefore":  "[{name: a, event_type: AB}, {name: b, event_type: A*}]",
		"HeadersBefore":   "[{name: a, headers: {x: y}}, {name: b}]",
		"OtherHeader":     "[{name: a, headers: {x: y}}, {name: b, headers: {z: y}}]",
		"AggregateBefore": "[{name: a, aggregate_type: A}, {name: b, event_type: B}]",
		"NoChange":        "[{name: a, event_type: A}]",
		"Both":            "[{name: a, topic: x, routing_key: y}]",
		"EmptyHeader":     `[{name: a, headers: {x: "*"}}]`,
		"Empty":           "[]",
	} {
		if _, err := New(Config{Rules: rules, NoMatch: Deliver}, testSinks); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBadDefault(t *testing.T) {
	_, err := New(Config{NoMatch: "keep"}, testSinks)
	if err == nil || err.Error() != "RELAY_ROUTES_DEFAULT=keep: want deliver or drop" {
		t.Errorf("got %v", err)
	}
	_, err = New(Config{Rules: "[{name: a, sinks: file}]", NoMatch: Drop}, testSinks)
	if err == nil || !strings.Contains(err.Error(), "RELAY_ROUTES_DEFAULT=drop: no rule is for the sink orders-kafka, which would get no event") || strings.Contains(err.Error(), "sink file") {
		t.Errorf("got %v", err)
	}
}

// Whatever the text, parsing ends with rules or with an error that begins with the setting, and
// rules that are accepted route without a panic.
func FuzzParse(f *testing.F) {
	f.Add(someRules)
	f.Add(`[{"name": "a", "headers": {"x": ["y*"]}}]`)
	f.Add("- &a {name: a}\n- *a")
	f.Add("[{name: a, 1: 2}]")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := New(Config{Rules: text, NoMatch: Deliver}, testSinks)
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				if strings.HasPrefix(line, setting) {
					return
				}
			}
			t.Fatalf("an error that does not name the setting: %v", err)
		}
		ev := event("OrderPlaced", "shop")
		for _, s := range testSinks {
			if r := table.Router(s.Name); r != nil {
				relay.RouteOf(r, nil, ev)
				relay.RouteOf(r, record(ev, relay.Header{Key: "x", Value: "y"}), ev)
			}
		}
	})
}

// BenchmarkRoute is what ten rules cost an event: of types that are known, and of others.
func BenchmarkRoute(b *testing.B) {
	rules := `[{name: h, headers: {region: eu-*}, event_type: "Order*", topic: eu}`
	for i := range 8 {
		rules += fmt.Sprintf(`, {name: r%d, event_type: ["Type%d*", "*Type%d"], topic: "t%d"}`, i, i, i, i)
	}
	rules += `, {name: orders, event_type: "Order*", topic: "orders"}]`
	table := mustTable(b, rules, Deliver)
	for _, bb := range []struct {
		name string
		full bool
	}{{"Known", false}, {"Unknown", true}} {
		b.Run(bb.name, func(b *testing.B) {
			r := table.Router("file").(*router)
			if bb.full {
				known := make(map[types][]int)
				for i := range maxTypes {
					known[types{event: fmt.Sprint(i)}] = nil
				}
				r.known.Store(&known)
			}
			ev := event("OrderPlaced", "shop")
			rec := record(ev, relay.Header{Key: "event_id", Value: "1"}, relay.Header{Key: "region", Value: "us"})
			b.ReportAllocs()
			for b.Loop() {
				if got := relay.RouteOf(r, rec, ev); got.Rule != 9 || got.Record.Topic != "orders" {
					b.Fatalf("got %+v", got)
				}
			}
		})
	}
}
