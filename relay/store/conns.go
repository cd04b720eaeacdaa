package store

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// conns are the connections of all leases of this process for what must not wait for marks, nor
// marks for it: looks at the slot, counts, sweeps, pruning. They are made when needed and kept for
// the next time, so however many slots there are, each purpose has a few. A lease's own are three:
// that of its lock, that of its marks, and its stream.
//
// What a lease does on one is a statement or a few, and leaves nothing behind in the session. So
// when a relay dies in the middle of it, nothing but that statement is lost.
type conns struct {
	mu     sync.Mutex // guards the fields below
	leases int        // that are not released
	idle   map[string][]idleConn
	turns  map[string]chan struct{} // has one in it for each that is in use
}

type idleConn struct {
	*pgx.Conn
	since time.Time
}

const (
	// atOnce is how many connections there are at most for one purpose. One that gets no answer
	// then leaves another for the other slots.
	atOnce = 2
	// idleFor is how long a connection is kept that nobody needs.
	idleFor = time.Minute
)

// onConn runs f on a connection for a purpose, which nothing else uses meanwhile. f sets the
// deadline of each statement.
func (l *lease) onConn(ctx context.Context, purpose string, f func(context.Context, *pgx.Conn) error) error {
	b := &l.store.conns
	turn := b.turn(purpose)
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-turn }()
	if l.released.Load() {
		return relay.ErrLeaseLost
	}
	conn := b.take(purpose)
	if conn == nil {
		var err error
		if conn, err = l.store.openConn(ctx, purpose); err != nil {
			return err
		}
	}
	err := f(ctx, conn)
	closeAll(b.keep(purpose, conn))
	return err
}

// fact runs a quick look on a connection for such looks. A cut connection of the marks does not
// touch it, nor it them.
func (l *lease) fact(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	return l.onConn(ctx, "facts", func(ctx context.Context, conn *pgx.Conn) error {
		return l.facts.within(ctx, func(ctx context.Context) error { return f(ctx, conn) })
	})
}

func (s *Store) openConn(ctx context.Context, purpose string) (*pgx.Conn, error) {
	conn, err := s.connect(ctx, purpose+" "+s.cfg.Slot)
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

func (b *conns) turn(purpose string) chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.turns == nil {
		b.turns, b.idle = make(map[string]chan struct{}), make(map[string][]idleConn)
	}
	if b.turns[purpose] == nil {
		b.turns[purpose] = make(chan struct{}, atOnce)
	}
	return b.turns[purpose]
}

// take returns the idle connection that was used last, or nil.
func (b *conns) take(purpose string) *pgx.Conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		all := b.idle[purpose]
		if len(all) == 0 {
			return nil
		}
		last := all[len(all)-1].Conn
		b.idle[purpose] = all[:len(all)-1]
		if !last.IsClosed() {
			return last
		}
	}
}

// keep keeps a connection for the next time, unless it is of no use any more. It returns those that
// are to be closed.
func (b *conns) keep(purpose string, conn *pgx.Conn) (needless []idleConn) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	one := idleConn{conn, now}
	if b.leases == 0 {
		return append(needless, one)
	}
	if !conn.IsClosed() {
		b.idle[purpose] = append(b.idle[purpose], one)
	}
	for other, all := range b.idle {
		n := 0 // the first were used longest ago
		for n < len(all) && now.Sub(all[n].since) > idleFor {
			n++
		}
		needless = append(needless, all[:n]...)
		b.idle[other] = append([]idleConn(nil), all[n:]...)
	}
	return needless
}

// join counts one more lease, and leave one less. Without any, no connection is kept: a standby has
// none of these.
func (b *conns) join() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases++
}

func (b *conns) leave() {
	b.mu.Lock()
	b.leases--
	var needless []idleConn
	if b.leases == 0 {
		for _, all := range b.idle {
			needless = append(needless, all...)
		}
		clear(b.idle)
	}
	b.mu.Unlock()
	closeAll(needless)
}

func closeAll(conns []idleConn) {
	var all sync.WaitGroup
	for _, conn := range conns {
		all.Go(func() { closeConn(conn.Conn) })
	}
	all.Wait()
}
