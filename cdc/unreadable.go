package cdc

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// What a stream cannot read stops it at that place, at each try. It may be a row that the server
// cannot send (its text is longer than 1 GB, or has bytes that are no UTF-8), or a message that we
// do not understand. The table still has the rows. So after some tries the slot is made again
// behind that place, and the sweep finds the rows up to there. It reads one by one what it cannot
// read together.

// stumble is the place where streams of a slot have ended lately because something could not be
// read.
type stumble struct {
	at    relay.LSN
	times int
}

// stumblesTolerated is how often a stream may end at one place before the slot is given up: a
// connection may bring nonsense once.
const stumblesTolerated = 2

// stumbled notes that a stream has ended at a transaction, and reports whether the slot is to be
// given up for it.
func (s *Source) stumbled(slot string, at relay.LSN) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.stumbles[slot]
	if was.at != at {
		was = stumble{at: at}
	}
	was.times++
	s.stumbles[slot] = was
	if was.times <= stumblesTolerated {
		return false
	}
	delete(s.stumbles, slot)
	return true
}

// isUnreadable reports whether an error of the stream is about what it carries, so that it comes
// again at the same place.
func isUnreadable(err error) bool {
	if errors.Is(err, pgoutput.ErrProtocol) {
		return true
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || len(pg.Code) != 5 {
		return false
	}
	switch pg.Code[:2] {
	case "22", "54", "XX":
		// data that cannot be converted, a text longer than the server can make, damage
		return true
	}
	return pg.Code == sessions.OutOfMemory
}

// readsText reports whether a slot is read as text.
func (s *Source) readsText(slot string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.textual[slot]
}

func (s *Source) readText(slot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.textual[slot] = true
}

// described looks at the table's description, which the stream has just brought. It is that of the
// moment whose WAL is decoded: columns may have had other types then, or may not have been there.
func (s *stream) described(ctx context.Context) error {
	table, err := s.lookNow(ctx)
	switch {
	case err != nil:
		return err
	case s.binary && s.dec.WantsText():
		s.source.readText(s.slot)
		return pgoutput.ErrWantsText
	case table == nil: // it could not be looked at
		if s.dec.WantsText() {
			return errors.New("the types of the table's columns could not be looked up")
		}
		return nil
	case s.dec.Broken() != nil:
		// The table has the column, its past has not.
		return s.source.gone(s.slot, relay.GoneUnreadable, s.dec.Broken())
	case !table.describes(s.dec.Types()):
		return s.source.gone(s.slot, relay.GoneUnreadable, fmt.Errorf("columns of %s had other types", table.name))
	}
	return nil
}
