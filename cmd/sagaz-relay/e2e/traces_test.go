package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/otlptest"
	"github.com/sagaz-relay/relay/relay"
)

// traceParent is one for a trace that a test made up.
func traceParent(trace, flags string) string { return "00-" + trace + "-00f067aa0ba902b7-" + flags }

func traceHeaders(trace, flags string) string {
	return fmt.Sprintf(`{"traceparent": %q, "tracestate": "vendor=%s,other=2", "baggage": "customer=7;ttl=1, tier=gold"}`, traceParent(trace, flags), trace[:4])
}

func traceNumber(n int) string { return fmt.Sprintf("%032x", 0xfeed0000+n) }

// spansNamed are those with the name that belong to a trace, or link to it.
func spansNamed(spans []otlptest.Span, name, trace string) (found []otlptest.Span) {
	for _, s := range spans {
		of := s.TraceID == trace
		for _, l := range s.Links {
			of = of || l.TraceID == trace
		}
		if s.Name == name && of {
			found = append(found, s)
		}
	}
	return found
}

func wantSpan(t *testing.T, s otlptest.Span, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if s.Attributes[name] != value {
			t.Errorf("span %q: %s is %q, want %q", s.Name, name, s.Attributes[name], value)
		}
	}
}

// openMetrics is /metrics in OpenMetrics' form.
func (p *process) openMetrics() string {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://"+p.addr+"/metrics", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

func amqpHeader(d amqp.Delivery, name string) string {
	text, _ := d.Headers[name].(string)
	return text
}

// A trace that begins in an application goes on: the consumers of both brokers see the bytes that
// the row had, and between them are the relay's spans, linked to the row's and in its trace.
func TestTraceContinues(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(strings.ReplaceAll(protocol, "/", "-"), func(t *testing.T) {
			t.Parallel()
			w, collector := newWorld(t), otlptest.New(t)
			kafka, rabbit := brokertest.Kafka(t), brokertest.RabbitMQ(t)
			k, q := newTopic(t, kafka.Plaintext, 1), newQueue(t, rabbit.URL, "#")
			endpoint := collector.HTTP()
			if protocol == "grpc" {
				endpoint = collector.GRPC()
			}
			secret := filepath.Join(t.TempDir(), "headers")
			if err := os.WriteFile(secret, []byte("authorization=Bearer%20swordfish-"+w.marker+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			p := w.relay("relay", q.env().with(settings{
				"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": kafka.Plaintext, "LOG_LEVEL": "DEBUG",
				"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_BSP_SCHEDULE_DELAY": "100",
				"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test", "OTEL_EXPORTER_OTLP_HEADERS_FILE": secret,
			}))
			p.secrets = append(p.secrets, "swordfish")
			p.waitStreaming()

			traced, left, none := traceNumber(1), traceNumber(2), ""
			var ids []relay.UUID
			for i, trace := range []string{traced, left, none} {
				r := row{key: "k", topic: k.name}
				if trace != "" {
					r.headers = traceHeaders(trace, []string{"01", "00"}[i])
				}
				ids = append(ids, w.insert(r)...)
				w.waitNonePending(p) // so that each is a batch of its own
			}

			arrivals, messages := k.read(), q.drain()
			if len(arrivals) != 3 || len(messages) != 3 {
				t.Fatalf("%d records and %d messages, want 3", len(arrivals), len(messages))
			}
			for i, trace := range []string{traced, left, none} {
				want := map[string]string{"traceparent": "", "tracestate": "", "baggage": ""}
				if trace != "" {
					want = map[string]string{
						"traceparent": traceParent(trace, []string{"01", "00"}[i]), "tracestate": "vendor=" + trace[:4] + ",other=2", "baggage": "customer=7;ttl=1, tier=gold",
					}
				}
				for name, value := range want {
					if got := arrivals[i].header(name); got != value {
						t.Errorf("Kafka: record %d: %s is %q, want %q", i, name, got, value)
					}
					if got := amqpHeader(messages[i], name); got != value {
						t.Errorf("RabbitMQ: message %d: %s is %q, want %q", i, name, got, value)
					}
				}
			}

			toKafka, toRabbit, mark := "send "+k.name, "send "+q.name+":"+k.name, "mark saga_outbox"
			alone := func(s otlptest.Span) bool { return len(s.Links) == 0 && s.Parent == "" }
			spans := collector.Wait(patience, "the spans of both rows", func(all []otlptest.Span) bool {
				roots := 0
				for _, s := range all {
					if alone(s) && (s.Name == toKafka || s.Name == toRabbit || s.Name == mark) {
						roots++
					}
				}
				return roots == 3 && len(spansNamed(all, toKafka, traced)) == 1 && len(spansNamed(all, toRabbit, traced)) == 1 && len(spansNamed(all, mark, traced)) == 1
			})
			for _, name := range []string{toKafka, toRabbit, mark} {
				s := spansNamed(spans, name, traced)[0]
				if s.Kind != "CLIENT" || s.TraceID != traced || s.Parent != "00f067aa0ba902b7" || s.Error != "" || !s.End.After(s.Start) {
					t.Errorf("%+v: want a client's span below the row's", s)
				}
				if len(s.Links) != 1 || s.Links[0].SpanID != "00f067aa0ba902b7" || s.Links[0].Attributes["messaging.message.id"] != ids[0].String() {
					t.Errorf("span %q: links %+v, want one to the row's span", s.Name, s.Links)
				}
				for name, want := range map[string]string{"service.name": "outbox-worker", "service.instance.id": "relay", "deployment.environment.name": "test"} {
					if s.Resource[name] != want {
						t.Errorf("resource: %s is %q, want %q", name, s.Resource[name], want)
					}
				}
			}
			host, port, err := net.SplitHostPort(kafka.Plaintext)
			if err != nil {
				t.Fatal(err)
			}
			common := map[string]string{"messaging.operation.name": "send", "messaging.operation.type": "send", "messaging.message.id": ids[0].String(), "messaging.batch.message_count": "", "outbox.slot": w.slot}
			for name, value := range common {
				for _, span := range []string{toKafka, toRabbit} {
					wantSpan(t, spansNamed(spans, span, traced)[0], map[string]string{name: value})
				}
			}
			wantSpan(t, spansNamed(spans, toKafka, traced)[0], map[string]string{
				"messaging.system": "kafka", "messaging.destination.name": k.name, "messaging.destination.partition.id": "0", "messaging.kafka.message.key": "k",
				"server.address": host, "server.port": port,
			})
			wantSpan(t, spansNamed(spans, toRabbit, traced)[0], map[string]string{
				"messaging.system": "rabbitmq", "messaging.destination.name": q.name + ":" + k.name, "messaging.rabbitmq.destination.routing_key": k.name,
			})
			if a := spansNamed(spans, toRabbit, traced)[0].Attributes; a["server.address"] == "" || a["server.port"] == "" {
				t.Errorf("RabbitMQ's address is not recorded: %v", a)
			}

			// So do the lines of the log about the event.
			for message, want := range map[string]int{"event received": 1, "event published": 2, "event marked": 1} {
				got := 0
				for _, l := range p.logged(message) {
					if l["trace_id"] == traced && l["span_id"] == "00f067aa0ba902b7" {
						got++
					}
				}
				if got != want {
					t.Errorf("%d lines %q have trace_id and span_id, want %d", got, message, want)
				}
			}
			// Latencies name the trace as an exemplar, for who asks for OpenMetrics.
			for _, series := range []string{`outbox_commit_to_ack_seconds_bucket{sink="kafka"`, `outbox_commit_to_ack_seconds_bucket{sink="rabbitmq"`, `outbox_publish_duration_seconds_bucket{event_type="` + k.name + `"`} {
				found := false
				for l := range strings.Lines(p.openMetrics()) {
					found = found || strings.HasPrefix(l, series) && strings.Contains(l, `trace_id="`+traced+`"`)
				}
				if !found {
					t.Errorf("no line %s… has the trace as its exemplar", series)
				}
			}

			// Many traces in one batch: each is linked to, or counted.
			const many = 200
			var rows []row
			for i := range many {
				rows = append(rows, row{key: "k", topic: k.name, headers: traceHeaders(traceNumber(100+i), "01")})
			}
			w.insert(rows...)
			w.waitNonePending(p)
			p.stop() // which exports what is left
			linked, largest := 0, 0
			for _, s := range collector.Spans() {
				if s.Name == toKafka && len(s.Links) > 0 && s.TraceID != traced {
					var omitted int
					_, _ = fmt.Sscan(s.Attributes["outbox.links_omitted"], &omitted)
					linked += len(s.Links) + omitted
					largest = max(largest, len(s.Links))
				}
				if s.TraceID == left || len(spansNamed([]otlptest.Span{s}, s.Name, left)) > 0 {
					t.Errorf("a span of a trace that is not recorded: %+v", s)
				}
				if text := fmt.Sprint(s); strings.Contains(text, w.marker) {
					t.Errorf("a span has a payload or a secret: %s", text)
				}
			}
			if linked != many || largest > 128 {
				t.Errorf("spans to Kafka link to %d traces, with up to %d links; want %d and at most 128", linked, largest, many)
			}
			for _, r := range collector.Requests() {
				if r.Protocol != strings.TrimSuffix(protocol, "/protobuf") || r.Header["authorization"] != "Bearer swordfish-"+w.marker {
					t.Errorf("request by %s with headers %v", r.Protocol, r.Header)
				}
			}
		})
	}
}

// OTEL_TRACES_SAMPLER is heard, and a stop exports what was not exported yet.
func TestTraceSampler(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sampler, arg  string
		traced, alone bool // rows with a recorded trace, and without a context, have spans
	}{
		{"parentbased_always_off", "", true, false},
		{"parentbased_traceidratio", "0", true, false},
		{"parentbased_traceidratio", "1", true, true},
		{"always_off", "", false, false},
		{"traceidratio", "0", false, false},
	} {
		t.Run(c.sampler+c.arg, func(t *testing.T) {
			t.Parallel()
			w, collector, d := newWorld(t), otlptest.New(t), toFile(t)
			p := w.relay("relay", d.env.with(settings{
				"OTEL_EXPORTER_OTLP_ENDPOINT": collector.HTTP(), "OTEL_TRACES_SAMPLER": c.sampler, "OTEL_TRACES_SAMPLER_ARG": c.arg,
				"OTEL_BSP_SCHEDULE_DELAY": "3600000", "OTEL_SERVICE_NAME": "my-relay",
			}))
			p.waitStreaming()
			w.insert(row{key: "k", topic: "Alone"})
			w.waitNonePending(p)
			w.insert(row{key: "k", topic: "Traced", headers: traceHeaders(traceNumber(1), "01")})
			w.waitNonePending(p)
			if n := len(collector.Requests()); n != 0 {
				t.Errorf("%d requests before the stop", n)
			}
			p.stop()
			names := make(map[string]bool)
			for _, s := range collector.Spans() {
				names[s.Name] = true
				if s.Resource["service.name"] != "my-relay" {
					t.Errorf("service.name is %q", s.Resource["service.name"])
				}
			}
			if names["send Traced"] != c.traced || names["send Alone"] != c.alone {
				t.Errorf("spans %v; want those of the traced row: %v, of the other: %v", names, c.traced, c.alone)
			}
		})
	}
}

// With RELAY_TRACE_EVENTS a row without a trace begins one, which both brokers' consumers can go on
// with.
func TestTraceEvents(t *testing.T) {
	t.Parallel()
	w, collector := newWorld(t), otlptest.New(t)
	kafka, rabbit := brokertest.Kafka(t), brokertest.RabbitMQ(t)
	k, q := newTopic(t, kafka.Plaintext, 1), newQueue(t, rabbit.URL, "#")
	p := w.relay("relay", q.env().with(settings{
		"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": kafka.Plaintext, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.HTTP(), "RELAY_TRACE_EVENTS": "true",
	}))
	p.waitStreaming()
	w.insert(row{key: "k", topic: k.name}, row{key: "k", topic: k.name, headers: traceHeaders(traceNumber(1), "01")})
	w.waitNonePending(p)
	p.stop()
	arrivals, messages := k.read(), q.drain()
	if len(arrivals) != 2 || len(messages) != 2 {
		t.Fatalf("%d records and %d messages, want 2", len(arrivals), len(messages))
	}
	if got := arrivals[1].header("traceparent"); got != traceParent(traceNumber(1), "01") {
		t.Errorf("the row's own traceparent became %q", got)
	}
	begun := arrivals[0].header("traceparent")
	if got := amqpHeader(messages[0], "traceparent"); got != begun || begun == "" {
		t.Errorf("traceparent %q on Kafka, %q on RabbitMQ; want the same", begun, got)
	}
	creates := 0
	for _, s := range collector.Spans() {
		if s.Name != "create "+k.name {
			continue
		}
		creates++
		if s.Kind != "PRODUCER" || begun != "00-"+s.TraceID+"-"+s.SpanID+"-01" {
			t.Errorf("traceparent %s, span %+v", begun, s)
		}
		for _, name := range []string{"send " + k.name, "send " + q.name + ":" + k.name, "mark saga_outbox"} {
			if len(spansNamed(collector.Spans(), name, s.TraceID)) == 0 {
				t.Errorf("no span %q links to the trace that was begun", name)
			}
		}
	}
	if creates != 1 {
		t.Errorf("%d create spans, want 1", creates)
	}
}

// A collector that is not there, hangs, or answers with errors is a line in the log, and nothing to
// delivery or to a stop.
func TestCollectorInTrouble(t *testing.T) {
	t.Parallel()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	hangs, fails := otlptest.New(t), otlptest.New(t)
	hangs.Answer(func(otlptest.Request) error { <-hangs.Stopped(); return errors.New("at last") })
	fails.Answer(func(r otlptest.Request) error { return errors.New("not with " + r.Header["authorization"]) })
	for _, c := range []struct{ name, endpoint, protocol string }{
		{"Down", "http://" + nobody.Addr().String(), ""},
		{"DownGRPC", "http://" + nobody.Addr().String(), "grpc"},
		{"Hangs", hangs.HTTP(), ""},
		{"HangsGRPC", hangs.GRPC(), "grpc"},
		{"Fails", fails.HTTP(), ""},
		{"FailsGRPC", fails.GRPC(), "grpc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, d := newWorld(t), toFile(t)
			p := w.relay("relay", d.env.with(settings{
				"OTEL_EXPORTER_OTLP_ENDPOINT": c.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": c.protocol, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=swordfish-" + w.marker,
				"OTEL_EXPORTER_OTLP_TIMEOUT": "300", "OTEL_BSP_EXPORT_TIMEOUT": "600", "OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BSP_MAX_QUEUE_SIZE": "16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8",
			}))
			p.secrets = append(p.secrets, "swordfish")
			p.waitStreaming()
			const rows = 500
			for i := range rows {
				w.insert(row{key: fmt.Sprint("k", i%7), topic: "T", headers: traceHeaders(traceNumber(i), "01")})
			}
			if got := w.waitNonePending(p); got["sent"] != rows {
				t.Errorf("rows by status: %v", got)
			}
			line := p.waitLog("traces are not exported")
			if line.text("level") != "WARNING" || line.text("logger") != "traces" || line.text("error") == "" {
				t.Errorf("the log has %v", line)
			}
			p.healthy("without a collector")
			p.stop()
			if n := len(p.logged("traces are not exported")); n != 1 {
				t.Errorf("the error is logged %d times, want once", n)
			}
			if n := len(p.log()); n > 40 {
				t.Errorf("%d lines in the log", n)
			}
		})
	}
}

// Without an endpoint, or switched off, nothing is sent: not even to where OpenTelemetry's
// libraries would send by default.
func TestTracesOff(t *testing.T) {
	t.Parallel()
	asked := listener(t, "127.0.0.1:0")
	endpoint := "http://" + asked.addr
	for name, env := range map[string]settings{
		"NoEndpoint": {"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_BSP_SCHEDULE_DELAY": "10"},
		"Disabled":   {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SDK_DISABLED": "true", "OTEL_TRACES_SAMPLER": "what is this", "OTEL_BSP_SCHEDULE_DELAY": "10"},
		"NoExporter": {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "none", "OTEL_BSP_SCHEDULE_DELAY": "10"},
	} {
		t.Run(name, func(t *testing.T) {
			w, d := newWorld(t), toFile(t)
			listeners := []*counted{asked}
			if name == "NoEndpoint" {
				listeners = append(listeners, listener(t, "127.0.0.1:4317"), listener(t, "127.0.0.1:4318"))
			}
			p := w.relay("relay", d.env.with(env))
			p.waitStreaming()
			w.insert(row{key: "k", topic: "T", headers: traceHeaders(traceNumber(1), "01")}, row{key: "k", topic: "T"})
			w.waitNonePending(p)
			p.stop() // which would export
			if len(p.logged("traces")) != 0 {
				t.Errorf("the log is about traces: %v", p.logged("traces"))
			}
			for _, l := range listeners {
				if n := l.seen.Load(); n != 0 {
					t.Errorf("%d connections to %s", n, l.addr)
				}
			}
		})
	}
}

// counted is a listener that only counts who comes.
type counted struct {
	addr string
	seen atomic.Int32
}

// listener listens until the end of the test. It waits for the port: another run of this test may
// have it for a moment.
func listener(t *testing.T, addr string) *counted {
	t.Helper()
	var l net.Listener
	eventually(t, 3*patience, "listening at "+addr, func() string {
		var err error
		if l, err = net.Listen("tcp", addr); err != nil {
			return err.Error()
		}
		return ""
	})
	c := &counted{addr: l.Addr().String()}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.seen.Add(1)
			conn.Close()
		}
	}()
	return c
}
