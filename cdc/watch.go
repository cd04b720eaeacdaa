package cdc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// lookEvery is how often a stream looks whether the publication still carries the table: longer, and more rows need the sweep when
// it does not; shorter, and idle relays keep a server busy.
const lookEvery = 10 * time.Second

// look is an ordinary connection that looks at table and publication, made when it is needed.
type look struct {
	mu   sync.Mutex // guards conn and its use
	conn *pgconn.PgConn
}

// watch looks at table and publication now and then, until ctx ends or they are not what they were when the stream was opened. The
// server says nothing when a table is taken out of a publication: it leaves out the rows, and the slot goes on without them.
//
// Any change ends the stream, also one that did no harm: what was committed between the change and now may have been left out.
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

// lookNow looks once. The reader does it, too, when the server describes the table, which it does before the first row that it
// tells after a change: a row from after a gap must not overtake those in it.
//
// It returns what it saw, or nil. That the look itself does not work means nothing; the stream has its own way to notice that the server is gone.
func (s *stream) lookNow(ctx context.Context) (table *outbox, err error) {
	s.look.mu.Lock()
	defer s.look.mu.Unlock()
	table, err = s.lookOnce(ctx)
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

func (s *stream) lookOnce(ctx context.Context) (*outbox, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WALSenderTimeout)
	defer cancel()
	if s.look.conn == nil || s.look.conn.IsClosed() {
		cfg := s.source.conn.Copy()
		delete(cfg.RuntimeParams, "replication")
		delete(cfg.RuntimeParams, "wal_sender_timeout")
		cfg.RuntimeParams["application_name"] = "sagaz-relay look"
		sessions.Pin(cfg, sessions.Options{})
		// Somebody may hold the table locked.
		cfg.RuntimeParams["statement_timeout"] = strconv.FormatInt(s.cfg.WALSenderTimeout.Milliseconds(), 10)
		conn, err := pgconn.ConnectConfig(ctx, cfg)
		if err != nil {
			return nil, sessions.Cause(err)
		}
		s.look.conn = conn
	}
	conn := s.look.conn
	sess := &session{conn: conn, role: s.role, server: majorVersion(conn.ParameterStatus("server_version"))}
	table, err := sess.inspect(ctx, s.cfg.Publication, false)
	switch {
	case err != nil:
		return nil, err
	case !table.published:
		return nil, s.source.gone(s.slot, relay.GonePublication, fmt.Errorf("publication %q was dropped", s.cfg.Publication))
	case table.version != s.version:
		return nil, s.source.gone(s.slot, relay.GonePublication, fmt.Errorf("publication %q was changed", s.cfg.Publication))
	}
	return table, nil
}

// close ends the connection. Nobody looks any more.
func (l *look) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = l.conn.Close(ctx)
	}
}
