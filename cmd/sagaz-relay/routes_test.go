package main

import (
	"bytes"
	"maps"
	"strings"
	"testing"
)

// routed are settings of a sink of Kafka and one of RabbitMQ.
func routed(more map[string]string) map[string]string {
	env := map[string]string{
		"RELAY_SINKS":                  "orders-kafka,audit-rabbit",
		"RELAY_SINK_ORDERS_KAFKA_KIND": "kafka", "RELAY_SINK_ORDERS_KAFKA_BOOTSTRAP_SERVERS": "k:9092",
		"RELAY_SINK_AUDIT_RABBIT_KIND": "rabbitmq", "RELAY_SINK_AUDIT_RABBIT_URL": "amqp://u:hush1@mq/",
	}
	maps.Copy(env, more)
	return env
}

// Rules are found where users look for the setting, and the environment goes first.
func TestRoutesSettings(t *testing.T) {
	const yaml = "routes:\n  - name: one\n    sinks: [orders-kafka]\n    event_type: \"A*\"\n    topic: a\n"
	file := writeFile(t, "routes.json", `[{"name": "of-a-file", "event_type": ["A", "B"], "drop": true}]`)
	for name, tt := range map[string]struct {
		env  map[string]string
		yaml string
		want string // the rules of orders-kafka
	}{
		"None":        {},
		"YAML":        {yaml: yaml, want: "one"},
		"Variable":    {env: map[string]string{"RELAY_ROUTES": "[{name: two}]"}, want: "two"},
		"File":        {env: map[string]string{"RELAY_ROUTES_FILE": file}, want: "of-a-file"},
		"Environment": {env: map[string]string{"RELAY_ROUTES": "[{name: two}]"}, yaml: yaml, want: "two"},
		"AsVariable":  {yaml: "RELAY_ROUTES: '[{name: three}]'", want: "three"},
		"Empty":       {yaml: "routes: []"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := named(t, routed(tt.env), tt.yaml)
			if err != nil {
				t.Fatal(err)
			}
			table, err := s.routes()
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, rule := range table.Of("orders-kafka") {
				names = append(names, rule.Name)
			}
			if got := strings.Join(names, " "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// What is wrong with rules keeps a relay from starting, and names the rule and the sink.
func TestRoutesRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		env        map[string]string
		yaml, want string
	}{
		"UnknownSink":      {yaml: "routes: [{name: a, sinks: [orders]}]", want: "RELAY_ROUTES: rule 1 (a): sinks: no sink is called orders: want some of orders-kafka, audit-rabbit"},
		"UnknownField":     {yaml: "routes: [{name: a, topci: x}]", want: "rule 1 (a): topci: no such field"},
		"NoList":           {yaml: "routes: {a: b}", want: "RELAY_ROUTES: want a list of rules"},
		"Both":             {yaml: "routes: [{name: a}]\nRELAY_ROUTES: '[{name: b}]'", want: "routes and RELAY_ROUTES are both set: want one of them"},
		"TopicOf300Bytes":  {yaml: "routes: [{name: a, sinks: orders-kafka, topic: " + strings.Repeat("x", 300) + "}]", want: "of 300 bytes is no legal name of a topic: want 1 to 249 of a-z A-Z 0-9 . _ -, but neither . nor .. alone (sink orders-kafka)"},
		"TopicWithASlash":  {yaml: `routes: [{name: a, sinks: orders-kafka, topic: "a/{event_type}"}]`, want: `"a/x" of 3 bytes is no legal name of a topic`},
		"LongRoutingKey":   {yaml: "routes: [{name: a, sinks: audit-rabbit, routing_key: " + strings.Repeat("x", 256) + "}]", want: "rule 1 (a): routing_key: it has 256 bytes, AMQP allows 255: want a shorter one (sink audit-rabbit)"},
		"TopicForRabbitMQ": {yaml: "routes: [{name: a, sinks: audit-rabbit, topic: x}]", want: "topic: audit-rabbit has routing keys and no topics: want routing_key"},
		"Default":          {env: map[string]string{"RELAY_ROUTES_DEFAULT": "ignore"}, want: "RELAY_ROUTES_DEFAULT=ignore: want deliver or drop"},
		"DropWithoutRules": {env: map[string]string{"RELAY_ROUTES_DEFAULT": "drop"}, want: "no rule is for the sink audit-rabbit, which would get no event"},
		"SecretInstead":    {env: map[string]string{"RELAY_ROUTES": "amqp://u:hush2@mq/"}, want: "RELAY_ROUTES: want a list of rules"},
		"Header":           {yaml: `routes: [{name: a, topic: "{header:}"}]`, want: "want {header:NAME} or {header:NAME|FALLBACK}"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := named(t, routed(tt.env), tt.yaml)
			if err == nil || !strings.Contains(err.Error(), tt.want) || exitCode(err) != exitConfig {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Error("the error has a secret")
			}
		})
	}
}

// The command needs no database for rules and for an event that flags describe.
func TestRoutesCommand(t *testing.T) {
	const rules = `[{name: eu, sinks: orders-kafka, event_type: "Order*", headers: {region: "eu-*"}, topic: "eu.{aggregate_type}", key: "{saga_id}"},
		{name: tenants, sinks: orders-kafka, event_type: "Own*", topic: "{header:tenant}"},
		{name: audit, sinks: audit-rabbit, event_type: ["Order*", Paid], routing_key: audit}, {name: rest, sinks: audit-rabbit, drop: true}]`
	for _, tt := range []struct {
		args string
		want []string // in the output, or in the error
		code int
	}{
		{"", []string{"orders-kafka (kafka):\n  1  eu ", "event_type=Order* header region=eu-*", "deliver topic=eu.{aggregate_type} key={saga_id}", "audit-rabbit (rabbitmq):", "rest ", "drop"}, 0},
		{"--json", []string{`"no_match": "deliver"`, `"name": "eu"`, `"region": [`}, 0},
		{"--explain --event-type OrderPlaced --aggregate-type shop --saga-id s-1 --header region=eu-1", []string{"orders-kafka  eu     eu.shop", "s-1", "audit-rabbit  audit  audit"}, 0},
		{"--explain --event-type OrderPlaced --aggregate-id o-7", []string{"orders-kafka  default  OrderPlaced", "o-7"}, 0},
		{"--explain --event-type Other", []string{"audit-rabbit  rest     dropped"}, 0},
		{"--explain --event-type OwnThing", []string{"tenants", "refused: encode: the topic of rule tenants in RELAY_ROUTES: {header:tenant} needs the header tenant"}, 0},
		{"--event-type Other", []string{"want --explain with"}, exitConfig},
		{"--explain", []string{"--explain wants one of"}, exitConfig},
		{"--explain --id x --last 3", []string{"--explain wants one of"}, exitConfig},
		{"--explain --id x", []string{`"x" is no UUID`}, exitConfig},
		{"--explain --last 0", []string{"--last 0: want 1 to 1000000 rows"}, exitConfig},
		{"--explain --last 3 --header a=b", []string{"--header: want --event-type with it"}, exitConfig},
		{"--explain --event-type A --header b", []string{"--header b: want NAME=VALUE"}, exitConfig},
		{"--explain --last 3", []string{"DATABASE_URL: not set"}, exitConfig},
	} {
		var out bytes.Buffer
		cmd := newRoutes(func() (*settings, error) {
			env := routed(map[string]string{"RELAY_ROUTES": rules})
			return loadSettings(func(name string) (string, bool) { v, ok := env[name]; return v, ok }, nil, "")
		})
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetOut(&out)
		cmd.SetArgs(strings.Fields(tt.args))
		err := cmd.Execute()
		text, code := out.String(), 0
		if err != nil {
			text, code = err.Error(), exitCode(err)
		}
		if code != tt.code {
			t.Errorf("routes %s: exit code %d, want %d: %s", tt.args, code, tt.code, text)
		}
		for _, want := range tt.want {
			if !strings.Contains(text, want) {
				t.Errorf("routes %s: %q is not in\n%s", tt.args, want, text)
			}
		}
	}
}
