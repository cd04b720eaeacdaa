package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// session is the roster's goroutine.
type session struct {
	roster *roster
	store  *Store
	conn   *pgx.Conn
	locked bool // we have the member's lock, and those of our sinks
	shares shares
	// What it knows of owners.
	rivals rivals
	ended  map[string]sighting // whose connections we have ended, by slot
	warned time.Time
	// What the other members show of their lives; see endSilent.
	lives      lives
	livesAsked time.Time
	bereft     time.Time // since when the slots of others have no owner, and
	deserted   time.Time // since when none of these was seen; see theirs
	wanted     time.Time // when we were last to have a share

	ownerless []time.Time // by shard: since when the slot has no owner; zero: it has one

	changing bool           // a change of the number of slots was under way
	changer  sync.WaitGroup // works on it
	works    atomic.Bool    // it does
	// Since when a change waits for a slot of ours, and when that was logged of which; see
	// logHoldUp.
	holdsUp      time.Time
	holdUpLogged map[string]time.Time
}

// run looks until ctx ends.
func (x *session) run(ctx context.Context) {
	defer x.changer.Wait()
	backoff := relay.Backoff{Min: x.store.cfg.AcquireInterval, Max: 5 * time.Second}
	troubled := false
	for ctx.Err() == nil {
		err := x.connected(ctx, func() {
			backoff.Reset()
			troubled = false
		})
		if ctx.Err() != nil {
			return
		}
		wait := backoff.Next()
		if !troubled {
			x.store.log.Warn("waiting for the database, to find out who has which slot", "backoff", wait, "error", err)
			troubled = true
		}
		x.pause(ctx, wait)
	}
}

// connected looks over one connection until that fails.
func (x *session) connected(ctx context.Context, worked func()) (err error) {
	number := x.roster.beginLook()
	x.conn, err = x.store.connect(ctx, "roster "+x.store.cfg.Slot)
	if err != nil {
		x.roster.endLook(ctx, number, err)
		return err
	}
	x.locked = false
	defer x.close()
	defer x.roster.speakForNone()
	for ctx.Err() == nil {
		if err = x.once(ctx); err != nil {
			x.roster.endLook(ctx, number, err)
			return err
		}
		x.roster.endLook(ctx, number, nil)
		worked()
		x.pause(ctx, x.store.cfg.AcquireInterval)
		number = x.roster.beginLook()
	}
	return nil
}

// close lets go of the locks explicitly: a closed connection's backend may linger for a moment.
func (x *session) close() {
	if x.locked && !x.conn.IsClosed() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, _ = x.unlock(ctx)
	}
	closeConn(x.conn)
}

// pause waits, but not while there is something to do.
func (x *session) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-x.roster.wake:
	}
}

func (r *roster) beginLook() (number int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looks++
	return r.looks
}

// endLook lets those know who wait for what it has found, and, of a fault that a person has to fix,
// those who came before it began. A goroutine that is about to end lets nobody know.
func (r *roster) endLook(ctx context.Context, number int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	if r.failure = err; err != nil {
		r.change = nil
	}
	close(r.looked)
	r.looked = make(chan struct{})
	if problem := (*relay.SetupError)(nil); !errors.As(err, &problem) {
		return
	}
	for w := range r.waits {
		if w.wanting && w.since < number {
			w.refuse(err)
		}
	}
}

func (w *waiter) refuse(err error) {
	select {
	case w.refused <- err:
	default: // it was already
	}
}

// bounded is the time for one statement. It is not long once the roster is to end.
func (x *session) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.store.cfg.LeaseTTL)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, cancel) })
	return bounded, func() { stop(); cancel() }
}

// once looks once, and does what follows from it.
func (x *session) once(ctx context.Context) error {
	bounded, cancel := x.bounded(ctx)
	defer cancel()
	if err := x.lock(bounded); err != nil {
		return err
	}
	at := time.Now()
	found, err := x.look(bounded)
	if err != nil {
		return err
	}
	if found == nil {
		own := relay.Set{Slot: x.store.cfg.Slot, Publication: x.store.cfg.Publication, Shards: x.store.cfg.Shards}
		if _, err := MakeSet(bounded, x.conn, own); err != nil {
			return err
		}
		if found, err = x.look(bounded); err != nil || found == nil {
			return errors.Join(err, errors.New("the set of slots was removed"))
		}
	}
	if err := Divisible(found.version, found.set.Shards); err != nil {
		return err
	}
	x.learn(ctx, found)
	if err := x.seeChange(bounded, found); err != nil {
		return err
	}
	if err := x.endSilent(bounded, at); err != nil {
		return err
	}
	if found.target > 0 && x.store.create != nil && found.set.Slot == x.store.cfg.Slot && x.works.CompareAndSwap(false, true) {
		x.changer.Go(func() {
			defer x.works.Store(false)
			x.store.change(ctx)
		})
	}
	return x.act(bounded, at, found)
}

// lingers is for how long a relay that has no slot and waits for none is still a member.
const lingers = time.Second

// lock takes the member's lock and those of our sinks, or gives them back.
func (x *session) lock(ctx context.Context) error {
	r := x.roster
	want := r.member() && !isPooled(x.conn)
	if want {
		x.wanted = time.Now()
	} else if x.locked && time.Since(x.wanted) < lingers { // between two keepers of a slot
		want = true
	}
	if want == x.locked {
		return nil
	}
	if want && r.me.Load() == 0 {
		for taken := true; taken; {
			r.me.Store(r.anyMember())
			if err := x.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE `+isMember("$1", "$2")+`)`, int64(memberClass), int64(r.me.Load())).Scan(&taken); err != nil {
				return fmt.Errorf("look for the other relays: %w", setup(err))
			}
		}
		x.shares.me = memberID(r.me.Load())
	}
	if !want {
		is, err := x.unlock(ctx)
		x.locked = is
		return err
	}
	is, err := x.ourLocks(ctx, `pg_try_advisory_lock_shared`)
	if err != nil {
		return err
	}
	if !is { // one of our sinks is being renamed in this moment: with the next look
		_, err := x.unlock(ctx)
		return err
	}
	x.locked = true
	return nil
}

// unlock gives the member's lock back, and those of our sinks. locked is whether we have them still.
func (x *session) unlock(ctx context.Context) (locked bool, err error) {
	if _, err := x.ourLocks(ctx, `pg_advisory_unlock_shared`); err != nil {
		return x.locked, err
	}
	return false, nil
}

// ourLocks calls a function of advisory locks for the member's lock and for those of our sinks, and
// reports whether it was true of all.
func (x *session) ourLocks(ctx context.Context, function string) (all bool, err error) {
	sinks := x.store.sinks
	if sinks == nil {
		sinks = []string{}
	}
	err = x.conn.QueryRow(ctx, `SELECT bool_and(`+function+`(class, key)) FROM (SELECT $1::bigint::int AS class, $2::bigint::int AS key UNION ALL SELECT $3::bigint::int, hashtext(sink) FROM unnest($4::text[]) sink) l`,
		int64(memberClass), int64(int32(x.roster.me.Load())), int64(sinkClass), sinks).Scan(&all)
	if err != nil {
		return false, fmt.Errorf("show that this relay lives: %w", setup(err))
	}
	return all, nil
}
