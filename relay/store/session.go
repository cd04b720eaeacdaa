package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// marks is the lease's connection for marks and look-ups. It is made again when it breaks; the
// lease does not depend on it.
type marks struct {
	turn     relay.Turn // one transaction at a time; whoever has it owns the rest
	patience patience
	conn     *pgx.Conn
	closed   bool
	skip     bool     // rows that we want are locked by other sessions: mark the others
	seen     snapshot // the last one that was asked for; see notYet
	near     near
}

// openMarks makes the connection.
func (l *lease) openMarks(ctx context.Context) error {
	conn, err := l.store.connect(ctx, "marks "+l.slot)
	if err != nil {
		return err
	}
	l.marks.seen = snapshot{} // it may be another server
	l.marks.near = near{}
	if isPooled(conn) {
		l.marks.conn = conn
		return nil
	}
	// A transaction of ours is one round trip. If we are frozen in the middle of it, its locks must
	// not outlive us for long. And its wait for a row must not lock the slot's row for long, which
	// the renewal of the lease needs.
	ttl := l.store.cfg.LeaseTTL.Milliseconds()
	if _, err := conn.Exec(ctx, fmt.Sprintf(`SET idle_in_transaction_session_timeout = %d; SET lock_timeout = %d; `+planSettings, ttl/3, ttl/9)); err != nil {
		closeConn(conn)
		return fmt.Errorf("prepare the marking session: %w", err)
	}
	l.setOrigin(ctx, conn)
	l.marks.conn = conn
	return nil
}

// close ends the connection, once whoever uses it is through or ctx has ended.
func (m *marks) close(ctx context.Context) {
	if m.turn.Take(ctx) != nil {
		return // its statement has a deadline, and the process may have none left
	}
	defer m.turn.Give()
	m.closed = true
	if m.conn != nil {
		closeConn(m.conn)
	}
}

// with runs f on the connection, which it makes again first if need be. A connection on which f
// gets no answer in time is given up, and made again by the next call.
func (l *lease) with(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	if err := l.marks.turn.Take(ctx); err != nil {
		return err
	}
	defer l.marks.turn.Give()
	if l.marks.closed {
		return relay.ErrLeaseLost
	}
	return l.marks.patience.within(ctx, func(ctx context.Context) error {
		if l.marks.conn == nil || l.marks.conn.IsClosed() {
			if err := l.openMarks(ctx); err != nil {
				return err
			}
		}
		return f(ctx, l.marks.conn)
	})
}
