package e2e

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// slowly reads what the sink stdout writes at a pace of so many bytes a second, as a broker would
// that is far away: the pace is each relay's own, whatever the machine has to do.
type slowly struct {
	rate  int
	begun time.Time
	bytes int
}

func (s *slowly) Write(p []byte) (int, error) {
	now := time.Now()
	if due := s.begun.Add(time.Duration(s.bytes) * time.Second / time.Duration(s.rate)); now.Before(due) {
		time.Sleep(due.Sub(now))
	} else {
		s.begun, s.bytes = now, 0
	}
	s.bytes += len(p)
	return len(p), nil
}

// slowCrew is a crew whose relays deliver at a pace of their own.
func slowCrew(t *testing.T, shards, relays int) *crew {
	t.Helper()
	w := bareWorldAt(t, pgtest.Server(t, pgtest.Version()))
	w.shards = shards
	w.migrate("--slot")
	c := &crew{fleet{world: w, env: settings{"BROKER_TYPE": "stdout", "RELAY_INFLIGHT_EVENTS": "500", "RELAY_MARK_LINGER": "20ms"}}}
	for range relays {
		c.addSlow()
	}
	c.waitShared()
	return c
}

func (c *crew) addSlow() *process {
	c.t.Helper()
	name := fmt.Sprintf("relay-%d", c.n)
	env := c.world.env().with(settings{"WORKER_ID": name}).with(c.env)
	p := launchWith(c.t, program.Plain(c.t), name, env, c.secrets(), func(cmd *exec.Cmd) { cmd.Stdout = &slowly{rate: 800_000} }, "run")
	c.n++
	c.relays = append(c.relays, p)
	return p
}

// sampling compares, several times a second, the backlog with the sum of what relays export.
type sampling struct {
	w     *world
	began time.Time
	stop  chan struct{}
	done  chan struct{}

	mu      sync.Mutex // guards what follows
	relays  []*process // that are scraped
	samples []backlogSample
	during  string
}

type backlogSample struct {
	at          time.Duration
	during      string
	least, most float64 // pending rows just before and after
	sum         float64
	each        []string
}

// sampleBacklog begins.
func (c *crew) sampleBacklog() *sampling {
	s := &sampling{w: c.world, began: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
	s.now("the backlog", c.relays)
	go func() {
		defer close(s.done)
		for {
			select {
			case <-s.stop:
				return
			case <-time.After(200 * time.Millisecond):
				s.once()
			}
		}
	}()
	return s
}

// now notes what is being done, and which relays there are from here on.
func (s *sampling) now(during string, relays []*process) {
	for _, p := range relays {
		if p.addr == "" {
			p.status() // finds out where it answers
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.during, s.relays = during, slices.Clone(relays)
}

func (s *sampling) once() {
	s.mu.Lock()
	relays, during := s.relays, s.during
	s.mu.Unlock()
	before, err := s.w.pending()
	if err != nil {
		return
	}
	sample := backlogSample{at: time.Since(s.began).Round(time.Millisecond), during: during, each: make([]string, len(relays))}
	var sum atomic.Int64
	var scrapes sync.WaitGroup
	for i, p := range relays {
		scrapes.Go(func() {
			_, text := p.get("/metrics")
			for l := range strings.Lines(string(text)) {
				if v, ok := strings.CutPrefix(l, "outbox_pending_events_total "); ok {
					f, _ := strconv.ParseFloat(strings.TrimSpace(v), 64)
					sum.Add(int64(f))
					sample.each[i] = strings.TrimSpace(v)
				}
			}
		})
	}
	scrapes.Wait()
	after, err := s.w.pending()
	if err != nil {
		return
	}
	sample.sum, sample.least, sample.most = float64(sum.Load()), float64(min(before, after)), float64(max(before, after))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples = append(s.samples, sample)
}

// end ends it and returns the samples.
func (s *sampling) end() []backlogSample {
	close(s.stop)
	<-s.done
	return s.samples
}

// Four slots' relays are stopped, killed and added while they work off a backlog that goes on
// growing, and the number of slots is changed. What they export adds up to the backlog all the
// while: within a tenth, but for moments that are shorter than the time between two scrapes.
func TestShardsBacklogThroughHandovers(t *testing.T) {
	t.Parallel()
	const (
		rows   = 40_000
		scrape = 15 * time.Second // monitoring/config/prometheus.yml
		some   = 500              // what may be in flight between two statements
	)
	c := slowCrew(t, 4, 2)
	insert := func(n int) {
		c.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
			SELECT gen_random_uuid(), 'saga', 'order-' || i % 1000, 'OrderCreated', '{}' FROM generate_series(1, $1::int) AS i`, n)
	}
	s := c.sampleBacklog()
	insert(rows)
	ended, writes := make(chan struct{}), sync.WaitGroup{}
	end := sync.OnceFunc(func() { close(ended); writes.Wait() })
	defer end()
	writes.Go(func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(100 * time.Millisecond):
				insert(150)
			}
		}
	})
	step := func(what string, do func()) {
		t.Helper()
		s.now(what, c.relays)
		do()
		s.now(what, c.relays)
		time.Sleep(2 * time.Second)
	}
	step("one more relay", func() { c.addSlow(); c.waitShared() })
	step("a relay is stopped", func() {
		p := c.relays[0]
		p.stop()
		c.remove(p)
		s.now("a relay was stopped", c.relays)
		c.waitShared()
	})
	step("a relay is killed", func() {
		p := c.relays[0]
		p.crash()
		c.remove(p)
		s.now("a relay was killed", c.relays)
		c.waitShared()
	})
	step("all slots have one owner, who is killed", func() {
		p := c.relays[0]
		p.crash()
		c.remove(p)
		c.addSlow()
		s.now("the only relay was killed", c.relays)
		c.waitShared()
	})
	step("one more relay again", func() { c.addSlow(); c.waitShared() })
	step("two slots instead of four", func() { c.change(2) })
	end()
	s.now("the end", c.relays)
	c.waitNonePending(nil)
	for _, p := range c.relays {
		p.waitMetric("outbox_pending_events_total", "0")
	}
	wrong, since := "", time.Duration(0)
	off := make(map[string]int)
	for _, b := range s.end() {
		now := ""
		switch {
		case b.sum < 0.9*b.least-some:
			now = "less"
		case b.sum > 1.1*b.most+some:
			now = "more"
		}
		if now != wrong {
			wrong, since = now, b.at
		}
		if now != "" {
			off[now]++
			t.Logf("%s (%s): %.0f to %.0f rows wait, the sum is %.0f: %v", b.at, b.during, b.least, b.most, b.sum, b.each)
		}
		if now != "" && b.at-since > scrape {
			t.Errorf("%s (%s): for %s the sum has been %s than the backlog: %.0f to %.0f rows wait, the sum is %.0f", b.at, b.during, b.at-since, now, b.least, b.most, b.sum)
		}
	}
	t.Logf("%d samples, off: %v", len(s.samples), off)
}
