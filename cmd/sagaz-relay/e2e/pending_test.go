package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// The backlog of one large transaction shows as soon as it is committed, and falls with it, though
// the stream's position stays at the transaction's end all the while and the marks write WAL behind
// it.
func TestPendingOfLargeTransaction(t *testing.T) {
	t.Parallel()
	const rows = 100_000
	w := newWorld(t)
	p := w.relay("relay", settings{
		"BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(t.TempDir(), "events.jsonl"),
		"RELAY_INFLIGHT_EVENTS": "300", "RELAY_LANES": "1", "BATCH_SIZE": "50", "RELAY_MARK_LINGER": "50ms",
	})
	p.waitStreaming()
	w.comparePending(rows, p)
	p.stop()
}

// comparePending commits that many rows in one transaction, and compares the sum of what relays
// export as pending with what is pending, until all rows are marked.
func (w *world) comparePending(rows int, relays ...*process) {
	t := w.t
	t.Helper()
	w.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'saga', 'order-' || i % 1000, 'OrderCreated', '{}' FROM generate_series(1, $1::int) AS i`, rows)
	committed := time.Now()

	type sample struct {
		at              time.Duration
		pending, metric float64
	}
	var samples []sample // about one a second, as scrapes are
	eventually(t, patience, "all rows are marked", func() string {
		s := sample{pending: float64(value[int](w, `SELECT count(*) FROM saga_outbox WHERE status = 'pending'`))}
		for _, p := range relays {
			metric, err := strconv.ParseFloat(p.metric("outbox_pending_events_total"), 64)
			if err != nil {
				return p.mustRun(err.Error())
			}
			s.metric += metric
		}
		s.at = time.Since(committed).Round(time.Second / 10)
		done := s.pending == 0 && s.metric == 0
		if n := len(samples); n == 0 || s.at-samples[n-1].at > time.Second || done {
			samples = append(samples, s)
		}
		if done {
			return ""
		}
		return relays[0].mustRun(fmt.Sprintf("%g are not, the metric is %g", s.pending, s.metric))
	})
	t.Logf("after, pending, metric: %v", samples)

	// The gauge is a second or two old, more where the machine is busy; so it is compared with what
	// was pending a few samples before and after.
	const late, share = 4, 0.15
	few, half := float64(rows/50), float64(rows/2)
	first := slices.IndexFunc(samples, func(s sample) bool { return s.metric >= (1-share)*s.pending && s.metric > 5*few })
	if first < 0 || samples[first].pending < half {
		t.Fatalf("sample %d is the first that shows the backlog", first)
	}
	for i := first; i < len(samples); i++ {
		s := samples[i]
		least, most := (1-share)*samples[min(i+late, len(samples)-1)].pending, (1+share)*samples[max(i-late, 0)].pending
		if s.metric < least || s.metric > most {
			t.Errorf("after %s: the metric is %g, want %.0f to %.0f", s.at, s.metric, least, most)
		}
		if i > first && s.metric > samples[i-1].metric+few {
			t.Errorf("after %s: the metric has risen from %g to %g", s.at, samples[i-1].metric, s.metric)
		}
	}
}
