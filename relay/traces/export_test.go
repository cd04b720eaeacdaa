package traces

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/otlptest"
	"github.com/sagaz-relay/relay/relay"
)

// Each way to name a collector: where requests go, with which headers, as whom.
func TestExport(t *testing.T) {
	plain := otlptest.New(t)
	secure, certificate := otlptest.NewTLS(t)
	hostPort := func(url string) string { return url[strings.LastIndex(url, "/")+1:] }
	for _, c := range []struct {
		name      string
		collector *otlptest.Collector
		cfg       Config
		protocol  string
		path      string
	}{
		{"HTTP", plain, to(plain.HTTP()), "http", "/v1/traces"},
		{"HTTPBelowAPath", plain, to(plain.HTTP() + "/otlp/"), "http", "/otlp/v1/traces"},
		{"HTTPTracesEndpoint", plain, to("http://127.0.0.1:1", func(c *Config) { c.TracesEndpoint = plain.HTTP() + "/spans" }), "http", "/spans"},
		{"HTTPTracesEndpointWithoutPath", plain, to("", func(c *Config) { c.TracesEndpoint = plain.HTTP() }), "http", "/"},
		{"HTTPCompressed", plain, to(plain.HTTP(), func(c *Config) { c.Compression = "gzip" }), "http", "/v1/traces"},
		{"HTTPWithTLS", secure, to(secure.HTTP(), func(c *Config) { c.Certificate = certificate }), "http", "/v1/traces"},
		{"GRPC", plain, to(plain.GRPC(), func(c *Config) { c.Protocol = "grpc" }), "grpc", ""},
		{"GRPCHostAndPort", plain, to(hostPort(plain.GRPC()), func(c *Config) { c.Protocol, c.Insecure = "grpc", true }), "grpc", ""},
		{"GRPCCompressed", plain, to(plain.GRPC(), func(c *Config) { c.Protocol, c.Compression = "grpc", "gzip" }), "grpc", ""},
		{"GRPCWithTLS", secure, to(secure.GRPC(), func(c *Config) { c.Protocol, c.Certificate = "grpc", certificate }), "grpc", ""},
		{"GRPCHostAndPortWithTLS", secure, to(hostPort(secure.GRPC()), func(c *Config) { c.Protocol, c.Certificate = "grpc", certificate }), "grpc", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Headers = "authorization=Bearer%20swordfish, x-tenant=blue"
			c.cfg.ResourceAttributes = "deployment.environment.name=test,k8s.namespace.name=sagaz%2C1"
			before, spans := len(c.collector.Requests()), len(c.collector.Spans())
			tracer, log := open(t, c.cfg)
			tracer.Sent(offer(kafka, nil, traced("OrderCreated", "1", parent(1, 1, "01"))))
			got := c.collector.Wait(patience, "a span", func(all []otlptest.Span) bool { return len(all) > spans })[spans]
			r := c.collector.Requests()[before]
			if r.Protocol != c.protocol || r.Path != c.path {
				t.Errorf("it came by %s to %q, want %s to %q", r.Protocol, r.Path, c.protocol, c.path)
			}
			if r.Header["authorization"] != "Bearer swordfish" || r.Header["x-tenant"] != "blue" {
				t.Errorf("headers %v", r.Header)
			}
			if got.Name != "send OrderCreated" || got.TraceID != traceOf(1) || got.Parent != spanOf(1) || len(got.Links) != 1 {
				t.Errorf("%+v", got)
			}
			for name, want := range map[string]string{
				"service.name": "outbox-worker", "service.version": "1.2.3", "service.instance.id": "relay-7", "telemetry.sdk.language": "go",
				"deployment.environment.name": "test", "k8s.namespace.name": "sagaz,1",
			} {
				if got.Resource[name] != want {
					t.Errorf("resource: %s is %q, want %q", name, got.Resource[name], want)
				}
			}
			if strings.Contains(log.String(), "swordfish") || strings.Contains(log.String(), "[WARN]") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

func TestServiceName(t *testing.T) {
	for _, c := range []struct{ name, attributes, want string }{
		{"outbox-worker", "", "outbox-worker"},
		{"outbox-worker", "service.name=from-attributes", "from-attributes"},
		{"mine", "service.name=from-attributes", "mine"},
	} {
		cfg := DefaultConfig()
		cfg.ServiceName, cfg.ResourceAttributes = c.name, c.attributes
		r, err := cfg.resource(about)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := r.Set().Value("service.name")
		if got.AsString() != c.want {
			t.Errorf("%q, %q: service.name %q, want %q", c.name, c.attributes, got.AsString(), c.want)
		}
	}
}

// Without an endpoint, or switched off, there is no tracer.
func TestOff(t *testing.T) {
	c := otlptest.New(t)
	for name, cfg := range map[string]Config{
		"no endpoint": DefaultConfig(),
		"disabled":    to(c.HTTP(), func(c *Config) { c.Disabled, c.Sampler = true, "nonsense" }),
		"exporter":    to(c.HTTP(), func(c *Config) { c.Exporter = "none" }),
	} {
		log, text := newLog()
		if tracer, err := New(cfg, about, log); tracer != nil || err != nil || text.String() != "" {
			t.Errorf("%s: %v %v, log %s", name, tracer, err, text)
		}
	}
	cfg := DefaultConfig()
	cfg.Events = true
	log, text := newLog()
	if _, err := New(cfg, about, log); err != nil || !strings.Contains(text.String(), "OTEL_EXPORTER_OTLP_ENDPOINT") {
		t.Errorf("RELAY_TRACE_EVENTS without an endpoint: %v, log %s", err, text)
	}
}

// A collector that fails is logged once, without the headers' values, and so is its recovery.
func TestCollectorInTrouble(t *testing.T) {
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(strings.ReplaceAll(protocol, "/", "-"), func(t *testing.T) {
			c := otlptest.New(t)
			c.Answer(func(r otlptest.Request) error {
				return errors.New("who is " + r.Header["authorization"] + " " + strings.Repeat("x", 10_000))
			})
			endpoint := c.HTTP()
			if protocol == "grpc" {
				endpoint = c.GRPC()
			}
			tracer, log := open(t, to(endpoint, func(c *Config) { c.Protocol, c.Headers = protocol, "authorization=Bearer%20swordfish" }))
			for n := 1; n <= 3; n++ {
				tracer.Sent(offer(kafka, nil, record("A", "1")))
				c.WaitRequests(patience, n)
			}
			c.Answer(nil)
			before := time.Now()
			for len(c.Spans()) == 0 {
				if time.Since(before) > patience {
					t.Fatal("nothing is exported after the trouble")
				}
				n := len(c.Requests())
				tracer.Sent(offer(kafka, nil, record("A", "1")))
				c.WaitRequests(patience, n+1)
			}
			shut(tracer)
			text := log.String()
			if strings.Count(text, "traces are not exported") != 1 || strings.Count(text, "traces are exported again") != 1 || !strings.Contains(text, "spans_lost=3") {
				t.Errorf("log:\n%s", text)
			}
			if strings.Contains(text, "swordfish") || !strings.Contains(text, "who is …") || len(text) > 2000 {
				t.Errorf("log with a secret, without the answer, or too long:\n%s", text)
			}
		})
	}
}

// A collector that hangs, or is not there, delays nothing, and the end only as long as it may.
func TestCollectorHangs(t *testing.T) {
	hanging := otlptest.New(t)
	hanging.Answer(func(otlptest.Request) error { <-hanging.Stopped(); return nil })
	unused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unused.Close()
	for name, endpoint := range map[string]string{"Hangs": hanging.HTTP(), "HangsGRPC": hanging.GRPC(), "Refuses": "http://" + unused.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			log, _ := newLog()
			cfg := to(endpoint, func(c *Config) {
				c.QueueSize, c.BatchSize = 64, 16
				if name == "HangsGRPC" {
					c.Protocol = "grpc"
				}
			})
			tracer, err := New(cfg, about, log)
			if err != nil {
				t.Fatal(err)
			}
			started := time.Now()
			const batches = 5000
			for range batches {
				tracer.Sent(offer(kafka, nil, record("A", "1")))
			}
			// Generous: it takes some 20 ms, and would take hours if it waited.
			if took := time.Since(started); took > 20*time.Second {
				t.Errorf("%d batches took %s", batches, took)
			}
			started = time.Now()
			ctx, cancel := contextFor(300 * time.Millisecond)
			defer cancel()
			tracer.Close(ctx)
			if took := time.Since(started); took > 5*time.Second {
				t.Errorf("the end took %s with 300 ms to do it in", took)
			}
		})
	}
}

// What is queued is exported at the end.
func TestCloseExports(t *testing.T) {
	c := otlptest.New(t)
	tracer, _ := open(t, to(c.HTTP(), func(c *Config) { c.ScheduleDelay = 3_600_000 }))
	for range 10 {
		tracer.Sent(offer(kafka, nil, record("A", "1")))
	}
	if n := len(c.Requests()); n != 0 {
		t.Fatalf("%d requests before the end", n)
	}
	shut(tracer)
	if n := len(c.Spans()); n != 10 {
		t.Errorf("%d spans arrived, want 10", n)
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		words  string // empty: nothing is wrong
	}{
		{"defaults", func(*Config) {}, ""},
		{"grpc by port", func(c *Config) { c.Endpoint = "http://collector:4317" }, ""},
		{"no scheme", func(c *Config) { c.Endpoint = "collector:4318" }, "OTEL_EXPORTER_OTLP_ENDPOINT: want http://host:4318"},
		{"other scheme", func(c *Config) { c.Endpoint = "ftp://collector" }, "OTEL_EXPORTER_OTLP_ENDPOINT: want http://host:4318"},
		{"no host", func(c *Config) { c.Endpoint = "http://:4318" }, "OTEL_EXPORTER_OTLP_ENDPOINT: want http://host:4318"},
		{"traces endpoint", func(c *Config) { c.TracesEndpoint = "nonsense" }, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: want http://host:4318"},
		{"password", func(c *Config) { c.Endpoint = "http://user:swordfish@collector:4318" }, "OTEL_EXPORTER_OTLP_HEADERS"},
		{"password, and no URL", func(c *Config) { c.Endpoint = "http://user:swordfish@[collector" }, "OTEL_EXPORTER_OTLP_ENDPOINT: want http://host:4318"},
		{"token", func(c *Config) { c.Endpoint = "http://collector/?token=swordfish" }, "OTEL_EXPORTER_OTLP_HEADERS"},
		{"grpc without port", func(c *Config) { c.Endpoint, c.Protocol = "http://collector", "grpc" }, "want a port"},
		{"protocol", func(c *Config) { c.Protocol = "http/json" }, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json: want http/protobuf or grpc"},
		{"header without value", func(c *Config) { c.Headers = "a=b,swordfish" }, "OTEL_EXPORTER_OTLP_HEADERS: entry 2 is not name=value"},
		{"header with an odd name", func(c *Config) { c.Headers = "a b=swordfish" }, "OTEL_EXPORTER_OTLP_HEADERS: entry 1 is not name=value"},
		{"header badly encoded", func(c *Config) { c.Headers = "a=%zzswordfish" }, "OTEL_EXPORTER_OTLP_HEADERS: the value of a "},
		{"header with a line end", func(c *Config) { c.Headers = "a=sword%0d%0afish" }, "OTEL_EXPORTER_OTLP_HEADERS: the value of a "},
		{"timeout", func(c *Config) { c.Timeout = 0 }, "OTEL_EXPORTER_OTLP_TIMEOUT=0: want at least 1"},
		{"compression", func(c *Config) { c.Compression = "zstd" }, "OTEL_EXPORTER_OTLP_COMPRESSION=zstd: want gzip or none"},
		{"certificate without TLS", func(c *Config) { c.Certificate = "/ca.pem" }, "OTEL_EXPORTER_OTLP_CERTIFICATE=/ca.pem: has no effect without TLS"},
		{"certificate not there", func(c *Config) { c.Endpoint, c.Certificate = "https://collector:4318", "/nowhere.pem" }, "OTEL_EXPORTER_OTLP_CERTIFICATE: open /nowhere.pem"},
		{"client certificate alone", func(c *Config) { c.Endpoint, c.ClientCertificate = "https://collector:4318", "/c.pem" }, "want both or neither"},
		{"exporter", func(c *Config) { c.Exporter = "console" }, "OTEL_TRACES_EXPORTER=console: want otlp or none"},
		{"attributes", func(c *Config) { c.ResourceAttributes = "a=b,c" }, "OTEL_RESOURCE_ATTRIBUTES: entry 2"},
		{"sampler", func(c *Config) { c.Sampler = "jaeger_remote" }, "OTEL_TRACES_SAMPLER=jaeger_remote: want always_on"},
		{"share", func(c *Config) { c.Sampler, c.SamplerArg = "traceidratio", "10%" }, "OTEL_TRACES_SAMPLER_ARG=10%: want a share from 0 to 1"},
		{"share too large", func(c *Config) { c.Sampler, c.SamplerArg = "parentbased_traceidratio", "2" }, "OTEL_TRACES_SAMPLER_ARG=2: want"},
		{"share is no number", func(c *Config) { c.Sampler, c.SamplerArg = "parentbased_traceidratio", "NaN" }, "OTEL_TRACES_SAMPLER_ARG=NaN: want"},
		{"queue", func(c *Config) { c.QueueSize = 10 }, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=512: want at most OTEL_BSP_MAX_QUEUE_SIZE=10"},
	} {
		err := to("http://collector:4318", c.change).Validate()
		switch {
		case (err == nil) != (c.words == ""), err != nil && !strings.Contains(err.Error(), c.words):
			t.Errorf("%s: %v, want %q", c.name, err, c.words)
		case err != nil && strings.Contains(err.Error(), "swordfish"):
			t.Errorf("%s: the error shows a secret: %v", c.name, err)
		}
	}
	all := to("x", func(c *Config) { c.Timeout, c.Sampler = 0, "y" }).Validate()
	for _, word := range []string{"_ENDPOINT", "_TIMEOUT", "_SAMPLER"} {
		if !strings.Contains(all.Error(), word) {
			t.Errorf("not all problems are reported at once: %v", all)
		}
	}
}

func TestDefaultProtocol(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://collector:4317": "grpc", "https://collector:4317": "grpc", "http://collector:4318": "http/protobuf", "http://collector": "http/protobuf",
		"https://api.example.com/otlp": "http/protobuf",
	} {
		if got, err := to(endpoint).target(); err != nil || got.protocol != want {
			t.Errorf("%s: %s, %v, want %s", endpoint, got.protocol, err, want)
		}
	}
}

// What a batch costs where it is not recorded, and where it is.
func BenchmarkSent(b *testing.B) {
	for name, flags := range map[string]string{"recorded": "01", "not": "00"} {
		b.Run(name, func(b *testing.B) {
			var batch []*relay.Record
			for i := range 1000 {
				batch = append(batch, traced("A", "k", parent(i+1, i, flags)))
			}
			log, _ := newLog()
			tracer, err := newTracer(DefaultConfig(), about, new(nothing), log)
			if err != nil {
				b.Fatal(err)
			}
			defer shut(tracer)
			o := offer(kafka, nil, batch...)
			b.ReportAllocs()
			for b.Loop() {
				tracer.Sent(o)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/event")
		})
	}
}
