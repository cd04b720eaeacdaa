package admin

import (
	"bytes"
	"compress/gzip"
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sagaz-relay/relay/relay"
)

const (
	// cheap is how long a build may take so that it is made again for each request after it.
	cheap = 5 * time.Millisecond
	// leisure is how many times a dearer build's time its result is used, so that all requests cost
	// no more than a fifth of a core. longest is the most.
	leisure = 4
	longest = time.Second
)

// shared is something that is built for requests. However many there are, one at a time builds it,
// and those that came before the build began take its result: the engine shares its core with HTTP.
type shared[T any] struct {
	turn relay.Turn // whoever has it builds

	mu    sync.Mutex // guards what follows
	value T
	began time.Time // of the last build; zero: not built yet
	until time.Time // the last build serves until then
}

func newShared[T any]() *shared[T] { return &shared[T]{turn: relay.NewTurn()} }

// get returns what build makes, or has made for another request since this one came.
func (s *shared[T]) get(ctx context.Context, build func() T) (value T, err error) {
	asked := time.Now()
	if value, ok := s.last(asked); ok {
		return value, nil
	}
	if err := s.turn.Take(ctx); err != nil {
		return value, err
	}
	defer s.turn.Give()
	if value, ok := s.last(asked); ok {
		return value, nil
	}
	began := time.Now()
	value = build()
	took := time.Since(began)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.value, s.began, s.until = value, began, began
	if took > cheap {
		s.until = time.Now().Add(min(leisure*took, longest))
	}
	return value, nil
}

func (s *shared[T]) last(asked time.Time) (value T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.began.After(asked) || time.Now().Before(s.until) {
		return s.value, true
	}
	return value, false
}

// answer is a whole response. It is written by the goroutine of the request, and delays no other.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

func (a *answer) write(w http.ResponseWriter) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.code)
	_, _ = w.Write(a.body) // the peer has gone
}

// Header, WriteHeader and Write make it a ResponseWriter that keeps what it gets.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(code int) { a.code = code }

func (a *answer) Write(p []byte) (int, error) {
	a.body = append(a.body, p...)
	return len(p), nil
}

// The formats that /metrics comes in, by what the peer accepts first.
var metricFormats = []struct{ name, accept string }{
	{"application/vnd.google.protobuf", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"},
	{"application/openmetrics-text", "application/openmetrics-text;version=1.0.0"},
	{"text/plain", "text/plain"},
}

const protobufFormat = 0

func metricFormat(accept string) int {
	best, at := len(metricFormats)-1, len(accept)
	for i, f := range metricFormats {
		if found := strings.Index(accept, f.name); found >= 0 && found < at {
			best, at = i, found
		}
	}
	return best
}

// metricsHandler answers /metrics: built once for all who ask for the same format.
func metricsHandler(cfg Config, metrics prometheus.Gatherer) http.Handler {
	inner := promhttp.HandlerFor(metrics, promhttp.HandlerOpts{EnableOpenMetrics: true, DisableCompression: true})
	var built [6]*shared[*answer] // two for each format
	for i := range built {
		built[i] = newShared[*answer]()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		format, zipped := metricFormat(r.Header.Get("Accept")), 0
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			zipped = 1
		}
		a, err := built[2*format+zipped].get(r.Context(), func() *answer {
			a := &answer{code: http.StatusOK, header: make(http.Header)}
			ask := &http.Request{Method: http.MethodGet, URL: r.URL, Header: http.Header{"Accept": {metricFormats[format].accept}}}
			inner.ServeHTTP(a, ask.WithContext(context.WithoutCancel(r.Context())))
			if cfg.Redact != nil && format != protobufFormat {
				a.body = cfg.Redact(a.body)
			}
			if zipped == 1 {
				a.zip()
			}
			return a
		})
		if err != nil {
			return // the peer has gone
		}
		a.write(w)
	})
}

// zip compresses the body.
func (a *answer) zip() {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed) // a level that there is
	_, _ = z.Write(a.body)                          // to memory
	_ = z.Close()
	a.body = b.Bytes()
	a.header.Set("Content-Encoding", "gzip")
	a.header.Set("Vary", "Accept-Encoding")
}
