package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
	"github.com/sagaz-relay/relay/sinks/kafka"
)

// ledgerMemory is what the relay may hold resident with a million events in the ledger: what it may
// hold anyway, and the counts by hash bucket.
const ledgerMemory = 110 << 20

// ledgerOf is how many entries of sink number 0 hold up their keys.
func (p *process) ledgerOf() int {
	p.t.Helper()
	if st := p.status(); len(st.Sinks) > 0 {
		return st.Sinks[0].Ledger
	}
	return -1
}

// A sink is away until the ledger has hundreds of thousands of events (SAGAZ_E2E_LARGE=1000000
// makes it a million), the relay is restarted with that, and delivers it: in order, and in the
// memory of any other day.
func TestLedgerMemory(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("memory is read from /proc, which only Linux has")
	}
	rows := largeRows(t)
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 4)
	env := settings{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "RELAY_SINK_ISOLATION": "1s"}
	peak := func(p *process, state string) {
		t.Helper()
		memory := p.peakMemory()
		t.Logf("%s: peak resident memory %d MB", state, memory>>20)
		if memory > ledgerMemory {
			t.Errorf("%s: peak resident memory %d MB, want at most %d", state, memory>>20, ledgerMemory>>20)
		}
	}
	insert := func(from, to int) {
		t.Helper()
		w.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at)
			SELECT gen_random_uuid(), 'saga', 'order', 'order-' || i % 1000, $1, jsonb_build_object('seq', i / 1000, 'note', $2::text), '{}', 'pending', now()
			FROM generate_series($3::int, $4::int - 1) AS i`, k.name, w.marker, from, to)
	}
	const chunk = 100_000
	// How long it takes is the machine's affair, as long as the number moves.
	wait := func(p *process, what string, want int) {
		t.Helper()
		last, moved := want, time.Now()
		for {
			n := p.ledgerOf()
			switch {
			case n == want:
				return
			case n != last:
				last, moved = n, time.Now()
			case time.Since(moved) > patience:
				t.Fatalf("%s: %d events in the ledger for %s, want %d", what, n, patience, want)
			}
			p.mustRun("")
			select {
			case <-time.After(50 * time.Millisecond):
			case <-t.Context().Done():
				t.Fatalf("%s: the test ended with %d events in the ledger", what, n)
			}
		}
	}

	p := w.relayOf(program.Plain(t), "fills", env)
	p.waitStreaming()
	insert(0, 1000)
	p.waitLog("sink isolated")
	began := time.Now()
	for from := 1000; from < rows; from += chunk {
		insert(from, min(from+chunk, rows))
	}
	wait(p, "the ledger has all rows", rows)
	took := time.Since(began)
	w.waitPassed()
	t.Logf("%d rows inserted and in the ledger within %s: %.0f/s", rows, took.Round(time.Millisecond), float64(rows)/took.Seconds())
	peak(p, "filling the ledger")
	p.stop()

	p = w.relayOf(program.Plain(t), "restarted", env)
	p.waitStreaming()
	began = time.Now()
	insert(rows, rows+1000)
	wait(p, "what comes goes to the ledger", rows+1000)
	t.Logf("restarted: 1000 more rows in the ledger within %s", time.Since(began).Round(time.Millisecond))
	peak(p, "restarted with a full ledger")
	p.stop()

	p = w.relayOf(program.Plain(t), "drains", env.with(settings{"KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext}))
	p.waitStreaming()
	began = time.Now()
	wait(p, "the ledger is empty", 0)
	took = time.Since(began)
	t.Logf("%d rows drained within %s: %.0f/s", rows+1000, took.Round(time.Millisecond), float64(rows+1000)/took.Seconds())
	peak(p, "draining the ledger")
	p.stop()
	if got := w.statuses(); got["sent"] != rows+1000 || len(got) != 1 {
		t.Errorf("rows by status: %v, want %d sent", got, rows+1000)
	}

	next, records := make(map[string]int), 0
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{k.addr}
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	if err := kafka.ReadBack(ctx, cfg, []string{k.name}, time.Time{}, func(s kafka.Stored) error {
		records++
		seq, err := strconv.Atoi(between(string(s.Value), `"seq": `, `,`))
		if err != nil || seq != next[s.Key] {
			return fmt.Errorf("offset %d of partition %d: key %s has number %d (%v), want %d", s.Offset, s.Partition, s.Key, seq, err, next[s.Key])
		}
		next[s.Key]++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if records != rows+1000 {
		t.Errorf("%d records, want %d", records, rows+1000)
	}
}
