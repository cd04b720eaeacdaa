package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// Beside is a relay and a bare publisher in turns, with the same work for PostgreSQL beside both:
// the backlog comes from a walsender, and its rows are marked.
type Beside struct {
	RowsPerTx int      `json:"rows_per_transaction"`
	Bare      []Steady `json:"bare_publisher"` // one before each of the relay's, and one after
	Relay     []Steady `json:"relay"`
	// Ratio is of the means of the rates.
	Ratio float64 `json:"relay_ratio"`
}

// beside measures the comparison. Each run has a backlog of its own.
func (b *database) beside(ctx context.Context, t *target, o Options, turns int, printf func(string, ...any)) (*Beside, error) {
	perTx := o.Shapes[0]
	rows := o.Rows / perTx * perTx
	result := &Beside{RowsPerTx: perTx}
	run := func(what string, drain func(slot, end string) (Steady, error)) (Steady, error) {
		if _, err := t.channel.QueuePurge(t.queue, false); err != nil {
			return Steady{}, err
		}
		slots, err := b.makeSlots(ctx, 1, func() error { return b.fill(ctx, t.eventType, rows, perTx, o.RowBytes) })
		if err != nil {
			return Steady{}, err
		}
		end, err := b.walEnd(ctx)
		if err != nil {
			return Steady{}, err
		}
		one, err := drain(slots[0], end)
		if err != nil {
			return one, err
		}
		printf("  %s: %.0f events/s", what, one.PerSecond)
		return one, b.clear(ctx)
	}
	bare := func() error {
		one, err := run("bare publisher, with a walsender and marks", func(slot, _ string) (Steady, error) { return b.bareBeside(ctx, t, o, slot, rows) })
		result.Bare = append(result.Bare, one)
		return err
	}
	for range turns {
		if err := bare(); err != nil {
			return nil, err
		}
		one, err := run("relay", func(slot, end string) (Steady, error) { return b.steadyRun(ctx, o.relayArgs(), slot, end, rows) })
		if err != nil {
			return nil, err
		}
		result.Relay = append(result.Relay, one)
	}
	if err := bare(); err != nil {
		return nil, err
	}
	result.Ratio = meanRate(result.Relay) / meanRate(result.Bare)
	return result, nil
}

func meanRate(runs []Steady) (mean float64) {
	for _, run := range runs {
		mean += run.PerSecond / float64(len(runs))
	}
	return mean
}

// bareMessage is a message that the bare publisher has under way.
type bareMessage struct {
	id      [16]byte
	confirm *amqp.DeferredConfirmation
}

const (
	bareOutstanding = 4000 // messages: four lanes of a thousand
	bareMarks       = 2500 // rows marked at once, as a relay does
)

// bareBeside publishes a message for each row that a slot brings, marks the rows that are confirmed,
// and does nothing else: no record is made of a row, and no key, lane or lease is known.
func (b *database) bareBeside(ctx context.Context, t *target, o Options, slot string, rows int) (run Steady, err error) {
	replication, err := b.bareStream(ctx, slot)
	if err != nil {
		return run, err
	}
	defer replication.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the slot is thrown away
	marking, err := b.bareMarking(ctx)
	if err != nil {
		return run, err
	}
	defer marking.Close(context.WithoutCancel(ctx)) //nolint:errcheck // all is committed
	ch, err := t.rabbit.Channel()
	if err != nil {
		return run, err
	}
	defer ch.Close() //nolint:errcheck // the connection is closed next
	if err := ch.Confirm(false); err != nil {
		return run, err
	}
	from := usedSince{relay: os.Getpid(), before: make(map[int]float64)}
	if err := b.admin.QueryRow(ctx, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1`, slot).Scan(&from.walsender); err != nil {
		return run, fmt.Errorf("look for the walsender: %w", err)
	}
	for _, pid := range []int{from.relay, from.walsender, int(marking.PgConn().PID())} {
		from.before[pid] = cpuOf(pid)
	}

	ids, window, confirmed := make(chan [16]byte, bareOutstanding), make(chan bareMessage, bareOutstanding), make(chan [][16]byte, 1)
	started := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(ids)
		return bareRead(ctx, replication, rows, ids)
	})
	group.Go(func() error {
		defer close(window)
		return t.barePublish(ctx, ch, o, ids, window)
	})
	group.Go(func() error {
		defer close(confirmed)
		return bareConfirm(ctx, window, confirmed)
	})
	group.Go(func() error {
		for batch := range confirmed {
			if _, err := marking.Exec(ctx, `UPDATE saga_outbox SET status = 'sent', sent_at = now() WHERE event_id = ANY($1::uuid[])`, batch); err != nil {
				return fmt.Errorf("bare publisher: mark: %w", err)
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return run, err
	}
	run.Rows, run.Seconds = rows, time.Since(started).Seconds()
	run.PerSecond = float64(rows) / run.Seconds
	return run, b.used(context.WithoutCancel(ctx), slot, from, &run)
}

// bareStream begins to read a slot as the relay does.
func (b *database) bareStream(ctx context.Context, slot string) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig(b.dsn)
	if err != nil {
		return nil, errors.New("DATABASE_URL: cannot be read")
	}
	cfg.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, store.ConnectCause(err)
	}
	args := []string{"proto_version '1'", "publication_names '" + b.publication + "'", "binary 'true'"}
	if major, _, _ := strings.Cut(b.version, "."); major >= "16" {
		args = append(args, "origin 'none'")
	}
	if err := pglogrepl.StartReplication(ctx, conn, slot, 0, pglogrepl.StartReplicationOptions{Mode: pglogrepl.LogicalReplication, PluginArgs: args}); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return conn, nil
}

// bareMarking is a session that marks under an origin, as the relay's does, so that the walsender
// need not decode the marks. Without the right to one it goes without, as a relay would.
func (b *database) bareMarking(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(b.dsn)
	if err != nil {
		return nil, errors.New("DATABASE_URL: cannot be read")
	}
	cfg.RuntimeParams["application_name"] = "sagaz-relay marks bench"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", store.ConnectCause(err))
	}
	const name = `(SELECT 'sagaz_relay_' || oid || '_bare' FROM pg_database WHERE datname = current_database())`
	if _, err := conn.Exec(ctx, `SELECT pg_replication_origin_create(`+name+`) WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = `+name+`)`); err == nil {
		_, _ = conn.Exec(ctx, `SELECT pg_replication_origin_session_setup(`+name+`)`) // without it marks are decoded
	}
	return conn, nil
}

// bareRead hands on the event_id of each row: the first column of an Insert, in binary.
func bareRead(ctx context.Context, conn *pgconn.PgConn, rows int, ids chan<- [16]byte) error {
	const xlogData, idAt = 1 + 24, 1 + 4 + 1 + 2 + 1 + 4 // I, relation, N, columns, b, length
	stop := context.AfterFunc(ctx, func() { _ = conn.Conn().SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for n := 0; n < rows; {
		msg, err := conn.Frontend().Receive()
		if err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		data, ok := msg.(*pgproto3.CopyData)
		switch {
		case !ok:
			return fmt.Errorf("bare publisher: unexpected %T from the server", msg)
		case data.Data[0] == pglogrepl.PrimaryKeepaliveMessageByteID && data.Data[len(data.Data)-1] == 1:
			if err := pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: 1}); err != nil {
				return err
			}
		case data.Data[0] == pglogrepl.XLogDataByteID && data.Data[xlogData] == 'I':
			row := data.Data[xlogData:]
			if len(row) < idAt+16 || row[idAt-5] != 'b' || binary.BigEndian.Uint32(row[idAt-4:]) != 16 {
				return errors.New("bare publisher: event_id is not the first column")
			}
			select {
			case ids <- [16]byte(row[idAt:]):
				n++
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// barePublish publishes one message for each row, as large as the relay's, with as many headers and
// properties: brokers pay for them.
func (t *target) barePublish(ctx context.Context, ch *amqp.Channel, o Options, ids <-chan [16]byte, window chan<- bareMessage) error {
	body := []byte(`{"filler": "` + strings.Repeat("x", o.RowBytes+170) + `"}`)
	const contentType = "application/json"
	for id := range ids {
		name := relay.UUID(id).String()
		c, err := ch.PublishWithDeferredConfirmWithContext(ctx, t.exchange, t.eventType, true, false, amqp.Publishing{
			DeliveryMode: amqp.Persistent, ContentType: contentType, Body: body, MessageId: name, Type: t.eventType, Timestamp: time.Now(),
			Headers: amqp.Table{
				"event_id": name, "saga_id": "saga-12345", "event_type": t.eventType, "content_type": contentType, "correlation_id": "c0ffee",
				"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
			},
		})
		if err != nil {
			return fmt.Errorf("bare publisher: %w", err)
		}
		select {
		case window <- bareMessage{id, c}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// bareConfirm waits for the confirms, in order, and hands on what is to be marked.
func bareConfirm(ctx context.Context, window <-chan bareMessage, confirmed chan<- [][16]byte) error {
	var batch [][16]byte
	hand := func() error {
		if len(batch) == 0 {
			return nil
		}
		select {
		case confirmed <- batch:
			batch = nil
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for m := range window {
		acked, err := m.confirm.WaitContext(ctx)
		if err != nil {
			return err
		}
		if !acked {
			return errors.New("bare publisher: not confirmed")
		}
		if batch = append(batch, m.id); len(batch) == bareMarks {
			if err := hand(); err != nil {
				return err
			}
		}
	}
	return hand()
}
