package e2e

import (
	"strings"
)

// metric returns the value of a series as /metrics has it; empty when it is not there.
func (p *process) metric(series string) string {
	p.t.Helper()
	_, text := p.get("/metrics")
	for l := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(l, series+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}
