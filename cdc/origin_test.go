package cdc

import (
	"context"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// Rows that somebody writes under a replication origin of their own come in commit order among the
// others. That is also so when the origin is made while the stream runs, and when their own commits
// are the only ones for a while.
func TestForeignOriginKeepsCommitOrder(t *testing.T) {
	t.Parallel()
	for _, version := range pgtest.Versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			// A server of its own: an origin is everybody's.
			testForeignOrigin(t, pgtest.NewAt(t, pgtest.OwnServer(t, version, nil).DSN("postgres"), pgtest.Migrated()), version >= "16")
		})
	}
}

func testForeignOrigin(t *testing.T, db *pgtest.DB, filters bool) {
	const name, origin = "outbox", "edge"
	src := newSource(t, config(db.DSN))
	opened := open(t, src, name)
	if (opened.(*stream).filter != nil) != filters {
		t.Errorf("the stream filters origins: not as it should, want %t", filters)
	}
	in := newIntake(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() { // as the relay does: what breaks is opened again
		defer close(ended)
		for {
			_ = opened.Run(ctx, once{in})
			_ = opened.Close(context.WithoutCancel(ctx))
			if ctx.Err() != nil {
				return
			}
			opened = open(t, src, name)
		}
	}()
	insertRow := func(under bool, n int) {
		conn := db.Conn(t)
		defer conn.Close(t.Context())
		if under {
			// The session before ends a moment after its connection.
			setup := func() error {
				_, err := conn.Exec(t.Context(), `SELECT pg_replication_origin_session_setup($1)`, origin)
				return err
			}
			err := setup()
			for tries := 0; err != nil && tries < 100; tries++ {
				time.Sleep(50 * time.Millisecond)
				err = setup()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		_, err := conn.Exec(t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 's', 'k', 'T', to_jsonb($1::int))`, n)
		if err != nil {
			t.Fatal(err)
		}
	}
	insertRow(false, 0)
	in.until("the first event", func() bool { return len(in.events) == 1 })
	time.Sleep(2 * passEvery) // the stream is quiet, and positions pass
	if _, err := db.Pool.Exec(t.Context(), `SELECT pg_replication_origin_create($1)`, origin); err != nil {
		t.Fatal(err)
	}
	for n := 1; n < 4; n++ {
		insertRow(true, n)
	}
	time.Sleep(2 * passEvery)
	for n := 4; n < 20; n++ {
		insertRow(n%2 == 1, n)
	}
	got := ""
	for _, ev := range in.until("20 events", func() bool { return len(in.events) >= 20 }) {
		got += ev.Payload + " "
	}
	if want := "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	cancel()
	<-ended
}

// once passes on what was not handed on before, as the pipeline does.
type once struct{ *intake }

func (o once) Admit(ctx context.Context, events []relay.Event) error {
	o.mu.Lock()
	var last relay.Event
	if n := len(o.events); n > 0 {
		last = o.events[n-1]
	}
	o.mu.Unlock()
	for len(events) > 0 && (events[0].CommitLSN < last.CommitLSN || events[0].CommitLSN == last.CommitLSN && events[0].Ordinal <= last.Ordinal) && last.CommitLSN != 0 {
		events = events[1:]
	}
	if len(events) == 0 {
		return nil
	}
	return o.intake.Admit(ctx, events)
}

// The streams of a process ask over one connection whether there are origins of others. When that
// breaks, they ask over another, and go on: nothing is read again, and the filter stays.
func TestStreamsAskForOriginsTogether(t *testing.T) {
	t.Parallel()
	for _, version := range pgtest.Versions() {
		if version < "16" {
			continue
		}
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewAt(t, pgtest.OwnServer(t, version, nil).DSN("postgres"), pgtest.Migrated())
			src := newSource(t, config(db.DSN))
			set := relay.Set{Slot: db.Name, Publication: "several", Shards: 4}
			in := newIntake(t)
			in.unordered = true
			for _, shard := range set.All() {
				if _, err := src.Create(t.Context(), shard); err != nil {
					t.Fatal(err)
				}
				stream, err := src.Open(t.Context(), shard, 0)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- stream.Run(ctx, in) }()
				t.Cleanup(func() {
					cancel()
					if err := <-ended; ctx.Err() == nil || err != nil && err != context.Canceled {
						t.Errorf("stream of %s: %v", shard.Slot, err)
					}
					_ = stream.Close(context.Background())
					if src.readsAll(shard.Slot) {
						t.Errorf("slot %s is read without the filter", shard.Slot)
					}
				})
			}
			const look = ` FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sagaz-relay look'`
			for n := 1; n <= 5; n++ {
				if _, err := db.Pool.Exec(t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) SELECT gen_random_uuid(), 's', 'k' || n, 'T', '{}' FROM generate_series(1, 100) n`); err != nil {
					t.Fatal(err)
				}
				in.until("the events", func() bool { return len(in.events) == 100*n })
				if looks := ask(t, db, `SELECT count(*)`+look); looks > "2" {
					t.Errorf("%s connections look, want one at origins, and one at publications", looks)
				}
				if _, err := db.Pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid)`+look); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A question that has no answer ends the stream, and says nothing about origins: the filter stays.
func TestNoAnswerKeepsTheFilter(t *testing.T) {
	t.Parallel()
	db := pgtest.NewAt(t, pgtest.OwnServer(t, pgtest.Newest, nil).DSN("postgres"), pgtest.Migrated())
	proxy := pgtest.NewProxy(t, db.DSN)
	src := newSource(t, quick(proxy.DSN))
	s := open(t, src, db.Name).(*stream)
	if s.filter == nil {
		t.Fatal("read without the filter")
	}
	proxy.Freeze()
	if err := s.verify(t.Context()); err == nil {
		t.Error("no answer is taken for one")
	}
	proxy.Thaw()
	if src.readsAll(db.Name) {
		t.Error("the next stream has no filter")
	}
	if err := s.verify(t.Context()); err != nil {
		t.Errorf("asked again: %v", err)
	}
	exec(t, db, `SELECT pg_replication_origin_create('theirs')`)
	if err := s.verify(t.Context()); err == nil || !src.readsAll(db.Name) {
		t.Errorf("another's origin: got %v, filter stays %t", err, !src.readsAll(db.Name))
	}
}
