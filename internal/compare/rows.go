package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// insertSQL inserts rows with payloads of about so many bytes. n is an SQL expression for the
// event's number, from what is the rest of the statement.
func insertSQL(eventType, n string, rowBytes int, from string) string {
	return fmt.Sprintf(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers)
		SELECT gen_random_uuid(), 'saga-' || i, 'order', 'order-' || i %% 10000, '%s',
		%s,
		'{"correlation_id": "c0ffee", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}'
		FROM (SELECT %s AS i%s) AS numbers`, eventType, payloadSQL(rowBytes), n, from)
}

// payloadSQL is an SQL expression for the payload of event i.
func payloadSQL(rowBytes int) string {
	// What surrounds the filler has 42 bytes; a filler repeats 32 bytes that differ from row to row.
	return fmt.Sprintf("jsonb_build_object('n', 'event-' || lpad(i::text, 10, '0'), 'filler', repeat(md5(i::text), %d))", max((rowBytes-42)/32, 1))
}

// insert is the statement for the contestant's table.
func (t *site) insert(n string, rowBytes int, from string) string {
	if t.c.rows != nil {
		return t.c.rows(t.name, n, rowBytes, from)
	}
	return insertSQL(t.name, n, rowBytes, from)
}

// fill commits rows with the numbers 1 to rows in transactions of the given size, from a few
// connections, and has PostgreSQL write them to its files: no contestant pays for that.
func (t *site) fill(ctx context.Context, rows, perTx, rowBytes int) error {
	const connections = 2
	var begun atomic.Int64
	group, gctx := errgroup.WithContext(ctx)
	several := max(1, min(100/perTx, rows/perTx))
	for range connections {
		group.Go(func() error {
			conn, err := pgx.Connect(gctx, t.dsn)
			if err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			defer conn.Close(context.WithoutCancel(gctx)) //nolint:errcheck // all is committed
			// Only the fill does not wait for the disk; what is measured does.
			if _, err := conn.Exec(gctx, `SET synchronous_commit = off`); err != nil {
				return err
			}
			for {
				from := int(begun.Add(int64(several*perTx))) - several*perTx
				if from >= rows {
					return nil
				}
				var text strings.Builder
				for i := from; i < min(from+several*perTx, rows); i += perTx {
					statement := t.insert("i", rowBytes, fmt.Sprintf(" FROM generate_series(%d, %d) AS i", i+1, min(i+perTx, rows)))
					fmt.Fprintf(&text, "BEGIN;%s;COMMIT;", statement)
				}
				if _, err := conn.Exec(gctx, text.String(), pgx.QueryExecModeSimpleProtocol); err != nil {
					return fmt.Errorf("fill: %w", err)
				}
			}
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return t.exec(ctx, `CHECKPOINT`)
}

// txOfASecond is how many transactions a second a steady load has at most. A higher rate has several
// rows in each: what the load itself costs is to leave room for what is measured.
const txOfASecond = 1000

// load is rows that were committed at a steady rate.
type load struct {
	from int         // the number before the first event's
	at   []time.Time // when the statement that commits an event was sent
	took time.Duration
}

// commit commits rate events a second for a while, from as many connections as that needs, and notes
// when each was sent. The numbers begin after from.
func (t *site) commit(ctx context.Context, m *meter, from, rate int, during time.Duration, rowBytes int) (*load, error) {
	perTx := max(rate/txOfASecond, 1)
	connections := 8
	total := int(float64(rate)*during.Seconds()) / perTx * perTx
	l := &load{from: from, at: make([]time.Time, total)}
	conns := make([]*pgx.Conn, connections)
	for i := range conns {
		conn, err := pgx.Connect(ctx, t.dsn)
		if err != nil {
			return nil, fmt.Errorf("connect: %w", err)
		}
		defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // all is committed
		if m != nil {
			m.ignore(int(conn.PgConn().PID()))
		}
		if _, err := conn.Prepare(ctx, "insert", t.insert("i", rowBytes, " FROM generate_series($1::bigint, $2::bigint) AS i")); err != nil {
			return nil, fmt.Errorf("prepare: %w", err)
		}
		conns[i] = conn
	}
	group, gctx := errgroup.WithContext(ctx)
	start := time.Now()
	for worker, conn := range conns {
		group.Go(func() error {
			for i := worker * perTx; i < total; i += connections * perTx {
				due := start.Add(time.Duration(i) * time.Second / time.Duration(rate))
				if wait := time.Until(due); wait > 0 {
					select {
					case <-time.After(wait):
					case <-gctx.Done():
						return gctx.Err()
					}
				}
				now := time.Now()
				for k := range perTx {
					l.at[i+k] = now
				}
				if _, err := conn.Exec(gctx, "insert", from+i+1, from+i+perTx); err != nil {
					return fmt.Errorf("commit: %w", err)
				}
			}
			return nil
		})
	}
	err := group.Wait()
	l.took = time.Since(start)
	return l, err
}
