package cdc

import (
	"context"
	"errors"
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

// origins asks whether there is an origin that is not ours, for all streams of this process. They
// ask often, with each batch, so one answer is for all who asked before its question was begun.
type origins struct {
	common
	none time.Time // when the last question was begun that had that answer; the turn's
}

// originFilter verifies that the stream's filter hides nothing but our marks. Its methods are the
// reader's; close comes after it.
type originFilter struct {
	origins  *origins
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
	f := &originFilter{origins: &s.origins, patience: s.cfg.WALSenderTimeout}
	s.origins.join()
	if err := f.verify(ctx); err != nil {
		f.close()
		s.log.Info("reading the slot without a filter for our own marks", "slot", slot, "reason", err)
		return nil
	}
	return f
}

// openOrigins opens the connection for the question.
func (s *Source) openOrigins(ctx context.Context) (*pgconn.PgConn, error) {
	conn, err := s.ordinary(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Prepare(ctx, "foreign", foreignSQL, nil); err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

// verify asks whether there is an origin that is not ours, which is an error then.
func (f *originFilter) verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, f.patience)
	defer cancel()
	asked := time.Now()
	// A connection that was broken since the last question says nothing about origins: once more,
	// on another.
	for again := true; ; again = false {
		broken := false
		err := f.origins.use(ctx, func(conn *pgconn.PgConn) error {
			if f.origins.none.Before(asked) {
				began := time.Now()
				if err := foreign(ctx, conn); err != nil {
					broken = conn.IsClosed()
					return err
				}
				f.origins.none = began
			}
			f.verified = f.origins.none
			return nil
		})
		if err == nil || !broken || !again || ctx.Err() != nil {
			return err
		}
	}
}

// foreign asks once.
func foreign(ctx context.Context, conn *pgconn.PgConn) error {
	result := conn.ExecPrepared(ctx, "foreign", nil, nil, nil).Read()
	if result.Err != nil {
		return fmt.Errorf("look for replication origins: %w", result.Err)
	}
	if len(result.Rows) > 0 {
		var names []string
		for _, row := range result.Rows {
			names = append(names, fmt.Sprintf("%q", row[0]))
		}
		return &foreignOrigins{names}
	}
	return nil
}

// foreignOrigins is the answer that there are some.
type foreignOrigins struct{ names []string }

func (e *foreignOrigins) Error() string {
	return fmt.Sprintf("replication origin %s: the filter would hide rows that are written under it", strings.Join(e.names, ", "))
}

func (f *originFilter) close() { f.origins.leave() }

// readsAll reports whether a slot has to be read without a filter.
func (s *Source) readsAll(slot string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unfiltered[slot]
}

// verify makes sure that nothing was hidden before what has been received. Its error ends the
// stream. If others write under origins, the next one has no filter. If there was no answer, it
// begins with the same question.
func (s *stream) verify(ctx context.Context) error {
	if s.filter == nil {
		return nil
	}
	err := s.filter.verify(ctx)
	if others := (*foreignOrigins)(nil); errors.As(err, &others) {
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
