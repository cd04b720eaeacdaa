package watch

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

const (
	// historyEvery is the time between two samples of the history, and historySamples how many are
	// kept: 15 minutes.
	historyEvery   = 5 * time.Second
	historySamples = 180
)

// History is the relay's last 15 minutes, for the charts of the status page. All series end at End,
// have the same length, and a value every EverySeconds; null where nothing was known: before the
// start, or while another relay owned the slot.
type History struct {
	End          time.Time              `json:"end"`
	EverySeconds float64                `json:"every_seconds"`
	Slots        map[string]SlotHistory `json:"slots"`
	Sinks        map[string]SinkHistory `json:"sinks"`
}

// SlotHistory are the series of one slot.
type SlotHistory struct {
	LagBytes      Series `json:"lag_bytes"` // WAL written and not confirmed
	LagSeconds    Series `json:"lag_seconds"`
	RetainedBytes Series `json:"retained_bytes"` // WAL that the slot keeps
}

// SinkHistory are the series of one sink.
type SinkHistory struct {
	Rate Series `json:"rate"` // events acknowledged a second
}

// Series is a list of numbers; NaN means that nothing is known.
type Series []float64

// MarshalJSON writes NaN as null, and no more than three decimals.
func (s Series) MarshalJSON() ([]byte, error) {
	out := append(make([]byte, 0, 8*len(s)+2), '[')
	for i, v := range s {
		if i > 0 {
			out = append(out, ',')
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			out = append(out, "null"...)
			continue
		}
		out = strconv.AppendFloat(out, math.Round(v*1000)/1000, 'f', -1, 64)
	}
	return append(out, ']'), nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Series) UnmarshalJSON(text []byte) error {
	var values []*float64
	if err := json.Unmarshal(text, &values); err != nil {
		return err
	}
	*s = make(Series, len(values))
	for i, v := range values {
		(*s)[i] = math.NaN()
		if v != nil {
			(*s)[i] = *v
		}
	}
	return nil
}

// samples is a ring of values by tick, a count of historyEvery since some moment.
type samples struct {
	values [historySamples]float64
	from   int64 // of the first value that was put; ticks start at 1
	last   int64 // of the newest
}

func (s *samples) put(tick int64, v float64) {
	if s.from == 0 {
		s.from, s.last = tick, tick-1
	}
	for t := max(s.last+1, tick-historySamples+1); t < tick; t++ { // a machine that slept
		s.values[t%historySamples] = math.NaN()
	}
	s.values[tick%historySamples] = v
	s.last = tick
}

// upTo returns the values that end at tick.
func (s *samples) upTo(tick int64) Series {
	out := make(Series, historySamples)
	for i := range out {
		t := tick - int64(historySamples-1-i)
		out[i] = math.NaN()
		if s.from != 0 && t >= s.from && t <= s.last && t > s.last-historySamples {
			out[i] = s.values[t%historySamples]
		}
	}
	return out
}

// history are the rings of a relay, in constant memory.
type history struct {
	mu    sync.Mutex // guards what follows
	tick  int64      // of the last sample; 0: none yet
	end   time.Time
	slots map[string]*slotSamples
	sinks map[string]*samples
}

type slotSamples struct{ lagBytes, lagSeconds, retained samples }

// due reports whether it is time for a sample, so long after the start.
func (h *history) due(elapsed time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return int64(elapsed/historyEvery)+1 != h.tick
}

// add takes a sample from a look at the relay.
func (h *history) add(now time.Time, elapsed time.Duration, st Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tick, h.end = int64(elapsed/historyEvery)+1, now
	if h.slots == nil {
		h.slots, h.sinks = make(map[string]*slotSamples), make(map[string]*samples)
	}
	for name := range h.slots {
		if !slices.ContainsFunc(st.Slots, func(s SlotStatus) bool { return s.Slot == name }) {
			delete(h.slots, name) // the table is divided in another way
		}
	}
	for i := range st.Slots {
		slot := &st.Slots[i]
		s := h.slots[slot.Slot]
		if s == nil {
			s = &slotSamples{}
			h.slots[slot.Slot] = s
		}
		seconds := math.NaN()
		if slot.Role == relay.Owner || slot.Role == relay.Draining {
			seconds = slot.LagSeconds
		}
		s.lagSeconds.put(h.tick, seconds)
		s.lagBytes.put(h.tick, orNaN(slot.LagBytes))
		s.retained.put(h.tick, orNaN(slot.RetainedBytes))
	}
	for i := range st.Sinks {
		sink := &st.Sinks[i]
		s := h.sinks[sink.Sink]
		if s == nil {
			s = &samples{}
			h.sinks[sink.Sink] = s
		}
		s.put(h.tick, sink.Rate)
	}
}

func orNaN(v *int64) float64 {
	if v == nil {
		return math.NaN()
	}
	return float64(*v)
}

// History returns the last 15 minutes.
func (w *Watch) History() History {
	h := &w.history
	h.mu.Lock()
	defer h.mu.Unlock()
	out := History{End: h.end, EverySeconds: historyEvery.Seconds(), Slots: make(map[string]SlotHistory), Sinks: make(map[string]SinkHistory)}
	for name, s := range h.slots {
		out.Slots[name] = SlotHistory{LagBytes: s.lagBytes.upTo(h.tick), LagSeconds: s.lagSeconds.upTo(h.tick), RetainedBytes: s.retained.upTo(h.tick)}
	}
	for name, s := range h.sinks {
		out.Sinks[name] = SinkHistory{Rate: s.upTo(h.tick)}
	}
	return out
}
