package engine

import (
	"context"
	"errors"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// recheckEvery is how often a relay that runs looks again at what it has checked when it began:
// somebody switches row security on, takes a right away, puts a filter on the publication. Each
// look plans some dozens of statements.
const recheckEvery = time.Minute

// recheck looks again until ctx ends. What a person has to fix makes the relay not ready, in the
// words with which a start would refuse. A database that does not answer is reported elsewhere.
func (e *Engine) recheck(ctx context.Context) {
	for relay.Sleep(ctx, recheckEvery) {
		err := e.checkDatabase(ctx)
		var setup *relay.SetupError
		switch {
		case ctx.Err() != nil:
			return
		case errors.As(err, &setup):
			e.noteFault(setup.Error())
		case err == nil:
			e.noteFault("")
		}
	}
}

// noteFault notes what a start would refuse, or nil when nothing of that kind is left.
func (e *Engine) noteFault(fault string) {
	e.mu.Lock()
	before := e.fault
	e.fault = fault
	e.mu.Unlock()
	switch {
	case fault != "" && fault != before:
		e.log.Error("what the relay needs of the database is not so any more", "problem", fault)
	case fault == "" && before != "":
		e.log.Info("the database is as the relay needs it again")
	}
}
