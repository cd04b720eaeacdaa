package traces

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/credentials"

	"github.com/sagaz-relay/relay/relay"
)

// newClient makes the client of a configuration that is valid. It does not connect. Every option is
// given, so that nothing in the environment counts that Config does not know.
func (c Config) newClient(to target) (otlptrace.Client, error) {
	headers, err := c.headers()
	if err != nil {
		return nil, err
	}
	security, err := c.tls(to)
	if err != nil {
		return nil, err
	}
	timeout := milliseconds(c.Timeout)
	if to.protocol == protocolGRPC {
		options := []otlptracegrpc.Option{
			otlptracegrpc.WithEndpoint(to.url.Host), otlptracegrpc.WithHeaders(headers), otlptracegrpc.WithTimeout(timeout),
		}
		if security != nil {
			options = append(options, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(security)))
		} else {
			options = append(options, otlptracegrpc.WithInsecure())
		}
		if c.Compression == compressionGzip {
			options = append(options, otlptracegrpc.WithCompressor(compressionGzip))
		}
		return otlptracegrpc.NewClient(options...), nil
	}
	compression := otlptracehttp.NoCompression
	if c.Compression == compressionGzip {
		compression = otlptracehttp.GzipCompression
	}
	options := []otlptracehttp.Option{
		otlptracehttp.WithEndpointURL(to.url.String()), otlptracehttp.WithHeaders(headers), otlptracehttp.WithTimeout(timeout),
		otlptracehttp.WithCompression(compression),
	}
	if security != nil {
		options = append(options, otlptracehttp.WithTLSClientConfig(security))
	}
	return otlptracehttp.NewClient(options...), nil
}

func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// quiet is an exporter that logs errors in our log, once in a while, instead of in OpenTelemetry's
// own at every batch.
type quiet struct {
	sdktrace.SpanExporter
	log     hclog.Logger
	secrets []string // parts of headers that a collector's answer may repeat
	dropped func(reason string, spans int)
	took    func(spans int) // is called with what comes out of the queue
	over    context.Context // ends when the time to export is over, and with it what is under way

	mu     sync.Mutex // guards what follows
	since  time.Time  // when exports began to fail; zero: they work
	logged time.Time
	lost   int // spans since then
}

// quietFor is the time between two lines about a collector that does not take spans.
const quietFor = 5 * time.Minute

// ExportSpans implements sdktrace.SpanExporter. It returns nil always: errors are logged here.
func (q *quiet) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	q.took(len(spans))
	ctx, cancel := context.WithCancel(withStates(ctx, spans))
	defer cancel()
	defer context.AfterFunc(q.over, cancel)()
	err := q.SpanExporter.ExportSpans(ctx, spans)
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if err == nil {
		if !q.since.IsZero() {
			q.log.Info("traces are exported again", "failing_for", now.Sub(q.since).Round(time.Second), "spans_lost", q.lost)
			q.since, q.lost = time.Time{}, 0
		}
		return nil
	}
	if q.since.IsZero() {
		q.since, q.logged = now, time.Time{}
	}
	q.lost += len(spans)
	q.dropped(relay.SpansExport, len(spans))
	if now.Sub(q.logged) >= quietFor {
		q.logged = now
		q.log.Warn("traces are not exported, events are delivered all the same", "spans_lost", q.lost, "error", q.clean(err.Error()))
	}
	return nil
}

// clean shortens what a collector has answered, and takes the headers' values out of it.
func (q *quiet) clean(text string) string {
	const most = 300
	for _, s := range q.secrets {
		text = strings.ReplaceAll(text, s, "…")
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// secretsOf are the values of headers, and the words in them ("Bearer xyz"); what is too short to
// be a secret would only spoil the text.
func secretsOf(headers map[string]string) []string {
	var secrets []string
	for _, value := range headers {
		for _, s := range append([]string{value}, strings.Fields(value)...) {
			if len(s) >= 4 {
				secrets = append(secrets, s)
			}
		}
	}
	return secrets
}
