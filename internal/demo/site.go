package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/orders"
	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
	"github.com/sagaz-relay/relay/relay/watch"
)

// site is what a demo sets up and has to tear down: a directory, a PostgreSQL, a relay.
type site struct {
	dir    string
	log    *os.File
	server *pgserver.Server
	dsn    string
	relay  Relay
	conn   *pgx.Conn // for looking at the database

	stopRelay  context.CancelFunc
	relayEnded chan struct{}
	relayErr   error // once relayEnded is closed
	url        string
}

func (d *site) eventsPath() string { return filepath.Join(d.dir, "outbox-events.jsonl") }
func (d *site) logPath() string    { return filepath.Join(d.dir, "relay.log") }

const database = "shop"

// setUp brings everything up to where the load can begin.
func (d *Demo) setUp(ctx context.Context) (err error) {
	if d.dir, err = os.MkdirTemp("", "sagaz-demo-"); err != nil {
		return fmt.Errorf("create directory: %w", err)
	}
	// When we are root PostgreSQL runs as another user, and its directory is in here.
	if err := os.Chmod(d.dir, 0o755); err != nil { //nolint:gosec // nothing in it is a secret
		return fmt.Errorf("open directory to PostgreSQL: %w", err)
	}
	if d.log, err = os.Create(d.logPath()); err != nil {
		return fmt.Errorf("create log: %w", err)
	}
	steps := []struct {
		do func(context.Context) (string, error)
		is string
	}{
		{d.startPostgres, "start PostgreSQL"},
		{d.migrate, "migrate the database"},
		{d.startRelay, "start the relay"},
	}
	for _, step := range steps {
		began := time.Now()
		done, err := step.do(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", step.is, err)
		}
		d.screen.item(true, fmt.Sprintf("%s (%s)", done, seconds(time.Since(began))), "")
	}
	return nil
}

func (d *Demo) startPostgres(ctx context.Context) (string, error) {
	var err error
	d.server, err = pgserver.Start(ctx, pgserver.Options{DataDir: filepath.Join(d.dir, "postgres"), Log: d.screen})
	if err != nil {
		return "", err
	}
	admin, err := pgx.Connect(ctx, d.server.DSN("postgres"))
	if err != nil {
		return "", fmt.Errorf("connect: %w", store.ConnectCause(err))
	}
	defer admin.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is open on it
	if _, err := admin.Exec(ctx, `CREATE DATABASE `+database); err != nil {
		return "", fmt.Errorf("create database: %w", err)
	}
	d.dsn = d.server.DSN(database)
	if d.relay, err = d.newRelay(d.dsn, d.eventsPath(), d.wrap); err != nil {
		return "", err
	}
	return fmt.Sprintf("PostgreSQL %s runs on 127.0.0.1:%d", d.server.Version(), d.server.Port()), nil
}

func (d *Demo) wrap(sink relay.Sink) relay.Sink {
	if d.WrapSink != nil {
		sink = d.WrapSink(sink)
	}
	return &timedSink{Sink: sink, watch: d.watch}
}

func (d *Demo) migrate(ctx context.Context) (string, error) {
	if err := d.relay.Migrate(ctx, d.log); err != nil {
		return "", err
	}
	var err error
	if d.conn, err = pgx.Connect(ctx, d.dsn); err != nil {
		return "", fmt.Errorf("connect: %w", store.ConnectCause(err))
	}
	d.shop, err = orders.NewShop(ctx, d.conn, orders.ShopOptions{DSN: d.dsn, Rate: d.opts.Rate, Writers: d.opts.Writers, Committing: d.watch.start})
	return "database migrated: outbox, publication, slot", err
}

// startRelay runs what "sagaz-relay run" runs, until stopRelay. It returns once the relay streams.
func (d *Demo) startRelay(ctx context.Context) (string, error) {
	// A signal stops the load, not the relay: it still has to catch up.
	relaying, stop := context.WithCancel(context.WithoutCancel(ctx))
	d.stopRelay = stop
	d.relayEnded = make(chan struct{})
	type runningRelay struct {
		relay *watch.Watch
		addr  string
	}
	running := make(chan runningRelay, 1)
	go func() { // ends with stopRelay; cleanUp waits for it
		d.relayErr = d.relay.Run(relaying, d.log, func(r *watch.Watch, addr string) { running <- runningRelay{r, addr} })
		close(d.relayEnded)
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("it does not stream after 30 s"))
	defer cancel()
	var r *watch.Watch
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for r == nil || !r.Status().Streams() {
		select {
		case up := <-running:
			r, d.url = up.relay, "http://"+up.addr
		case <-d.relayEnded:
			if d.relayErr == nil {
				return "", errors.New("it stopped by itself")
			}
			return "", d.relayErr
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-poll.C:
		}
	}
	return "relay streams, metrics on " + d.url + "/metrics", nil
}

// cleanUp stops what runs and removes the directory, from whatever state. After a failure it leaves
// the logs, in one file.
func (d *Demo) cleanUp(failed bool) error {
	var errs []error
	if d.stopRelay != nil {
		d.stopRelay()
		<-d.relayEnded // bounded by the drain timeout
	}
	if d.conn != nil {
		_ = d.conn.Close(context.Background()) // it was for reading
	}
	if d.server != nil {
		errs = append(errs, d.server.Close())
	}
	if failed && d.server != nil { // before, the error is enough
		if path, err := d.keepLogs(); err != nil {
			errs = append(errs, err)
		} else {
			errs = append(errs, fmt.Errorf("the logs of relay and PostgreSQL are in %s", path))
		}
	}
	if d.log != nil {
		_ = d.log.Close() // whoever wrote to it is gone
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}

func (d *Demo) keepLogs() (string, error) {
	kept, err := os.CreateTemp("", "sagaz-demo-*.log")
	if err != nil {
		return "", fmt.Errorf("keep the logs: %w", err)
	}
	logs := []io.Reader{strings.NewReader("== relay\n")}
	if in, err := os.Open(d.logPath()); err == nil {
		defer in.Close() //nolint:errcheck // read only
		logs = append(logs, in)
	}
	if d.server != nil {
		logs = append(logs, strings.NewReader("\n== PostgreSQL\n"+d.server.LogTail(1000)+"\n"))
	}
	_, err = io.Copy(kept, io.MultiReader(logs...))
	if err = errors.Join(err, kept.Close()); err != nil {
		return "", fmt.Errorf("keep the logs: %w", err)
	}
	return kept.Name(), nil
}

// slotLag is the WAL that was written and that the relay has not confirmed, in bytes; negative when
// it is not known.
func (d *Demo) slotLag(ctx context.Context) int64 {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var bytes int64
	err := d.conn.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint
		FROM pg_replication_slots WHERE slot_name = $1`, d.relay.Slot).Scan(&bytes)
	if err != nil {
		return -1
	}
	return bytes
}
