package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// lease implements relay.Lease. The lock is on conn, which only renew and Release use. Marks and
// look-ups have a connection of their own, so that a long one cannot delay a renewal.
type lease struct {
	store     *Store
	shard     relay.Shard
	slot      string // of the shard
	log       hclog.Logger
	epoch     int64
	markedLSN atomic.Uint64

	recovery     relay.Recovery         // as it was when the lease was taken
	inDoubt      relay.InDoubt          // then
	before       lastWrite              // of the owner before
	heirs        bool                   // then, slots had heirs
	abandoned    chan struct{}          // there may be some now
	owedSnapshot atomic.Pointer[string] // of the owed sweep; nil when nothing is noted

	conn     *pgx.Conn
	renewed  atomic.Pointer[time.Time] // when the last renewal that succeeded was sent
	stop     context.CancelFunc        // ends renew; by Release
	renewing sync.WaitGroup

	lose sync.Once
	lost chan struct{}
	err  error // readable once lost is closed

	give  sync.Once
	yield chan struct{} // closed when the slot is to be given back

	marks    marks
	released atomic.Bool // nothing is begun any more
	facts    patience
	sweeping struct{ whole, window, piece patience }
	pruning  pruning
	streaks  streaks
	left     leftovers
}

func newLease(s *Store, shard relay.Shard, log hclog.Logger, conn *pgx.Conn) *lease {
	l := &lease{store: s, shard: shard, slot: shard.Slot, log: log, conn: conn, lost: make(chan struct{}), yield: make(chan struct{}), abandoned: make(chan struct{}, 1)}
	l.marks.turn, l.pruning.turn = relay.NewTurn(), relay.NewTurn()
	set := func(p *patience, least, most time.Duration) { p.least, p.most = least, most }
	set(&l.marks.patience, markLeast, markTimeout)
	set(&l.facts, factLeast, factMost)
	set(&l.sweeping.whole, sweepLeast, sweepMost)
	set(&l.sweeping.window, windowLeast, sweepMost)
	set(&l.sweeping.piece, windowLeast, sweepMost)
	set(&l.pruning.patience, windowLeast, sweepMost)
	return l
}

var _ relay.Lease = (*lease)(nil)

func (l *lease) Epoch() int64          { return l.epoch }
func (l *lease) MarkedLSN() relay.LSN  { return relay.LSN(l.markedLSN.Load()) }
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Yield implements relay.Tenure.
func (l *lease) Yield() <-chan struct{} { return l.yield }

func (l *lease) giveBack() { l.give.Do(func() { close(l.yield) }) }

func (l *lease) yields() bool {
	select {
	case <-l.yield:
		return true
	default:
		return false
	}
}

func (l *lease) Err() error {
	select {
	case <-l.lost:
		return l.err
	default:
		return nil
	}
}

// Valid implements relay.Lease: it turns false a sixth of the time before another relay may take
// the slot. Go's monotonic clock runs on while a process is stopped.
func (l *lease) Valid() bool {
	select {
	case <-l.lost:
		return false
	default:
		return time.Since(*l.renewed.Load()) < l.store.cfg.LeaseTTL*5/6
	}
}

func (l *lease) losing(err error) {
	l.lose.Do(func() {
		l.err = err
		close(l.lost)
		relay.Wake(l.store.roster.wake) // our share is another one now
	})
}

// renew shows the standbys that we are alive, until ctx ends or the lease is lost.
func (l *lease) renew(ctx context.Context) {
	every := l.store.cfg.LeaseTTL / 3
	for {
		// In between it listens. No notification is expected, but the server reports when it ends
		// the connection. With the connection goes the lock, which another relay may have the
		// moment after.
		wait, cancel := context.WithTimeout(ctx, every)
		_, err := l.conn.WaitForNotification(wait)
		over := wait.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !over:
			l.losing(fmt.Errorf("listen on the connection of slot %q's lease: %w", l.slot, err))
			return
		case !over:
			continue
		}
		// One renewal may take until the lease's end, no longer; and not long once the lease is
		// being released.
		sent := time.Now()
		bounded, cancel := context.WithDeadline(context.WithoutCancel(ctx), l.renewed.Load().Add(l.store.cfg.LeaseTTL*5/6))
		released := context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, cancel) })
		ours, err := l.renewOnce(bounded)
		released()
		cancel()
		switch {
		case err != nil:
			l.losing(fmt.Errorf("renew the lease of slot %q: %w", l.slot, err))
			return
		case !ours:
			l.losing(relay.ErrFenced)
			return
		}
		l.renewed.Store(&sent)
	}
}

// renewOnce writes that we are alive, and reports whether the slot is still ours.
//
// A transaction of ours may hold the row's lock: a mark whose commit waits for a disk or a standby,
// or whose backend was stopped. Then we only look whether the epoch is ours. A standby sees on the
// backend that holds the slot's lock that it has asked (Store.lives). Behind a pooler there is no
// such backend, so there the wait has the whole of the time.
func (l *lease) renewOnce(ctx context.Context) (ours bool, err error) {
	tag, err := l.conn.Exec(ctx, `UPDATE saga_outbox_relay SET renewed_at = clock_timestamp() WHERE slot = $1 AND epoch = $2`, l.slot, l.epoch)
	if !isLocked(err) || isPooled(l.conn) {
		return tag.RowsAffected() > 0, err
	}
	l.log.Debug("the lease was renewed without writing it: the slot's row is locked")
	err = l.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM saga_outbox_relay WHERE slot = $1 AND epoch = $2)`, l.slot, l.epoch).Scan(&ours)
	return ours, err
}

// prepareRenewals sets up the session for them, after the epoch was moved. A renewal is only about
// this moment, so its commit need not wait for the server's disk, nor for its standbys.
func (l *lease) prepareRenewals(ctx context.Context) error {
	if isPooled(l.conn) {
		return nil
	}
	_, err := l.conn.Exec(ctx, fmt.Sprintf(`SET lock_timeout = %d; SET synchronous_commit = off`, l.store.cfg.LeaseTTL.Milliseconds()/9))
	if err != nil {
		return fmt.Errorf("prepare the session of slot %q's lease: %w", l.slot, err)
	}
	return nil
}

// releaseSQL notes that the owner has gone in order.
const releaseSQL = `UPDATE saga_outbox_relay SET released_at = now(), doubt_since = CASE WHEN $3::boolean THEN NULL ELSE doubt_since END WHERE slot = $1 AND epoch = $2`

// Release implements relay.Lease. The lock goes with the connection, whatever else fails.
func (l *lease) Release(ctx context.Context, clean bool) error {
	defer l.store.roster.released(ctx, l)
	l.stop()
	l.renewing.Wait()
	l.losing(errors.New("released"))
	l.marks.close(ctx)
	if !l.released.Swap(true) {
		l.store.conns.leave()
	}
	conn, err := l.conn, error(nil)
	if isPooled(conn) && conn.IsClosed() { // the row would stay ours until its time is over
		conn, err = l.store.connect(ctx, "lease "+l.slot)
	}
	if err == nil && !conn.IsClosed() {
		_, err = conn.Exec(ctx, releaseSQL, l.slot, l.epoch, clean)
		if err == nil {
			// Explicitly, because a closed connection's backend may linger for a moment.
			err = l.store.unlock(ctx, conn, l.slot)
		}
		closeConn(conn)
	}
	if err != nil {
		return fmt.Errorf("release the lease of slot %q: %w", l.slot, err)
	}
	return nil
}

// closeConn ends a connection without waiting long for a server that may be gone.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
