package traces

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/tlsfiles"
)

// Config is where traces go, by the variables of OpenTelemetry's specification. OpenTelemetry's
// libraries would read most of them by themselves, but only log a wrong value, and not read files.
// So they get all of them from here.
type Config struct {
	// Endpoint is the collector: http://host:4318, or http://host:4317 for gRPC; https for TLS.
	// Empty: no traces, and no cost. /v1/traces is added to its path for HTTP. TracesEndpoint goes
	// first, and is taken as it is.
	//
	// No default. OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT.
	Endpoint       string `env:"OTEL_EXPORTER_OTLP_ENDPOINT" secret:"address"`
	TracesEndpoint string `env:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" secret:"address"`

	// Protocol is the collector's protocol: http/protobuf or grpc. When it is not set, port 4317
	// means grpc, which is what the Python library speaks, and any other http/protobuf.
	//
	// No default. OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, else OTEL_EXPORTER_OTLP_PROTOCOL.
	Protocol string `env:"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" fallback:"OTEL_EXPORTER_OTLP_PROTOCOL"`

	// Headers is what goes with every request: name=value with commas between, values
	// percent-encoded. It is secret.
	//
	// No default. OTEL_EXPORTER_OTLP_TRACES_HEADERS, else OTEL_EXPORTER_OTLP_HEADERS.
	Headers string `env:"OTEL_EXPORTER_OTLP_TRACES_HEADERS" fallback:"OTEL_EXPORTER_OTLP_HEADERS" secret:"true"`

	// Timeout bounds one request, in milliseconds.
	//
	// Default 10000. OTEL_EXPORTER_OTLP_TRACES_TIMEOUT, else OTEL_EXPORTER_OTLP_TIMEOUT.
	Timeout int `env:"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT" fallback:"OTEL_EXPORTER_OTLP_TIMEOUT"`

	// Compression is how requests are compressed: gzip or none.
	//
	// Default none. OTEL_EXPORTER_OTLP_TRACES_COMPRESSION, else OTEL_EXPORTER_OTLP_COMPRESSION.
	Compression string `env:"OTEL_EXPORTER_OTLP_TRACES_COMPRESSION" fallback:"OTEL_EXPORTER_OTLP_COMPRESSION"`

	// Certificate is a file of certificates (PEM) that the collector's is checked against, instead
	// of the system's. ClientCertificate and ClientKey are the relay's own, for a collector that
	// asks. They are read at the start.
	//
	// No default. OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE, else OTEL_EXPORTER_OTLP_CERTIFICATE; and
	// so for _CLIENT_CERTIFICATE and _CLIENT_KEY.
	Certificate       string `env:"OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE" fallback:"OTEL_EXPORTER_OTLP_CERTIFICATE"`
	ClientCertificate string `env:"OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE" fallback:"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"`
	ClientKey         string `env:"OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY" fallback:"OTEL_EXPORTER_OTLP_CLIENT_KEY" secret:"path"`

	// Insecure is for gRPC with an endpoint that is only host:port: true means no TLS.
	//
	// Default false. OTEL_EXPORTER_OTLP_TRACES_INSECURE, else OTEL_EXPORTER_OTLP_INSECURE.
	Insecure bool `env:"OTEL_EXPORTER_OTLP_TRACES_INSECURE" fallback:"OTEL_EXPORTER_OTLP_INSECURE"`

	// Disabled switches traces off whatever else is set, and so does the exporter "none".
	//
	// Defaults false, otlp. OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER.
	Disabled bool   `env:"OTEL_SDK_DISABLED"`
	Exporter string `env:"OTEL_TRACES_EXPORTER"`

	// ServiceName is the relay's name in traces. ResourceAttributes are further attributes of the
	// relay: name=value with commas between, values percent-encoded. A service.name among them
	// counts when OTEL_SERVICE_NAME is not set.
	//
	// Defaults outbox-worker, none. OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES.
	ServiceName        string `env:"OTEL_SERVICE_NAME"`
	ResourceAttributes string `env:"OTEL_RESOURCE_ATTRIBUTES"`

	// Sampler decides what is recorded: always_on, always_off, traceidratio, or one of these with
	// parentbased_ in front, which follows the events' traces and decides by itself only for events
	// without one. SamplerArg is the share for traceidratio, 0 to 1.
	//
	// Defaults parentbased_always_on, 1. OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG.
	Sampler    string `env:"OTEL_TRACES_SAMPLER"`
	SamplerArg string `env:"OTEL_TRACES_SAMPLER_ARG"`

	// Spans wait in a queue of QueueSize, and go out in batches of BatchSize, or every
	// ScheduleDelay; ExportTimeout bounds a batch with its repetitions. Both times are
	// milliseconds. What the queue has no room for is dropped.
	//
	// Defaults 2048, 512, 5000, 30000. OTEL_BSP_MAX_QUEUE_SIZE, OTEL_BSP_MAX_EXPORT_BATCH_SIZE,
	// OTEL_BSP_SCHEDULE_DELAY, OTEL_BSP_EXPORT_TIMEOUT.
	QueueSize     int `env:"OTEL_BSP_MAX_QUEUE_SIZE"`
	BatchSize     int `env:"OTEL_BSP_MAX_EXPORT_BATCH_SIZE"`
	ScheduleDelay int `env:"OTEL_BSP_SCHEDULE_DELAY"`
	ExportTimeout int `env:"OTEL_BSP_EXPORT_TIMEOUT"`

	// Events begins a trace for every row that has no traceparent, and puts one into the record's
	// headers, so that its consumers' spans belong together. Off, such a row is delivered as it is.
	// A header more changes the wire, and a span for every event has its price at tens of thousands
	// a second. Applications that trace put a traceparent into the row.
	//
	// Default false. RELAY_TRACE_EVENTS.
	Events bool `env:"RELAY_TRACE_EVENTS"`
}

// DefaultConfig returns the defaults. Without an endpoint there are no traces.
func DefaultConfig() Config {
	return Config{
		Timeout: 10_000, Compression: compressionNone, Exporter: exporterOTLP, ServiceName: defaultService,
		Sampler: "parentbased_always_on", SamplerArg: "1",
		QueueSize: 2048, BatchSize: 512, ScheduleDelay: 5000, ExportTimeout: 30_000,
	}
}

const (
	defaultService = "outbox-worker"

	exporterOTLP = "otlp"
	exporterNone = "none"

	protocolHTTP = "http/protobuf"
	protocolGRPC = "grpc"
	portGRPC     = "4317"

	compressionGzip = "gzip"
	compressionNone = "none"
)

// On reports whether there is anywhere for traces to go.
func (c Config) On() bool {
	return !c.Disabled && !strings.EqualFold(c.Exporter, exporterNone) && (c.Endpoint != "" || c.TracesEndpoint != "")
}

// Validate reports everything that is wrong at once, by the names the user typed. It shows neither
// headers nor an endpoint's password. What is switched off is not looked at: in a cluster these
// variables are often set for all.
func (c Config) Validate() error {
	if !c.On() {
		return nil
	}
	var errs []error
	check := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if !strings.EqualFold(c.Exporter, exporterOTLP) {
		check(fmt.Errorf("OTEL_TRACES_EXPORTER=%s: want otlp or none", c.Exporter))
	}
	to, err := c.target()
	check(err)
	_, err = c.headers()
	check(err)
	_, err = c.resourceAttributes()
	check(err)
	_, err = c.sampler()
	check(err)
	if c.Compression != compressionGzip && c.Compression != compressionNone {
		check(fmt.Errorf("OTEL_EXPORTER_OTLP_COMPRESSION=%s: want gzip or none", c.Compression))
	}
	if to.url != nil {
		_, err = c.tls(to)
		check(err)
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"OTEL_EXPORTER_OTLP_TIMEOUT", c.Timeout},
		{"OTEL_BSP_MAX_QUEUE_SIZE", c.QueueSize},
		{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE", c.BatchSize},
		{"OTEL_BSP_SCHEDULE_DELAY", c.ScheduleDelay},
		{"OTEL_BSP_EXPORT_TIMEOUT", c.ExportTimeout},
	} {
		if n.value < 1 {
			check(fmt.Errorf("%s=%d: want at least 1", n.name, n.value))
		}
	}
	if c.BatchSize > c.QueueSize {
		check(fmt.Errorf("OTEL_BSP_MAX_EXPORT_BATCH_SIZE=%d: want at most OTEL_BSP_MAX_QUEUE_SIZE=%d", c.BatchSize, c.QueueSize))
	}
	return errors.Join(errs...)
}

// target is the collector's address.
type target struct {
	url      *url.URL // with the path for HTTP; nil when it is wrong
	protocol string
}

// String is for a log.
func (t target) String() string {
	if t.protocol == protocolGRPC {
		return t.url.Scheme + "://" + t.url.Host
	}
	return t.url.String()
}

func (c Config) target() (target, error) {
	name, raw := "OTEL_EXPORTER_OTLP_ENDPOINT", c.Endpoint
	if c.TracesEndpoint != "" {
		name, raw = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", c.TracesEndpoint
	}
	protocol := strings.ToLower(c.Protocol)
	if protocol != "" && protocol != protocolHTTP && protocol != protocolGRPC {
		return target{}, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%s: want http/protobuf or grpc", c.Protocol)
	}
	if protocol == protocolGRPC && !strings.Contains(raw, "://") {
		if c.Insecure {
			raw = "http://" + raw
		} else {
			raw = "https://" + raw
		}
	}
	// The parser's error quotes the whole, and there may be a password in it.
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return target{}, fmt.Errorf("%s: want http://host:4318, or http://host:4317 for gRPC, or the same with https", name)
	}
	if err := address.HTTP(raw); err != nil {
		return target{}, fmt.Errorf("%s: %w; what the collector wants to see goes into OTEL_EXPORTER_OTLP_HEADERS", name, err)
	}
	if protocol == "" {
		protocol = protocolHTTP
		if u.Port() == portGRPC {
			protocol = protocolGRPC
		}
	}
	switch {
	case protocol == protocolGRPC && u.Port() == "":
		return target{}, fmt.Errorf("%s: want a port, which for gRPC is mostly 4317", name)
	case protocol == protocolHTTP && c.TracesEndpoint == "":
		u = u.JoinPath("v1/traces")
	case u.Path == "":
		u.Path = "/"
	}
	return target{u, protocol}, nil
}

// headers reads the list of headers. Its errors name a header, never a value.
func (c Config) headers() (map[string]string, error) {
	headers := make(map[string]string)
	for i, pair := range split(c.Headers) {
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_HEADERS: entry %d is not name=value", i+1)
		}
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if err != nil || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_HEADERS: the value of %s is not percent-encoded ASCII", name)
		}
		headers[name] = value
	}
	return headers, nil
}

func (c Config) resourceAttributes() ([]attribute.KeyValue, error) {
	var attrs []attribute.KeyValue
	for i, pair := range split(c.ResourceAttributes) {
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || name == "" || err != nil {
			return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: entry %d is not name=value with a percent-encoded value", i+1)
		}
		attrs = append(attrs, attribute.String(name, value))
	}
	return attrs, nil
}

// split takes a list with commas apart, without empty entries.
func split(list string) []string {
	var entries []string
	for _, e := range strings.Split(list, ",") {
		if e = strings.TrimSpace(e); e != "" {
			entries = append(entries, e)
		}
	}
	return entries
}

func (c Config) sampler() (sdktrace.Sampler, error) {
	name, parentBased := strings.CutPrefix(strings.ToLower(c.Sampler), "parentbased_")
	var root sdktrace.Sampler
	switch name {
	case "always_on":
		root = sdktrace.AlwaysSample()
	case "always_off":
		root = sdktrace.NeverSample()
	case "traceidratio":
		share, err := strconv.ParseFloat(c.SamplerArg, 64)
		if err != nil || !(share >= 0 && share <= 1) { // NaN is neither
			return nil, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG=%s: want a share from 0 to 1, such as 0.1", c.SamplerArg)
		}
		root = sdktrace.TraceIDRatioBased(share)
	default:
		return nil, fmt.Errorf("OTEL_TRACES_SAMPLER=%s: want always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio", c.Sampler)
	}
	if parentBased {
		return sdktrace.ParentBased(root), nil
	}
	return root, nil
}

// tls returns nil where there is no TLS.
func (c Config) tls(to target) (*tls.Config, error) {
	files := tlsfiles.Client{
		CA:   tlsfiles.Setting{Name: "OTEL_EXPORTER_OTLP_CERTIFICATE", Value: c.Certificate},
		Cert: tlsfiles.Setting{Name: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", Value: c.ClientCertificate},
		Key:  tlsfiles.Setting{Name: "OTEL_EXPORTER_OTLP_CLIENT_KEY", Value: c.ClientKey},
	}
	if to.url.Scheme != "https" {
		return nil, files.Unused("OTEL_EXPORTER_OTLP_ENDPOINT to begin with https://")
	}
	return files.Config()
}
