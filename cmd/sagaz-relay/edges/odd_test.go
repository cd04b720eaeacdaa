package edges

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

const smallLimit = 64 << 10

// A row over the limit is refused alone, as too_large and for good, wherever it is read: the others
// come whole.
func TestTooLargeRowIsRefusedAlone(t *testing.T) {
	onEach(t, "", func(t *testing.T, db *pgtest.DB) {
		ctx, stop := context.WithTimeout(t.Context(), patience)
		defer stop()
		conn, source := connect(t, db), newSource(t, db)
		if _, err := source.Create(ctx, relay.Alone("outbox", "sagaz_outbox")); err != nil {
			t.Fatal(err)
		}
		for i, row := range []string{
			`'"small"', '{}'`, `to_jsonb(repeat('x', 65500)), '{}'`, `to_jsonb(repeat('x', 66000)), '{}'`, `to_jsonb(repeat('x', 3000000)), '{"k": "v"}'`,
			`'{}', jsonb_build_object('k', repeat('y', 3000000))`, `'1e66000', '{}'`, `'"last"', '{"k": "v"}'`,
		} {
			exec(t, conn, fmt.Sprintf(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, headers) VALUES ('%s', 's', 'k%d', 'T', %s)`, id(i+1), i+1, row))
		}
		streamed := stream(t, ctx, source, "outbox", 7)
		lease := acquire(t, ctx, db)
		swept := sweep(t, ctx, lease, relay.SweepQuery{})
		for name, events := range map[string]map[relay.UUID]relay.Event{"stream": streamed, "sweep": swept, "ledger": park(t, ctx, lease, streamed)} {
			for n := 1; n <= 7; n++ {
				ev, large := events[id(n)], n > 2 && n < 7
				if (ev.Unfit != nil) != large || ev.AggregateID != fmt.Sprint("k", n) || (ev.Payload == "") != large {
					t.Errorf("%s, row %d: key %q, payload of %d bytes, unfit: %v; want it refused: %t", name, n, ev.AggregateID, len(ev.Payload), ev.Unfit, large)
				}
				if large && ev.Unfit != nil && (ev.Unfit.Reason != relay.ReasonTooLarge || !ev.Unfit.Final || ev.Unfit.Limit != smallLimit || ev.Unfit.Size < 66000) {
					t.Errorf("%s, row %d: %+v", name, n, ev.Unfit)
				}
			}
		}
	})
}

// A type that is not accepted is refused at the start, and when it comes while the stream runs,
// with the statement that fixes it.
func TestTypesThatAreNotAccepted(t *testing.T) {
	onEach(t, "", func(t *testing.T, db *pgtest.DB) {
		ctx, stop := context.WithTimeout(t.Context(), patience)
		defer stop()
		conn, source := connect(t, db), newSource(t, db)
		// With a list of columns PostgreSQL lets nobody change their types.
		exec(t, conn, `CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox WITH (publish = 'insert')`)
		if _, err := source.Create(ctx, relay.Alone("outbox", "sagaz_outbox")); err != nil {
			t.Fatal(err)
		}
		st, err := source.Open(ctx, relay.Alone("outbox", "sagaz_outbox"), 0)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			ended <- st.Run(ctx, &intake{events: make(map[relay.UUID]relay.Event), want: 1000})
			_ = st.Close(ctx)
		}()
		exec(t, conn, `ALTER TABLE saga_outbox ALTER COLUMN aggregate_id TYPE bytea USING aggregate_id::bytea`)
		exec(t, conn, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 's', 'k', 'T', '{}')`)
		for what, err := range map[string]error{"while running": <-ended, "start": source.Check(ctx, relay.Alone("outbox", "sagaz_outbox").Set), "start, polling": newStore(t, db).Check(ctx)} {
			var setup *relay.SetupError
			if !errors.As(err, &setup) || !strings.Contains(setup.Problem, "column aggregate_id has type bytea") || !strings.Contains(setup.Fix, "ALTER COLUMN aggregate_id TYPE varchar(255)") {
				t.Errorf("%s: got %v, want a SetupError about the type", what, err)
			}
		}
	})
}

// A character that UTF-8 has not stops the stream for a few tries. Then the table is read, and the
// row is refused alone.
func TestRowThatTheServerCannotSend(t *testing.T) {
	onEach(t, "WIN1252", func(t *testing.T, db *pgtest.DB) {
		ctx, stop := context.WithTimeout(t.Context(), patience)
		defer stop()
		conn, source := connect(t, db), newSource(t, db)
		if _, err := source.Create(ctx, relay.Alone("outbox", "sagaz_outbox")); err != nil {
			t.Fatal(err)
		}
		exec(t, conn, `SET client_encoding = 'WIN1252'`)
		for n, key := range []string{"good", `Zo\x81`, "later"} {
			exec(t, conn, fmt.Sprintf(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES ('%s', 's', E'%s', 'T', '{}')`, id(n+1), key))
		}
		tries := 0
		var gone *relay.SlotGoneError
		for events := make(map[relay.UUID]relay.Event); !errors.As(openAndRun(ctx, source, events), &gone); tries++ {
			if ctx.Err() != nil {
				t.Fatal("the stream is tried for ever")
			}
		}
		if gone.Cause != relay.GoneUnreadable || tries > 5 {
			t.Errorf("after %d tries: %v, want cause %s", tries, gone, relay.GoneUnreadable)
		}
		before, err := source.Create(ctx, relay.Alone("outbox", "sagaz_outbox")) // made again, behind the row
		if err != nil {
			t.Fatal(err)
		}
		lease := acquire(t, ctx, db)
		swept := sweep(t, ctx, lease, relay.SweepQuery{})
		for name, events := range map[string]map[relay.UUID]relay.Event{"sweep": swept, "ledger": park(t, ctx, lease, swept)} {
			if a, b, c := events[id(1)], events[id(2)], events[id(3)]; a.Unfit != nil || c.Unfit != nil || b.Unfit == nil || b.Unfit.Reason != relay.ReasonEncode || len(events) != 3 {
				t.Errorf("%s: got %v, %v, %v; want the second refused alone", name, a.Unfit, b.Unfit, c.Unfit)
			}
		}
		exec(t, conn, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 's', 'new', 'T', '{}')`)
		if got := stream(t, ctx, source, "outbox", 1); before == 0 || len(got) != 1 {
			t.Errorf("the new slot delivers %d events", len(got))
		}
	})
}

// Rows of one transaction come in the order of their insertion, whatever was done to them and
// rolled back.
func TestOrderOfATransaction(t *testing.T) {
	for name, odd := range map[string]string{
		"update rolled back": `SAVEPOINT s; UPDATE saga_outbox SET retry_count = 1 WHERE event_id = '%s'; ROLLBACK TO s;`,
		"delete rolled back": `SAVEPOINT s; DELETE FROM saga_outbox WHERE event_id = '%s'; ROLLBACK TO s;`,
		"locked":             `SELECT FROM saga_outbox WHERE event_id = '%s' FOR UPDATE;`,
		"nothing":            `SELECT '%s';`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onEach(t, "", func(t *testing.T, db *pgtest.DB) {
				ctx, stop := context.WithTimeout(t.Context(), patience)
				defer stop()
				script, want := "BEGIN;", []string{}
				for n := 1; n <= 12; n++ {
					script += fmt.Sprintf(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) VALUES ('%s', 's', 'k%d', 'T', '{}');`, id(100-n), n%3)
					want = append(want, id(100-n).String())
					if n%4 == 1 {
						script += fmt.Sprintf(odd, id(100-n))
					}
				}
				exec(t, connect(t, db), script+"COMMIT")
				var got []string
				err := acquire(t, ctx, db).Sweep(ctx, relay.SweepQuery{}, func(events []relay.Event) error {
					for _, ev := range events {
						got = append(got, ev.ID.String())
					}
					return nil
				})
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("got %v (%v)\nwant %v", got, err, want)
				}
			})
		})
	}
}

func onEach(t *testing.T, encoding string, test func(t *testing.T, db *pgtest.DB)) {
	for _, version := range pgtest.Versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			options := []pgtest.Option{pgtest.Migrated()}
			if encoding != "" {
				options = append(options, pgtest.Encoding(encoding))
			}
			test(t, pgtest.NewVersion(t, version, options...))
		})
	}
}

func newSource(t testing.TB, db *pgtest.DB) *slotSource {
	t.Helper()
	cfg := cdc.DefaultConfig()
	cfg.DatabaseURL, cfg.MaxEventBytes = db.DSN, smallLimit
	source, err := cdc.New(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return &slotSource{Source: source, suffix: db.Name[len(db.Name)-8:]}
}

func acquire(t testing.TB, ctx context.Context, db *pgtest.DB) relay.Lease {
	t.Helper()
	cfg := store.DefaultConfig()
	cfg.DatabaseURL, cfg.Owner, cfg.MaxEventBytes, cfg.Slot = db.DSN, "relay-1", smallLimit, "outbox"
	st, err := store.New(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	lease, err := st.Acquire(ctx, relay.Alone("outbox", "sagaz_outbox"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		releasing, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = lease.Release(releasing, true) // the test is over
	})
	return lease
}

// openAndRun opens the slot and reads it until that fails.
func openAndRun(ctx context.Context, source opener, events map[relay.UUID]relay.Event) error {
	st, err := source.Open(ctx, relay.Alone("outbox", "sagaz_outbox"), 0)
	if err != nil {
		return err
	}
	err = st.Run(ctx, &intake{events: events, want: 1000})
	_ = st.Close(ctx) // it failed already
	return err
}
