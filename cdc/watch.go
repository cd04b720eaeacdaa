package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// lookEvery is how often a stream looks whether the publication still carries the table. With a
// longer interval more rows need the sweep when it does not. With a shorter one idle relays keep a
// server busy.
const lookEvery = 10 * time.Second

// watch looks at table and publication now and then, until ctx ends or they are not what they were
// when the stream was opened. The server does not report that a table was taken out of a
// publication: it leaves out the rows, and the slot goes on without them.
//
// Any change ends the stream, also one that did no harm: what was committed between the change and
// now may have been left out. Whether the slot is kept then depends on the change: see
// Source.touched.
func (s *stream) watch(ctx context.Context) error {
	tick := time.NewTicker(s.source.lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if _, err := s.lookNow(ctx); err != nil {
			return err
		}
	}
}

// lookNow looks once. The reader does it, too, when the server describes the table, which it does
// before the first row that it sends after a change. A row from after a gap must not overtake those
// in it.
//
// It returns what it saw, or nil. A look that fails means nothing; the stream has its own way to
// notice that the server is gone.
func (s *stream) lookNow(ctx context.Context) (table *outbox, err error) {
	// the wait for the others' looks included
	looking, cancel := context.WithTimeout(ctx, s.cfg.WALSenderTimeout)
	defer cancel()
	err = s.source.looks.use(looking, func(conn *pgconn.PgConn) (err error) {
		table, err = s.lookOnce(looking, conn)
		return err
	})
	var setup *relay.SetupError
	var gone *relay.SlotGoneError
	switch {
	case errors.As(err, &setup), errors.As(err, &gone):
		return nil, err
	case err != nil && ctx.Err() == nil:
		s.log.Debug("looking at the publication", "slot", s.slot, "error", err)
	}
	return table, nil
}

func (s *stream) lookOnce(ctx context.Context, conn *pgconn.PgConn) (*outbox, error) {
	sess := &session{conn: conn, role: s.role, server: sessions.MajorVersion(conn.ParameterStatus("server_version"))}
	table, err := sess.inspect(ctx, s.shard, false)
	switch {
	case err != nil:
		var setup *relay.SetupError
		if errors.As(err, &setup) {
			s.source.forget(s.slot)
		}
		return nil, err
	case !table.published:
		return nil, s.source.gone(s.slot, relay.GonePublication, fmt.Errorf("publication %q was dropped", s.shard.Publication))
	case table.version != s.version && table.content == s.content:
		return nil, s.source.touched(s.slot, table.version, fmt.Errorf("publication %q was altered, and carries the same as before", s.shard.Publication))
	case table.version != s.version:
		return nil, s.source.gone(s.slot, relay.GonePublication, fmt.Errorf("publication %q was changed", s.shard.Publication))
	}
	return table, nil
}
