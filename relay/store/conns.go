package store

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// conns are the lease's connections for what must not wait for marks, nor marks for it: looks at
// the slot, counts, sweeps, pruning. They are made when needed and kept for the next time.
type conns struct {
	mu     sync.Mutex // guards the fields below
	idle   map[string]*pgx.Conn
	closed bool
}

// onConn runs f on the connection for a purpose, which nothing else uses meanwhile. f sets the
// deadline of each statement.
func (l *lease) onConn(ctx context.Context, purpose string, f func(context.Context, *pgx.Conn) error) error {
	b := &l.conns
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
		if conn, err = l.openConn(ctx, purpose); err != nil {
			return err
		}
	}
	err := f(ctx, conn)
	if !b.keep(purpose, conn) {
		closeConn(conn)
	}
	return err
}

func (l *lease) openConn(ctx context.Context, purpose string) (*pgx.Conn, error) {
	conn, err := l.store.connect(ctx, purpose+" "+l.slot)
	if err != nil {
		return nil, err
	}
	if isPooled(conn) {
		return conn, nil
	}
	bounded, cancel := context.WithTimeout(ctx, factLeast)
	defer cancel()
	settings := `SET jit = off`
	if purpose == "ledger" { // they do no harm to what reads all of it, which no index serves
		settings = planSettings
	}
	if _, err := conn.Exec(bounded, settings); err != nil {
		closeConn(conn)
		return nil, err
	}
	return conn, nil
}

// keep keeps a connection for the next time, unless it is of no use any more.
func (b *conns) keep(purpose string, conn *pgx.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.idle[purpose] != nil || conn.IsClosed() {
		return false
	}
	if b.idle == nil {
		b.idle = make(map[string]*pgx.Conn)
	}
	b.idle[purpose] = conn
	return true
}

func (b *conns) close() {
	b.mu.Lock()
	idle := b.idle
	b.closed, b.idle = true, nil
	b.mu.Unlock()
	var all sync.WaitGroup
	for _, conn := range idle {
		all.Go(func() { closeConn(conn) })
	}
	all.Wait()
}

// fact runs a quick look on the connection for such looks. A cut connection of the marks does not
// touch it, nor it them.
func (l *lease) fact(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	return l.facts.within(ctx, func(ctx context.Context) error { return l.onConn(ctx, "facts", f) })
}
