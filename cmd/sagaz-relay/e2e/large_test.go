package e2e

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// largeMemory is what the relay may hold resident, whatever comes.
const largeMemory = 100 << 20

// largeRows is twice as much as fits into that. SAGAZ_E2E_LARGE=1000000 is for an idle machine.
func largeRows(t testing.TB) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("SAGAZ_E2E_LARGE"), "200000"))
	if err != nil {
		t.Fatalf("SAGAZ_E2E_LARGE: %v", err)
	}
	return n
}

// One transaction of hundreds of thousands of rows streams through: in order, once, and in the
// memory that any other load needs.
func TestLargeTransaction(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("memory is read from /proc, which only Linux has")
	}
	rows := largeRows(t)
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "events.jsonl")
	p := w.relayOf(program.Plain(t), "relay", settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": path})
	p.waitStreaming()
	began := time.Now()
	w.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at)
		SELECT gen_random_uuid(), 'saga-' || i, 'order', 'order-' || i % 1000, 'OrderCreated',
			jsonb_build_object('seq', i / 1000, 'note', $1::text, 'pad', repeat('x', 350)), '{}', 'pending', now()
		FROM generate_series(0, $2::int - 1) AS i`, w.marker, rows)
	inserted := time.Now()
	eventually(t, patience, "all rows are marked", func() string {
		if n := p.status().Slots[0].Marked; n != uint64(rows) {
			return p.mustRun(fmt.Sprintf("%d are", n))
		}
		return ""
	})
	memory := p.peakMemory()
	t.Logf("%d rows: inserted within %s, delivered and marked %s later; the relay's peak resident memory %d MB",
		rows, inserted.Sub(began).Round(time.Millisecond), time.Since(inserted).Round(time.Millisecond), memory>>20)
	if memory > largeMemory {
		t.Errorf("peak resident memory %d MB, want at most %d", memory>>20, largeMemory>>20)
	}
	p.stop()
	if got := w.statuses(); got["sent"] != rows || len(got) != 1 {
		t.Errorf("rows by status: %v, want %d sent", got, rows)
	}
	next := make(map[string]int) // by key
	lines := 0
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	// without a JSON decoder: the race detector makes that take minutes
	for text := bufio.NewScanner(in); text.Scan(); lines++ {
		key, digits := between(text.Text(), `"key":"`, `"`), between(text.Text(), `"seq": `, `,`)
		if seq, err := strconv.Atoi(digits); err != nil || seq != next[key] {
			t.Fatalf("line %d: key %s: got number %q, want %d", lines, key, digits, next[key])
		}
		next[key]++
	}
	if lines != rows {
		t.Errorf("%d lines, want %d", lines, rows)
	}
}

func between(s, before, behind string) string {
	_, rest, _ := strings.Cut(s, before)
	found, _, _ := strings.Cut(rest, behind)
	return found
}

// peakMemory is VmHWM, in bytes.
func (p *process) peakMemory() int {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		p.t.Fatal(err)
	}
	for l := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(l, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				p.t.Fatal(err)
			}
			return kb << 10
		}
	}
	p.t.Fatal("no VmHWM")
	return 0
}
