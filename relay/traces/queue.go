package traces

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/sagaz-relay/relay/relay"
)

// queue counts the spans that wait to be exported, and lets no more than limit wait. The processor
// behind it would drop the others without a log line; it has room for as many, so it never does.
type queue struct {
	sdktrace.SpanProcessor
	limit   int64
	log     hclog.Logger
	dropped func(reason string, spans int)

	waiting atomic.Int64 // given to the processor, and not to the exporter yet

	mu   sync.Mutex // guards what follows
	lost int        // in this episode; 0 outside of one
	last time.Time
}

// fullFor is how long nothing has to be dropped for an episode to be over.
const fullFor = time.Minute

// OnEnd implements sdktrace.SpanProcessor.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	if q.waiting.Add(1) > q.limit {
		q.waiting.Add(-1)
		q.drop()
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// drop counts a span that has no place. The log has the first of an episode.
func (q *queue) drop() {
	q.dropped(relay.SpansQueueFull, 1)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lost == 0 {
		q.log.Warn("more spans are made than exported, some are dropped", "queue", q.limit,
			"fix", "raise OTEL_BSP_MAX_QUEUE_SIZE, record fewer by OTEL_TRACES_SAMPLER, or look at the collector")
	}
	q.lost++
	q.last = time.Now()
}

// took notes that the exporter has got spans. The log has the end of an episode.
func (q *queue) took(spans int) {
	q.waiting.Add(-int64(spans))
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lost > 0 && time.Since(q.last) > fullFor {
		q.over()
	}
}

// over ends an episode. It is called with mu held.
func (q *queue) over() {
	q.log.Info("spans are not dropped any more", "spans_dropped", q.lost)
	q.lost = 0
}

// ended logs an episode that the end of the process has ended.
func (q *queue) ended() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lost > 0 {
		q.over()
	}
}
