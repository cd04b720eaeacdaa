package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
	"github.com/sagaz-relay/relay/migrations"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// database is the database that bench makes and removes.
type database struct {
	admin       *pgx.Conn
	conn        *pgx.Conn
	name        string
	dsn         string
	publication string
	version     string
	slots       []string
	server      *pgserver.Server // ours, or nil

	relay Relay // to be measured on it
}

func newDatabase(ctx context.Context, program Program, printf func(string, ...any)) (_ *database, err error) {
	b := &database{publication: program.Publication, name: fmt.Sprintf("sagaz_relay_bench_%08x", rand.Uint32())}
	defer func() {
		if err != nil {
			_ = b.close() // the first error is the one to return
		}
	}()
	dsn := program.DatabaseURL
	if dsn == "" {
		printf("starting PostgreSQL (DATABASE_URL is not set)")
		b.server, err = pgserver.Start(ctx, pgserver.Options{Settings: map[string]string{"max_wal_size": "8GB", "max_replication_slots": "150", "max_wal_senders": "150", "max_connections": "600"}, Log: os.Stderr})
		if err != nil {
			return nil, err
		}
		dsn = b.server.DSN("postgres")
	}
	if b.admin, err = pgx.Connect(ctx, dsn); err != nil {
		return nil, fmt.Errorf("connect: %w", store.ConnectCause(err))
	}
	if _, err := b.admin.Exec(ctx, `CREATE DATABASE `+b.name); err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "42501" {
			return nil, &relay.SetupError{Problem: "bench makes a database of its own, and the role of DATABASE_URL may not", Err: err, Fix: "as a superuser: ALTER ROLE " + term.Ident(b.admin.Config().User) + " CREATEDB REPLICATION; or unset DATABASE_URL, and a PostgreSQL is started on this machine"}
		}
		return nil, fmt.Errorf("create database %s: %w", b.name, err)
	}
	if b.dsn, err = withDatabase(dsn, b.name); err != nil {
		return nil, err
	}
	if b.conn, err = pgx.Connect(ctx, b.dsn); err != nil {
		return nil, fmt.Errorf("connect: %w", store.ConnectCause(err))
	}
	if _, err := migrations.Run(ctx, b.conn); err != nil {
		return nil, err
	}
	if _, err := cdc.EnsurePublication(ctx, b.conn, relay.Alone(b.name, b.publication)); err != nil {
		return nil, err
	}
	return b, b.admin.QueryRow(ctx, `SHOW server_version`).Scan(&b.version)
}

// withDatabase puts another database's name into a connection string of either form.
func withDatabase(dsn, database string) (string, error) {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		u, err := url.Parse(dsn)
		if err != nil {
			return "", errors.New("DATABASE_URL: cannot be read as a URL")
		}
		u.Path = "/" + database
		return u.String(), nil
	}
	return dsn + " dbname=" + database, nil // the last one counts
}

// close removes what was made, whatever state it is in.
func (b *database) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if b.conn != nil {
		_ = b.conn.Close(ctx)
	}
	if b.server != nil {
		if b.admin != nil {
			_ = b.admin.Close(ctx)
		}
		return b.server.Close()
	}
	if b.admin != nil {
		for _, slot := range b.slots {
			errs = append(errs, b.dropSlot(ctx, slot))
		}
		errs = append(errs, b.dropOrigins(ctx))
		_, err := b.admin.Exec(ctx, `DROP DATABASE IF EXISTS `+b.name+` WITH (FORCE)`)
		errs = append(errs, err)
		_ = b.admin.Close(ctx)
	}
	return errors.Join(errs...)
}

// dropOrigins removes what relays of the measurements have left on the server, which outlives the
// database.
func (b *database) dropOrigins(ctx context.Context) error {
	const ours = `SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin, pg_database WHERE datname = $1 AND starts_with(roname, 'sagaz_relay_' || pg_database.oid || '_')`
	var err error
	for range 50 { // a marking session needs a moment to let go
		if _, err = b.admin.Exec(ctx, ours, b.name); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("drop the replication origins of %s: %w", b.name, err)
}

func (b *database) dropSlot(ctx context.Context, slot string) error {
	_, err := b.admin.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active`, slot)
	if err != nil {
		return err
	}
	for range 50 { // the walsender needs a moment to let go
		_, err = b.admin.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
		if err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("drop slot %s: %w", slot, err)
}

// makeSlots creates one slot and n-1 copies after the fill, all at the fill's beginning.
func (b *database) makeSlots(ctx context.Context, n int, fill func() error) (slots []string, err error) {
	for i := range n {
		slots = append(slots, fmt.Sprintf("%s_%d", b.name, i))
	}
	if _, err := b.conn.Exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slots[0]); err != nil {
		return nil, fmt.Errorf("create slot %s: %w", slots[0], err)
	}
	b.slots = slots
	if err := fill(); err != nil {
		return nil, err
	}
	for _, slot := range slots[1:] {
		if _, err := b.conn.Exec(ctx, `SELECT pg_copy_logical_replication_slot($1, $2)`, slots[0], slot); err != nil {
			return nil, fmt.Errorf("copy slot %s: %w", slots[0], err)
		}
	}
	return slots, nil
}

// walEnd is the position that the server writes at.
func (b *database) walEnd(ctx context.Context) (end string, err error) {
	return end, b.conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&end)
}

// noteSlot notes for the one slot that a relay is about to read that it brings everything.
// Otherwise its first owner would find the backlog in the table, which is not what is measured. The
// copies for the references are not noted, since a table has one set of slots and the relay would
// take the others' place, with a sweep.
func (b *database) noteSlot(ctx context.Context, slot string) error {
	_, err := b.conn.Exec(ctx, `INSERT INTO saga_outbox_relay (slot, epoch, owner, sweep_owed, released_at, confirmed_lsn)
		SELECT slot_name, 0, '', false, now(), confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1::text`, slot)
	if err != nil {
		return fmt.Errorf("note slot %s: %w", slot, err)
	}
	return nil
}

// clear removes rows and slots of a measurement that is over.
func (b *database) clear(ctx context.Context) error {
	for _, slot := range b.slots {
		if err := b.dropSlot(ctx, slot); err != nil {
			return err
		}
	}
	b.slots = nil
	_, err := b.conn.Exec(ctx, `TRUNCATE saga_outbox, saga_outbox_archive, saga_outbox_relay, saga_outbox_set, saga_outbox_delivery`)
	return err
}

// row is what rows of a backlog are like.
type row struct {
	eventType            string
	bytes, keys, headers int // of the payload, about; distinct; of each row
}

// insertSQL inserts so many rows.
func (r row) insertSQL(rows int) string {
	headers := `{"correlation_id": "c0ffee", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"`
	for i := 3; i <= r.headers; i++ {
		headers += fmt.Sprintf(`, "header-%d": "0123456789abcdef"`, i)
	}
	return fmt.Sprintf(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers)
		SELECT gen_random_uuid(), 'saga-' || i, 'order', 'order-' || floor(random() * %d)::int, '%s',
		jsonb_build_object('order_id', i, 'filler', repeat('x', %d)), '%s}'
		FROM generate_series(1, %d) AS i`, r.keys, r.eventType, r.bytes-32, headers, rows)
}

// fill commits rows in transactions of the given size, from a few connections.
func (b *database) fill(ctx context.Context, eventType string, rows, perTx, rowBytes int) error {
	return b.fillWith(ctx, row{eventType: eventType, bytes: rowBytes, keys: 10_000, headers: 2}, rows, perTx)
}

func (b *database) fillWith(ctx context.Context, of row, rows, perTx int) error {
	const connections = 4
	statement := of.insertSQL(perTx)
	group, ctx := errgroup.WithContext(ctx)
	var left atomic.Int64
	left.Store(int64(rows / perTx))
	for range connections {
		group.Go(func() error {
			conn, err := pgx.Connect(ctx, b.dsn)
			if err != nil {
				return fmt.Errorf("connect: %w", store.ConnectCause(err))
			}
			defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // all is committed
			// Only the fill does not wait for the disk; what is measured does.
			if _, err := conn.Exec(ctx, `SET synchronous_commit = off`); err != nil {
				return err
			}
			// Many small transactions travel in one query string, each committed by itself.
			several := max(1, 200/perTx)
			one := statement
			if several > 1 {
				one = strings.Repeat("BEGIN;"+statement+";COMMIT;", several)
			}
			for left.Add(-int64(several)) >= -int64(several)+1 {
				if _, err := conn.Exec(ctx, one, pgx.QueryExecModeSimpleProtocol); err != nil {
					return fmt.Errorf("fill: %w", err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}
