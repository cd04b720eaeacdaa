package relay

import (
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// histograms are one histogram a label value. They are ours and not the client library's because events come in batches: whole runs of
// them took equally long, and are counted at once.
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
	return prometheus.MustNewConstHistogram(desc, total, h.sum, cumulative, h.labels...)
}
