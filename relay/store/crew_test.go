package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// crew are relays that share one table, each with its Store, as processes have them.
type crew struct {
	t    *testing.T
	db   *pgtest.DB
	n    int    // shards
	base string // RELAY_SLOT
	cfg  func(*Config)
	// create makes slots for a change, for relays that take part in one.
	create func(context.Context, relay.Shard) (relay.LSN, error)
	stuck  atomic.Bool // nobody notes a position any more
	// unread is how long an old slot may not be streamed; nobody streams one here.
	unread time.Duration
	// onlyStreams is RELAY_MODE=cdc.
	onlyStreams bool
	log         hclog.Logger

	mu   sync.Mutex // guards what follows
	all  []*mate
	took []string // "shard by owner", in their order
}

// mate is one relay: a keeper for each shard, which owns it when it may.
type mate struct {
	crew  *crew
	name  string
	store *Store
	proxy *pgtest.Proxy
	stop  context.CancelFunc
	work  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	leases map[int]*lease
	unable bool // it gives back at once what it gets
}

// divided is a crew for a table of n shards.
func divided(t *testing.T, db *pgtest.DB, n int) *crew {
	t.Helper()
	c := &crew{t: t, db: db, n: n, base: "sagaz_outbox", unread: time.Hour}
	t.Cleanup(func() {
		c.mu.Lock()
		all := slices.Clone(c.all)
		c.mu.Unlock()
		for _, m := range all {
			m.leave()
		}
	})
	return c
}

// join starts a relay. It is behind a proxy that can freeze it.
func (c *crew) join() *mate {
	c.t.Helper()
	proxy := pgtest.NewProxy(c.t, c.db.DSN)
	c.mu.Lock()
	name := fmt.Sprint("relay-", len(c.all))
	c.mu.Unlock()
	s := quickLeaseLogs(c.t, c.db, name, c.log, func(cfg *Config) {
		cfg.DatabaseURL, cfg.Slot, cfg.Shards, cfg.AcquireInterval = proxy.DSN, c.base, c.n, 100*time.Millisecond
		if c.cfg != nil {
			c.cfg(cfg)
		}
	})
	s.unreadFor = c.unread
	ctx, stop := context.WithCancel(context.Background())
	m := &mate{crew: c, name: name, store: s, proxy: proxy, stop: stop, leases: make(map[int]*lease)}
	c.mu.Lock()
	c.all = append(c.all, m)
	c.mu.Unlock()
	if c.create != nil {
		s.Changes(c.create, c.onlyStreams)
	}
	m.work.Go(func() { m.keepSet(ctx) })
	return m
}

// keepSet is what an engine does: a keeper for each shard of the set, which changes.
func (m *mate) keepSet(ctx context.Context) {
	for ctx.Err() == nil {
		set, changed, err := m.store.Set(ctx)
		if err != nil {
			if ctx.Err() == nil {
				m.crew.t.Errorf("%s: %v", m.name, err)
			}
			return
		}
		keep, stop := context.WithCancel(ctx)
		var keepers sync.WaitGroup
		for _, shard := range set.All() {
			keepers.Go(func() { m.keep(keep, shard) })
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
		stop()
		keepers.Wait()
	}
}

// own is what an owner does until it is to end: it notes that it has delivered what was committed.
func (m *mate) own(ctx context.Context, l *lease) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.Yield():
			return
		case <-l.Lost():
			return
		case <-tick.C:
		}
		if m.crew.stuck.Load() {
			continue
		}
		h, err := l.Horizon(ctx)
		if err == nil {
			err = l.Confirm(ctx, h.WAL)
		}
		if err != nil && l.Err() == nil && ctx.Err() == nil {
			m.crew.t.Logf("%s notes a position of shard %d: %v", m.name, l.shard.Index, err)
		}
	}
}

// keep is what an engine's keeper does.
func (m *mate) keep(ctx context.Context, shard relay.Shard) {
	for ctx.Err() == nil {
		l, err := m.store.Acquire(ctx, shard)
		if errors.Is(err, relay.ErrSetChanged) {
			relay.Sleep(ctx, 20*time.Millisecond)
			continue
		}
		if err != nil {
			if ctx.Err() == nil {
				m.crew.t.Errorf("%s: %v", m.name, err)
			}
			return
		}
		held := l.(*lease)
		m.mu.Lock()
		unable := m.unable
		if !unable {
			m.leases[shard.Index] = held
		}
		m.mu.Unlock()
		if !unable {
			m.crew.note(fmt.Sprintf("%d by %s", shard.Index, m.name))
			m.own(ctx, held)
		}
		m.mu.Lock()
		if m.leases[shard.Index] == held {
			delete(m.leases, shard.Index)
		}
		m.mu.Unlock()
		release, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		if err := held.Release(release, true); err != nil && held.Err() == nil {
			m.crew.t.Errorf("%s: %v", m.name, err)
		}
		cancel()
		if unable {
			relay.Sleep(ctx, 15*time.Second)
		}
	}
}

func (c *crew) note(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = append(c.took, what)
}

func (c *crew) taken() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.took)
}

// leave is a clean stop.
func (m *mate) leave() {
	m.store.Leave()
	m.stop()
	m.work.Wait()
	m.crew.forget(m)
}

// die cuts all connections of a relay and stops it, as the end of its process does.
func (m *mate) die() {
	m.proxy.Cut()
	m.stop()
	m.work.Wait()
	m.crew.forget(m)
}

func (c *crew) forget(m *mate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = slices.DeleteFunc(c.all, func(o *mate) bool { return o == m })
}

// valid are the shards of which a relay has a lease that it trusts.
func (m *mate) valid() (shards []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, l := range m.leases {
		if l.Valid() {
			shards = append(shards, i)
		}
	}
	slices.Sort(shards)
	return shards
}

// shares are how many slots each relay has, the most first.
func (c *crew) shares() (shares []int, owned int) {
	c.mu.Lock()
	all := slices.Clone(c.all)
	c.mu.Unlock()
	seen := make(map[int]string)
	for _, m := range all {
		mine := m.valid()
		for _, i := range mine {
			if other, twice := seen[i]; twice {
				c.t.Errorf("%s and %s own shard %d at once", other, m.name, i)
			}
			seen[i] = m.name
		}
		owned += len(mine)
		shares = append(shares, len(mine))
	}
	slices.Sort(shares)
	slices.Reverse(shares)
	return shares, owned
}

// even waits until every shard has an owner and each relay its share, and returns how long that
// took.
func (c *crew) even(what string) time.Duration {
	c.t.Helper()
	began := time.Now()
	for {
		shares, owned := c.shares()
		if len(shares) > 0 && owned == c.n && shares[0]-shares[len(shares)-1] <= 1 {
			took := time.Since(began)
			c.t.Logf("%d shards, %s: %v after %s", c.n, what, shares, took.Round(time.Millisecond))
			return took
		}
		if time.Since(began) > 2*time.Minute {
			c.t.Fatalf("%s: after %s the relays have %v of %d shards", what, time.Since(began), shares, c.n)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// wantMoved fails unless so many slots were taken since there were before, which is no more than
// must be. On a machine that stood still for as long as it takes to take a slot late, more may be.
func (c *crew) wantMoved(took time.Duration, before, want int) {
	c.t.Helper()
	taken := c.taken()[before:]
	if len(taken) == want {
		return
	}
	if took < freeFor || len(taken) < want {
		c.t.Errorf("%d slots have moved, want %d: %v", len(taken), want, taken)
		return
	}
	c.t.Logf("%d slots have moved in %s, %d had to: %v", len(taken), took, want, taken)
}

// still makes sure that no slot changes its owner.
func (c *crew) still(d time.Duration) {
	c.t.Helper()
	before := c.taken()
	time.Sleep(d)
	if after := c.taken(); len(after) != len(before) {
		c.t.Errorf("slots move though nothing happens: %v", after[len(before):])
	}
}
