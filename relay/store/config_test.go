package store

import (
	"strings"
	"testing"
)

// The names of all slots and publications of a set must be possible ones.
func TestShardsConfig(t *testing.T) {
	for _, c := range []struct {
		shards            int
		slot, publication string
		want              string
	}{
		{1, "sagaz_outbox", "sagaz_outbox", ""},
		{64, "sagaz_outbox", "sagaz_outbox", ""},
		{0, "sagaz_outbox", "sagaz_outbox", "RELAY_SHARDS=0: want 1 to 64"},
		{65, "sagaz_outbox", "sagaz_outbox", "RELAY_SHARDS=65: want 1 to 64"},
		{-1, "sagaz_outbox", "sagaz_outbox", "RELAY_SHARDS=-1"},
		{1, "sagaz_outbox", "", "RELAY_PUBLICATION=: want a name of 1 to 63 bytes"},
		{1, "sagaz_outbox", strings.Repeat("p", 64), "RELAY_PUBLICATION=p"},
		{1, strings.Repeat("s", 63), strings.Repeat("p", 63), ""},
		{4, strings.Repeat("s", 58), strings.Repeat("p", 58), ""},
		{4, strings.Repeat("s", 59), "p", "RELAY_SLOT=s"},
		{4, "s", strings.Repeat("p", 59), "RELAY_PUBLICATION=p"},
		{11, strings.Repeat("s", 57), "p", "too long for RELAY_SHARDS=11"},
	} {
		cfg := DefaultConfig()
		cfg.DatabaseURL, cfg.Owner, cfg.Shards, cfg.Slot, cfg.Publication = "postgresql://u@h/d", "o", c.shards, c.slot, c.publication
		err := cfg.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%d shards of %q and %q: got %v, want %q", c.shards, c.slot, c.publication, err, c.want)
		}
	}
}
