package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// lookEvery is how often a stream looks whether the publication still carries the table: longer, and more rows need the sweep when
// it does not; shorter, and idle relays keep a server busy.
const lookEvery = 10 * time.Second

// watch looks at table and publication now and then, on an ordinary connection of its own, until ctx ends or they are not what
// they were when the stream was opened. The server says nothing when a table is taken out of a publication: it leaves out the rows, and
// the slot goes on without them.
//
// Any change ends the stream, also one that did no harm: what was committed between the change and now may have been left out.
// That the look itself does not work means nothing; the stream has its own way to notice that the server is gone.
func (s *stream) watch(ctx context.Context) error {
	var conn *pgconn.PgConn
	defer func() {
		if conn != nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = conn.Close(closing)
		}
	}()
	tick := time.NewTicker(s.source.lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		err := s.look(ctx, &conn)
		var setup *relay.SetupError
		var gone *relay.SlotGoneError
		switch {
		case errors.As(err, &setup), errors.As(err, &gone):
			return err
		case err != nil && ctx.Err() == nil:
			s.log.Debug("looking at the publication", "slot", s.slot, "error", err)
		}
	}
}

// look connects if need be and looks once.
func (s *stream) look(ctx context.Context, conn **pgconn.PgConn) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WALSenderTimeout)
	defer cancel()
	if *conn == nil || (*conn).IsClosed() {
		cfg := s.source.conn.Copy()
		delete(cfg.RuntimeParams, "replication")
		delete(cfg.RuntimeParams, "wal_sender_timeout")
		cfg.RuntimeParams["application_name"] = "sagaz-relay look"
		c, err := pgconn.ConnectConfig(ctx, cfg)
		if err != nil {
			return plainConnectError(err)
		}
		*conn = c
	}
	sess := &session{conn: *conn, role: s.role, server: majorVersion((*conn).ParameterStatus("server_version"))}
	table, err := sess.inspect(ctx, s.cfg.Publication, false)
	switch {
	case err != nil:
		return err
	case !table.published:
		return s.source.gone(s.slot, relay.GonePublication, fmt.Errorf("publication %q was dropped", s.cfg.Publication))
	case table.version != s.version:
		return s.source.gone(s.slot, relay.GonePublication, fmt.Errorf("publication %q was changed", s.cfg.Publication))
	}
	return nil
}
