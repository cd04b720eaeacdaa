package cdc

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// Our marks carry a replication origin, so that a server from PostgreSQL 16 on can drop them before
// it decodes them: the slot is read with origin 'none'. That drops what others write under an
// origin, too: a subscription on the table, pglogical, a migration service. The sweep would find
// such rows, but late, and behind later ones of their keys.
//
// So the filter is on only while no origin exists but ours, and nothing leaves the stream
// unverified. Before events are handed on, or a position is passed, the server is asked whether
// another origin exists by now. Whatever was hidden was committed before, under an origin that was
// there already. If there is one, nothing is handed on, and the slot is read again from the
// position that was verified last, without the filter. That is a query for each batch, not for each
// event.
//
// What is left: rows under an origin that is dropped again before the next batch comes, or that was
// dropped while no relay read the slot. And rows under an origin that was made in the same
// transaction as the row, while its commit waits for a synchronous standby. The sweep finds these,
// and counts them (outbox_recovered_events_total, cause pending).

// ourOrigins begins the names of the origins of relays' marks.
const ourOrigins = "sagaz_relay_"

// foreignSQL lists the origins under which somebody may write to this database. One of a
// subscription in another database is none of these.
const foreignSQL = `SELECT o.roname::text FROM pg_replication_origin o WHERE NOT starts_with(o.roname, '` + ourOrigins + `')
	AND NOT EXISTS (SELECT FROM pg_subscription s, pg_database d WHERE d.datname = current_database() AND s.subdbid <> d.oid
		AND (o.roname = 'pg_' || s.oid::text OR starts_with(o.roname, 'pg_' || s.oid::text || '_'))) ORDER BY 1 LIMIT 3`

// ForeignOrigins are the first few replication origins under which somebody else may write to the
// database.
func ForeignOrigins(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	rows, err := conn.Query(ctx, foreignSQL)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// originFilter verifies that the stream's filter hides nothing but our marks. Its methods are the
// reader's; close comes after it.
type originFilter struct {
	conn     *pgconn.PgConn
	patience time.Duration
	verified time.Time // when the last question was begun that had the right answer
}

// passEvery spaces the questions for positions alone. A position that is not passed on is followed
// by another.
const passEvery = 200 * time.Millisecond

// filter returns a filter for a stream that is about to be started, or nil where the slot has to be
// read without.
func (s *Source) filter(ctx context.Context, slot string, server int) *originFilter {
	if server < 16 || s.readsAll(slot) {
		return nil
	}
	conn, err := s.ordinary(ctx)
	if err != nil {
		s.log.Debug("no connection to look at replication origins", "slot", slot, "error", err)
		return nil
	}
	f := &originFilter{conn: conn, patience: s.cfg.WALSenderTimeout}
	if _, err = conn.Prepare(ctx, "foreign", foreignSQL, nil); err == nil {
		err = f.verify(ctx)
	}
	if err != nil {
		f.close()
		s.log.Info("reading the slot without a filter for our own marks", "slot", slot, "reason", err)
		return nil
	}
	return f
}

// verify asks whether there is an origin that is not ours, which is an error then.
func (f *originFilter) verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, f.patience)
	defer cancel()
	began := time.Now()
	result := f.conn.ExecPrepared(ctx, "foreign", nil, nil, nil).Read()
	if result.Err != nil {
		return fmt.Errorf("look for replication origins: %w", result.Err)
	}
	if len(result.Rows) > 0 {
		var names []string
		for _, row := range result.Rows {
			names = append(names, fmt.Sprintf("%q", row[0]))
		}
		return fmt.Errorf("replication origin %s: the filter would hide rows that are written under it", strings.Join(names, ", "))
	}
	f.verified = began
	return nil
}

func (f *originFilter) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = f.conn.Close(ctx)
}

// readsAll reports whether a slot has to be read without a filter.
func (s *Source) readsAll(slot string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unfiltered[slot]
}

// verify makes sure that nothing was hidden before what has been received. Its error ends the
// stream; the next one has no filter.
func (s *stream) verify(ctx context.Context) error {
	if s.filter == nil {
		return nil
	}
	err := s.filter.verify(ctx)
	if err != nil && ctx.Err() == nil {
		s.source.mu.Lock()
		s.source.unfiltered[s.slot] = true
		s.source.mu.Unlock()
		err = fmt.Errorf("reading again, without the filter for our own marks: %w", err)
	}
	s.verified = err == nil
	return err
}

// pass passes a position that was received at the given time, if it is verified.
func (s *stream) pass(ctx context.Context, lsn relay.LSN, received time.Time) error {
	if f := s.filter; f != nil && f.verified.Before(received) {
		if received.Sub(f.verified) < passEvery {
			s.intake.Heard(lsn)
			return nil
		}
		if err := s.verify(ctx); err != nil {
			return err
		}
	}
	s.intake.Pass(lsn)
	return nil
}
