package store

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// beside are the lease's connections for what takes long: sweeps and pruning. They are made when needed and kept for the next time.
type beside struct {
	mu     sync.Mutex // guards the fields below
	idle   map[string]*pgx.Conn
	closed bool
}

// beside runs f on a connection for a purpose, which nobody else uses meanwhile.
func (l *lease) beside(ctx context.Context, purpose string, f func(*pgx.Conn) error) error {
	b := &l.aside
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return relay.ErrLeaseLost
	}
	conn := b.idle[purpose]
	delete(b.idle, purpose)
	b.mu.Unlock()
	if conn == nil || conn.IsClosed() {
		var err error
		if conn, err = l.store.connect(ctx, purpose+" "+l.slot); err != nil {
			return setup(err)
		}
		if !isPooled(conn) {
			if _, err := conn.Exec(ctx, `SET jit = off`); err != nil {
				closeConn(conn)
				return err
			}
		}
	}
	err := f(conn)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.idle[purpose] != nil || conn.IsClosed() {
		closeConn(conn)
		return err
	}
	if b.idle == nil {
		b.idle = make(map[string]*pgx.Conn)
	}
	b.idle[purpose] = conn
	return err
}

func (b *beside) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for _, conn := range b.idle {
		closeConn(conn)
	}
	b.idle = nil
}
