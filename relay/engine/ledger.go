package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// ledger is what is done with the ledger of all sinks: it is read before the first event, and what
// people discard of sinks that are gone is taken out. Each sink's own part has a drainer.
type ledger struct {
	cfg     *Config
	log     hclog.Logger
	obs     relay.Observer
	slot    string
	lease   relay.Ledger
	sinks   []string
	shelves []*shelf // by sink
	mask    uint32   // of each shelf's buckets
}

// load counts the entries that hold up later events, and returns the sinks that are not configured
// any more, with how many entries they have.
func (l *ledger) load(ctx context.Context) (unknown map[string]int64, err error) {
	total := 0
	err = relay.Retry(ctx, relay.Backoff{Min: l.cfg.BackoffMin, Max: l.cfg.BackoffMax}, func() error {
		shelves := make(map[string]*shelf)
		for i, sink := range l.sinks {
			l.shelves[i].reset()
			shelves[sink] = l.shelves[i]
		}
		total, unknown = 0, make(map[string]int64)
		return l.lease.Blocking(ctx, l.mask, func(sink string, bucket uint32, entries, blocking int) {
			switch s := shelves[sink]; {
			case s != nil && blocking > 0:
				s.mu.Lock()
				s.add(bucket, blocking)
				s.mu.Unlock()
				total += blocking
			case s == nil && sink != relay.MarkSink:
				unknown[sink] += int64(entries)
			}
		})
	}, func(err error, wait time.Duration) bool {
		if errors.Is(err, relay.ErrLeaseLost) {
			return false
		}
		l.log.Warn("reading the ledger", "backoff", wait, "error", err)
		return true
	})
	if err != nil {
		return nil, err
	}
	if total > 0 {
		l.log.Info("ledger read", "entries", total)
	}
	for sink, n := range unknown {
		l.log.Warn("the ledger has events for a sink that is not configured; they stay until it is, or until they are discarded",
			"sink", sink, "entries", n, "fix", "sagaz-relay dead-letter discard --state all --sink "+sink+" --all; or, if it has another name now, sagaz-relay sinks rename "+sink+" NEW")
	}
	return unknown, nil
}

// noteSinks logs and reports which sinks the slot's last owner did not have, and which it had that
// we do not have. Of the latter, unknown are those with entries in the ledger. What it cannot find
// out is left out: no event depends on it.
func (l *ledger) noteSinks(ctx context.Context, unknown map[string]int64) {
	now := l.sinks
	before, err := l.lease.NoteSinks(ctx, now)
	if err != nil && ctx.Err() == nil {
		l.log.Debug("noting the sinks", "error", err)
	}
	for _, sink := range now {
		if len(before) > 0 && !slices.Contains(before, sink) {
			l.log.Info("a sink was added: it gets what is committed from now on, and what is still pending without a ledger entry", "sink", sink, "fix", "for older events: sagaz-relay replay --since 2h --sink "+sink)
			l.obs.Changed(relay.Change{Kind: relay.ChangeSinkAdded, Level: relay.LevelInfo, Slot: l.slot, Sink: sink, Text: "it gets what is committed from now on, and what is still pending; older events only by replay"})
		}
	}
	gone := slices.Collect(maps.Keys(unknown))
	for _, sink := range before {
		if !slices.Contains(now, sink) && unknown[sink] == 0 {
			l.log.Warn("a sink was removed: what is committed from now on does not go there", "sink", sink, "before", before, "now", now,
				"fix", "if that is a mistake, set "+relay.SinksSetting(before, l.cfg.BrokerTypes))
			gone = append(gone, sink)
		}
	}
	slices.Sort(gone)
	for _, sink := range gone {
		c := relay.Change{Kind: relay.ChangeSinkGone, Level: relay.LevelInfo, Slot: l.slot, Sink: sink, Text: "it is not configured any more"}
		if n := unknown[sink]; n > 0 {
			c.Level, c.Text = relay.LevelDegraded, fmt.Sprintf("it is not configured any more, and has %d entries in the ledger", n)
		}
		l.obs.Changed(c)
	}
}

// dropDiscarded takes out of the ledger what people discard of sinks that are not configured any
// more. Nothing else is done with those entries: the sink may come back.
func (l *ledger) dropDiscarded(ctx context.Context, sinks []string) error {
	for relay.Sleep(ctx, 5*l.cfg.PollInterval) {
		for _, sink := range sinks {
			due, _, err := l.lease.Due(ctx, sink, roundEntries, roundBytes)
			if err != nil {
				continue // those who need the ledger say it
			}
			var outcomes []relay.Outcome
			for i := range due {
				if due[i].Discarded || due[i].Gone {
					outcomes = append(outcomes, relay.Outcome{Entry: &due[i], Fate: relay.FateDropped})
				}
			}
			if len(outcomes) == 0 {
				continue
			}
			if err := l.lease.Resolve(ctx, sink, outcomes); err != nil && ctx.Err() == nil {
				l.log.Warn("dropping discarded ledger entries", "sink", sink, "error", err)
			}
		}
	}
	return nil
}
