package engine

import (
	"context"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

const (
	// createSlow is how long making a slot may take before that is logged, and before rows are
	// looked for in the table meanwhile.
	createSlow = 2 * time.Second
	// holdersEvery is how often it is asked what making a slot waits for, holdersLogged how often
	// the log repeats it.
	holdersEvery  = 5 * time.Second
	holdersLogged = time.Minute
)

// create makes the slot. The server waits with it for the end of every transaction that has an id,
// in any of its databases: for hours where somebody has forgotten one. That is logged, and in mode
// auto the table is polled meanwhile.
//
// Nothing is delivered twice or out of order for that. What was polled is marked before the sweep
// begins. What the slot delivers of it later is looked up, because EndSweep notes the end of the
// WAL. Crashes: a sweep is owed all the time, so the next owner makes the slot again. The half-made
// one goes with its connection.
func (f *feeder) create(ctx context.Context) (at relay.LSN, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		at, err = f.source.Create(relay.WithFence(ctx, f.tenure.Valid), f.shard)
	}()
	slow := time.NewTimer(createSlow)
	defer slow.Stop()
	select {
	case <-done:
		return at, err
	case <-slow.C:
	}
	logging := make(chan struct{})
	go func() {
		defer close(logging)
		f.logHolders(ctx, done)
	}()
	if f.cfg.Mode == relay.ModeAuto {
		f.sweeps.poll(ctx, done, makingSlot)
	}
	<-done // Create ends with ctx
	<-logging
	f.doing.step()
	return at, err
}

// makingSlot is why the table is polled while the slot is being made; what that waits for is
// SlotStatus.SlotWaitsFor.
const makingSlot = "the slot is being made, which waits for transactions to end"

// logHolders logs what making the slot waits for, until it is done.
func (f *feeder) logHolders(ctx context.Context, done <-chan struct{}) {
	defer f.doing.waitsForHolders("")
	began, logged, last := time.Now().Add(-createSlow), time.Time{}, ""
	for {
		holders, err := f.source.Holders(ctx, f.slot)
		if ctx.Err() != nil || closed(done) {
			return
		}
		text, fix := relay.SayHolders(holders), ""
		switch {
		case err != nil:
			text = "the server, and what it waits for is not known: " + err.Error()
		case len(holders) > 0:
			fix = holders[0].Fix()
		}
		f.doing.waitsForHolders(text)
		who := ""
		for _, h := range holders {
			h.Age = 0
			who += h.String()
		}
		if who != last || time.Since(logged) >= holdersLogged {
			logged, last = time.Now(), who
			f.log.Warn("making the slot waits for the end of transactions", "waits_for", text, "for", time.Since(began).Round(time.Second), "fix", fix)
		}
		pause(ctx, holdersEvery, done)
	}
}
