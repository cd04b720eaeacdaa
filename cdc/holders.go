package cdc

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// holdersFirst is when the log has for the first time what making a slot waits for, holdersEvery how
// often at least.
const (
	holdersFirst = 5 * time.Second
	holdersEvery = time.Minute
)

// Holders implements relay.Source. Making a slot waits for each transaction with an id that was
// open when it began, wherever in the server (snapbuild.c, SnapBuildWaitSnapshot). It waits for the
// transaction's lock, which shows whose it is. A transaction that was prepared, and forgotten, has
// no process.
func (s *Source) Holders(ctx context.Context, slot string) ([]relay.Holder, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WALSenderTimeout)
	defer cancel()
	conn, err := s.ordinary(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing depends on it
	sess := &session{conn: conn, role: s.conn.User}
	rows, err := sess.query(ctx, `SELECT DISTINCT coalesce(a.pid, 0), coalesce(a.usename, p.owner, ''), coalesce(a.datname, p.database, ''), coalesce(a.application_name, ''), coalesce(p.gid, ''),
			coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)), 0)::bigint
		FROM pg_stat_activity w JOIN pg_locks want ON want.pid = w.pid AND want.locktype = 'transactionid' AND NOT want.granted
		JOIN pg_locks have ON have.locktype = 'transactionid' AND have.transactionid = want.transactionid AND have.granted
		LEFT JOIN pg_stat_activity a ON a.pid = have.pid LEFT JOIN pg_prepared_xacts p ON p.transaction = want.transactionid
		WHERE w.application_name = `+quoteLiteral(applicationFor(slot))+` AND w.datname = current_database() ORDER BY 1, 5`)
	if err != nil {
		return nil, fmt.Errorf("look at what making slot %q waits for: %w", slot, err)
	}
	var holders []relay.Holder
	for _, r := range rows {
		h := relay.Holder{User: r[1], Database: r[2], Application: r[3], GID: r[4]}
		h.PID, _ = strconv.Atoi(r[0])
		age, _ := strconv.ParseInt(r[5], 10, 64)
		h.Age = time.Duration(age) * time.Second
		holders = append(holders, h)
	}
	return holders, nil
}

// ordinary opens a connection that is no walsender's.
func (s *Source) ordinary(ctx context.Context) (*pgconn.PgConn, error) {
	return sessions.OpenDirect(ctx, s.conn, sessions.Options{
		Purpose: "look",
		// Somebody may have locked the table.
		Direct: map[string]string{"statement_timeout": strconv.FormatInt(s.cfg.WALSenderTimeout.Milliseconds(), 10)},
	})
}

// CreateForChange is Create for a slot that nobody reads yet. While the server waits, the log has
// for whom.
func (s *Source) CreateForChange(ctx context.Context, shard relay.Shard) (relay.LSN, error) {
	defer s.logHolders(ctx, shard.Slot)()
	return s.Create(ctx, shard)
}

// logHolders logs what the making of a slot waits for, again and again, until the function that it
// returns is called.
func (s *Source) logHolders(ctx context.Context, slot string) (done func()) {
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for pause := holdersFirst; relay.Sleep(ctx, pause); pause = min(2*pause, holdersEvery) {
			if holders, err := s.Holders(ctx, slot); err == nil {
				s.log.Warn("making the slot waits for the end of transactions", "slot", slot, "waits_for", relay.SayHolders(holders))
			}
		}
	}()
	return func() {
		stop()
		<-ended
	}
}
