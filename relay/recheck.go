package relay

import (
	"context"
	"errors"
	"time"
)

// recheckEvery is how often a relay that runs looks again at what it has checked when it began: somebody switches row security on, takes a right away, puts a
// filter on the publication. Each look plans some dozens of statements.
const recheckEvery = time.Minute

// recheck looks again until ctx ends. What a person has to fix makes the relay not ready, in the words with which a start would refuse; a database that does
// not answer is told elsewhere.
func (r *Relay) recheck(ctx context.Context) {
	for Sleep(ctx, recheckEvery) {
		err := r.checkDatabase(ctx)
		var setup *SetupError
		switch {
		case ctx.Err() != nil:
			return
		case errors.As(err, &setup):
			r.noteFault(setup.Error())
		case err == nil:
			r.noteFault("")
		}
	}
}

// noteFault notes what a start would refuse, or that there is nothing of that kind any more.
func (r *Relay) noteFault(fault string) {
	r.mu.Lock()
	before := r.fault
	r.fault = fault
	r.mu.Unlock()
	switch {
	case fault != "" && fault != before:
		r.log.Error("what the relay needs of the database is not so any more", "problem", fault)
	case fault == "" && before != "":
		r.log.Info("the database is as the relay needs it again")
	}
}
