package watch

import (
	"encoding/hex"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
)

// histograms are one histogram a label value. They are ours and not the client library's because
// events come in batches: whole runs of them took equally long, and are counted at once.
type histograms struct {
	desc   *prometheus.Desc
	bounds []float64

	mu   sync.Mutex // guards by
	by   map[string]*histogram
	keys []*histogram // in the order in which they were made
}

// histogram is one of them. What is observed must not be negative.
type histogram struct {
	labels []string
	bounds []float64

	mu     sync.Mutex // guards what follows
	counts []uint64   // by bucket; the last one has no bound
	sum    float64
	traced []exemplar // by bucket, the newest of each; nil until there is one
}

// exemplar is an observation of an event whose trace is recorded.
type exemplar struct {
	value float64
	trace relay.TraceContext
	at    time.Time
}

func newHistograms(name, help string, bounds []float64, constant prometheus.Labels, labels ...string) *histograms {
	return &histograms{desc: prometheus.NewDesc(name, help, labels, constant), bounds: bounds, by: make(map[string]*histogram)}
}

// with returns the histogram of the label values.
func (h *histograms) with(values ...string) *histogram {
	key := strings.Join(values, "\xff")
	h.mu.Lock()
	defer h.mu.Unlock()
	one, ok := h.by[key]
	if !ok {
		one = &histogram{labels: values, bounds: h.bounds, counts: make([]uint64, len(h.bounds)+1)}
		h.by[key] = one
		h.keys = append(h.keys, one)
	}
	return one
}

// observe counts n observations of the same value.
func (h *histogram) observe(value float64, n int) {
	h.mu.Lock()
	h.add(value, n)
	h.mu.Unlock()
}

// add is observe for who holds mu.
func (h *histogram) add(value float64, n int) {
	at, _ := slices.BinarySearch(h.bounds, value)
	h.counts[at] += uint64(n)
	h.sum += value * float64(n)
}

// example notes an event's trace as the exemplar of the bucket that a value falls into. It is
// called with mu held.
func (h *histogram) example(value float64, trace *relay.TraceContext) {
	if h.traced == nil {
		h.traced = make([]exemplar, len(h.counts))
	}
	at, _ := slices.BinarySearch(h.bounds, value)
	h.traced[at] = exemplar{value, *trace, time.Now()}
}

// Describe implements prometheus.Collector.
func (h *histograms) Describe(descs chan<- *prometheus.Desc) { descs <- h.desc }

// Collect implements prometheus.Collector.
func (h *histograms) Collect(metrics chan<- prometheus.Metric) {
	h.mu.Lock()
	all := slices.Clone(h.keys)
	h.mu.Unlock()
	for _, one := range all {
		metrics <- one.metric(h.desc)
	}
}

func (h *histogram) metric(desc *prometheus.Desc) prometheus.Metric {
	h.mu.Lock()
	defer h.mu.Unlock()
	cumulative := make(map[float64]uint64, len(h.bounds))
	total := uint64(0)
	for i, bound := range append(slices.Clone(h.bounds), math.Inf(1)) {
		total += h.counts[i]
		if i < len(h.bounds) {
			cumulative[bound] = total
		}
	}
	m := prometheus.MustNewConstHistogram(desc, total, h.sum, cumulative, h.labels...)
	var exemplars []prometheus.Exemplar
	for i := range h.traced {
		if e := &h.traced[i]; e.trace.IsValid() {
			exemplars = append(exemplars, prometheus.Exemplar{Value: e.value, Timestamp: e.at, Labels: prometheus.Labels{
				"trace_id": hex.EncodeToString(e.trace.TraceID[:]), "span_id": hex.EncodeToString(e.trace.SpanID[:]),
			}})
		}
	}
	if exemplars == nil {
		return m
	}
	return prometheus.MustNewMetricWithExemplars(m, exemplars...)
}
