// Package otlptest is an OpenTelemetry collector for tests: it takes OTLP over HTTP and gRPC on two
// ports of this machine and keeps the spans.
package otlptest

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	wire "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/encoding/gzip" // so that it is taken compressed, too
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Collector takes spans. Its methods may be called from any goroutine.
type Collector struct {
	t          testing.TB
	scheme     string
	http, grpc net.Listener
	stopped    chan struct{}

	mu       sync.Mutex // guards what follows
	requests []Request
	spans    []Span
	answer   func(Request) error // nil: take everything
	changed  chan struct{}       // closed, and made again, at every request
}

// Request is one that came in.
type Request struct {
	Protocol string // "http" or "grpc"
	Path     string
	Header   map[string]string // names in lower case
	Spans    int
}

// Span is a span with what tests look at.
type Span struct {
	Name, Kind      string
	TraceID, SpanID string // hexadecimal
	Parent          string // span id, empty for none
	Start, End      time.Time
	Attributes      map[string]string // numbers and booleans as text
	Links           []Link
	Error           string // the status' description, or "error", when the status is an error
	Resource        map[string]string
}

// Link is a link of a span.
type Link struct {
	TraceID, SpanID string
	State           string // tracestate
	Attributes      map[string]string
}

// New starts a collector that ends with the test.
func New(t testing.TB) *Collector {
	t.Helper()
	return start(t, nil)
}

// NewTLS starts one with TLS, and returns the file with the certificate to trust.
func NewTLS(t testing.TB) (c *Collector, certificate string) {
	t.Helper()
	lender := httptest.NewTLSServer(nil) // its certificate is for 127.0.0.1
	lender.Close()
	certificate = filepath.Join(t.TempDir(), "collector.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: lender.Certificate().Raw})
	if err := os.WriteFile(certificate, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, &lender.TLS.Certificates[0]), certificate
}

func start(t testing.TB, cert *tls.Certificate) *Collector {
	t.Helper()
	c := &Collector{t: t, stopped: make(chan struct{}), changed: make(chan struct{}), scheme: "http://"}
	for _, l := range []*net.Listener{&c.http, &c.grpc} {
		var err error
		if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	web := &http.Server{Handler: http.HandlerFunc(c.serveHTTP)}
	var options []grpc.ServerOption
	listener := c.http
	if cert != nil {
		c.scheme = "https://"
		options = append(options, grpc.Creds(credentials.NewServerTLSFromCert(cert)))
		listener = tls.NewListener(c.http, &tls.Config{Certificates: []tls.Certificate{*cert}})
	}
	rpc := grpc.NewServer(options...)
	collector.RegisterTraceServiceServer(rpc, &service{c: c})
	var running sync.WaitGroup
	running.Go(func() { _ = web.Serve(listener) })
	running.Go(func() { _ = rpc.Serve(c.grpc) })
	t.Cleanup(func() {
		close(c.stopped)
		_ = web.Close()
		rpc.Stop()
		running.Wait()
	})
	return c
}

// HTTP is the endpoint for http/protobuf, GRPC that for grpc.
func (c *Collector) HTTP() string { return c.scheme + c.http.Addr().String() }

// GRPC is described at HTTP.
func (c *Collector) GRPC() string { return c.scheme + c.grpc.Addr().String() }

// Answer sets what requests are answered from now on: f's error, as status 500 or code Internal, or
// as f blocks. Nil takes everything.
func (c *Collector) Answer(f func(Request) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = f
}

// Stopped is closed when the test ends: an answer that blocks ends with it.
func (c *Collector) Stopped() <-chan struct{} { return c.stopped }

// Spans are those that were taken.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Requests are those that came, whatever the answer.
func (c *Collector) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// Wait returns the spans once done finds them enough, and fails the test when they have not come
// within limit.
func (c *Collector) Wait(limit time.Duration, what string, done func([]Span) bool) []Span {
	c.t.Helper()
	over := time.After(limit)
	for {
		c.mu.Lock()
		spans, changed := slices.Clone(c.spans), c.changed
		c.mu.Unlock()
		if done(spans) {
			return spans
		}
		select {
		case <-changed:
		case <-over:
			var got []string
			for _, s := range spans {
				got = append(got, fmt.Sprintf("%s %s %v links %d", s.Kind, s.Name, s.Attributes, len(s.Links)))
			}
			c.t.Fatalf("after %s not yet: %s; spans:\n%s", limit, what, strings.Join(got, "\n"))
		}
	}
}

// WaitRequests waits until so many requests have come.
func (c *Collector) WaitRequests(limit time.Duration, n int) {
	c.t.Helper()
	c.Wait(limit, fmt.Sprintf("%d requests", n), func([]Span) bool { return len(c.Requests()) >= n })
}

func (c *Collector) take(r Request, in *collector.ExportTraceServiceRequest) error {
	var spans []Span
	for _, rs := range in.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				spans = append(spans, spanOf(s, attributes(rs.Resource.GetAttributes())))
			}
		}
	}
	r.Spans = len(spans)
	c.mu.Lock()
	answer := c.answer
	c.requests = append(c.requests, r)
	c.signal()
	c.mu.Unlock()
	if answer != nil {
		if err := answer(r); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spans = append(c.spans, spans...)
	c.signal()
	return nil
}

// signal needs mu locked.
func (c *Collector) signal() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Collector) serveHTTP(w http.ResponseWriter, r *http.Request) {
	in := Request{Protocol: "http", Path: r.URL.Path, Header: make(map[string]string)}
	for name, values := range r.Header {
		in.Header[strings.ToLower(name)] = strings.Join(values, ",")
	}
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = unpacked
	}
	var request collector.ExportTraceServiceRequest
	text, err := io.ReadAll(body)
	if err == nil {
		err = proto.Unmarshal(text, &request)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := c.take(in, &request); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	answer, _ := proto.Marshal(&collector.ExportTraceServiceResponse{})
	_, _ = w.Write(answer)
}

type service struct {
	collector.UnimplementedTraceServiceServer
	c *Collector
}

// Export implements the service of OTLP.
func (s *service) Export(ctx context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	in := Request{Protocol: "grpc", Header: make(map[string]string)}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		for name, values := range md {
			in.Header[name] = strings.Join(values, ",")
		}
	}
	if err := s.c.take(in, request); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func spanOf(s *wire.Span, resource map[string]string) Span {
	out := Span{
		Name: s.Name, Kind: strings.TrimPrefix(s.Kind.String(), "SPAN_KIND_"), TraceID: hex.EncodeToString(s.TraceId), SpanID: hex.EncodeToString(s.SpanId),
		Parent: hex.EncodeToString(s.ParentSpanId), Start: time.Unix(0, int64(s.StartTimeUnixNano)), End: time.Unix(0, int64(s.EndTimeUnixNano)),
		Attributes: attributes(s.Attributes), Resource: resource,
	}
	for _, l := range s.Links {
		out.Links = append(out.Links, Link{TraceID: hex.EncodeToString(l.TraceId), SpanID: hex.EncodeToString(l.SpanId), State: l.TraceState, Attributes: attributes(l.Attributes)})
	}
	if s.Status.GetCode() == wire.Status_STATUS_CODE_ERROR {
		if out.Error = s.Status.GetMessage(); out.Error == "" {
			out.Error = "error"
		}
	}
	return out
}

func attributes(list []*common.KeyValue) map[string]string {
	m := make(map[string]string)
	for _, kv := range list {
		switch v := kv.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			m[kv.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			m[kv.Key] = fmt.Sprint(v.IntValue)
		case *common.AnyValue_BoolValue:
			m[kv.Key] = fmt.Sprint(v.BoolValue)
		default:
			m[kv.Key] = kv.Value.String()
		}
	}
	return m
}
