package engine

import (
	"context"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// doing is how events are found just now, for the status and for who looks whether anything moves.
type doing struct {
	slot string
	obs  relay.Observer

	mu        sync.Mutex // guards what follows
	mode      string     // ModeCDC, ModePolling or ModeRecovering; what is done now
	why       string     // of polling though a stream is wanted, or of a recovery
	streaming bool       // the replication connection is open
	since     time.Time
	reported  bool   // a change to this state was reported
	steps     uint64 // see progress
	looking   bool   // a look at the table is under way
	lookError string // why the last one did not succeed
	holders   string // what making the slot waits for
}

func newDoing(slot string, obs relay.Observer, wanted string) *doing {
	d := &doing{slot: slot, obs: obs, mode: relay.ModeCDC, since: time.Now()}
	if wanted == relay.ModePolling {
		d.mode = relay.ModePolling
	}
	return d
}

// became notes what is being done. Only the feeder calls it.
func (d *doing) became(mode string, streaming bool, why string) {
	d.mu.Lock()
	changed := d.streaming != streaming || d.mode != mode
	if changed {
		d.since = time.Now()
	}
	news := changed || !d.reported || mode == relay.ModePolling && d.why != why
	d.mode, d.streaming, d.why, d.reported = mode, streaming, why, true
	d.mu.Unlock()
	if news {
		d.obs.Changed(modeChange(d.slot, mode, streaming, why))
	}
}

func modeChange(slot, mode string, streaming bool, why string) relay.Change {
	c := relay.Change{Kind: relay.ChangeStreaming, Level: relay.LevelOK, Slot: slot, Text: "from the slot"}
	switch {
	case mode == relay.ModePolling:
		c.Kind, c.Level, c.Text = relay.ChangePolling, relay.LevelDegraded, why
		if why == relay.WantsPolling {
			c.Level = relay.LevelOK
		}
	case mode == relay.ModeRecovering:
		c.Kind, c.Level, c.Text = relay.ChangeRecovering, relay.LevelDegraded, "looking in the table for what the slot does not deliver: "+why
	case !streaming:
		c.Kind, c.Level, c.Text = relay.ChangeBroken, relay.LevelDegraded, why
	}
	return c
}

func (d *doing) isStreaming() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.streaming
}

// whileStreaming reports whether rows that are found in the table now are found while streaming.
func (d *doing) whileStreaming() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mode == relay.ModeCDC
}

// step notes that something was done which no other count shows.
func (d *doing) step() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.steps++
}

// lookBegins and lookEnds frame a look at the table.
func (d *doing) lookBegins() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looking = true
}

func (d *doing) lookEnds(ctx context.Context, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looking = false
	switch {
	case err == nil:
		d.steps++
		d.lookError = ""
	case ctx.Err() == nil:
		d.lookError = err.Error()
	}
}

// waitsForHolders notes what making the slot waits for; empty: nothing.
func (d *doing) waitsForHolders(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.holders = text
}

// hasHolders reports whether making the slot waits for others.
func (d *doing) hasHolders() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.holders != ""
}

// found is what progress has to know of it: owes is that there is something to do whatever comes,
// stream that events come from a connection that is open.
func (d *doing) found() (steps uint64, owes, stream bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.mode == relay.ModePolling:
		return d.steps, d.looking || d.lookError != "", false
	case d.mode == relay.ModeRecovering, !d.streaming:
		return d.steps, true, false
	}
	return d.steps, false, true
}

// snapshot fills in what the outside may know.
func (d *doing) snapshot(out *relay.WorkSnapshot) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out.Mode, out.Why, out.Streaming, out.ModeSince = d.mode, d.why, d.streaming, d.since
	out.LookError, out.Holders = d.lookError, d.holders
}
