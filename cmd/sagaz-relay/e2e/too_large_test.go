package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// tooLargeMemory is the memory limit of the Kubernetes manifest.
const tooLargeMemory = 512 << 20

// A row of 200 MB does not end the process, wherever it is read, nor after a restart or a retry by
// hand: it is a dead letter, and the others go.
func TestRowLargerThanMemory(t *testing.T) {
	for _, c := range []struct{ mode, payload, headers string }{
		{"cdc", `to_jsonb(repeat('x', 200000000))`, `'{}'`},
		{"polling", `'{}'`, `jsonb_build_object('pad', repeat('x', 200000000))`},
	} {
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			path := filepath.Join(t.TempDir(), "events.jsonl")
			with := settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": path, "RELAY_MODE": c.mode, "GOMEMLIMIT": "460MiB"}
			start := func(name string) *process {
				p := w.relayOf(program.Plain(t), name, with)
				if c.mode == "cdc" {
					p.waitStreaming()
				}
				return p
			}
			check := func(p *process, dead, sent int) {
				eventually(t, patience, "the large row is a dead letter and the others are sent", func() string {
					if got := w.statuses(); got["dead_letter"] != dead || got["sent"] != sent {
						return p.mustRun(fmt.Sprint(got))
					}
					return ""
				})
				memory := p.peakMemory()
				t.Logf("peak resident memory %d MB", memory>>20)
				if memory > tooLargeMemory {
					t.Errorf("peak resident memory %d MB, want at most %d", memory>>20, tooLargeMemory>>20)
				}
			}
			p := start("relay")
			insert := func(payload, headers string, n int) {
				w.exec(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, headers)
					SELECT gen_random_uuid(), 's', 'k-' || i, 'T', ` + payload + `, ` + headers + fmt.Sprintf(` FROM generate_series(1, %d) i`, n))
			}
			insert(`'{}'`, `'{}'`, 5)
			insert(c.payload, c.headers, 1)
			insert(`'{}'`, `'{}'`, 5)
			check(p, 1, 10)
			p.stop()
			// A person sets it back, and another comes while no relay runs.
			w.exec(`UPDATE saga_outbox SET status = 'pending' WHERE status = 'dead_letter'`)
			insert(c.payload, c.headers, 1)
			insert(`'{}'`, `'{}'`, 5)
			p = start("again")
			check(p, 2, 15)
			p.stop()
			text, err := os.ReadFile(path)
			if err != nil || strings.Count(string(text), "\n") != 15 {
				t.Errorf("the file has %d lines (%v), want 15", strings.Count(string(text), "\n"), err)
			}
		})
	}
}
