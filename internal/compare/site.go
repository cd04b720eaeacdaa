package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/migrations"
	"github.com/sagaz-relay/relay/relay"
)

// site is what one measurement has for itself: a database, a topic or queue, a directory.
type site struct {
	*servers
	c    *contestant
	name string // of the database, of its slots, and of topic, exchange and queue
	dsn  string
	conn *pgx.Conn
	dir  string
	port int // for the contestant's HTTP
	out  target
}

// Names of what all sites have in their databases.
const (
	publication = "sagaz_relay"
	reference   = "compare_reference" // the publication of the slot that pg_recvlogical drains
)

func (s *servers) newSite(ctx context.Context, c *contestant) (_ *site, err error) {
	t := &site{servers: s, c: c, name: fmt.Sprintf("compare_%08x", rand.Uint32())}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	t.dsn, t.dir = s.postgres.DSN(t.name), filepath.Join(s.dir, t.name)
	if err := os.Mkdir(t.dir, 0o755); err != nil {
		return nil, err
	}
	if _, err := s.admin.Exec(ctx, `CREATE DATABASE `+t.name); err != nil {
		return nil, fmt.Errorf("create database: %w", err)
	}
	if t.conn, err = pgx.Connect(ctx, t.dsn); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if _, err := migrations.Run(ctx, t.conn); err != nil {
		return nil, err
	}
	if _, err := t.conn.Exec(ctx, `CREATE SEQUENCE compare_n CACHE 1000`); err != nil {
		return nil, err
	}
	if _, err := cdc.EnsurePublication(ctx, t.conn, relay.Alone(t.name+"_ref", reference)); err != nil {
		return nil, err
	}
	if t.out, err = t.openTarget(ctx); err != nil {
		return nil, err
	}
	return t, c.prepare(ctx, t)
}

func (t *site) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if t.out != nil {
		errs = append(errs, t.out.close(ctx))
	}
	if t.conn != nil {
		errs = append(errs, t.conn.Close(ctx))
	}
	errs = append(errs, t.dropSlots(ctx), t.dropOrigins(ctx))
	_, err := t.admin.Exec(ctx, `DROP DATABASE IF EXISTS `+t.name+` WITH (FORCE)`)
	return errors.Join(append(errs, err, os.RemoveAll(t.dir))...)
}

// dropSlots gives a walsender a moment to let go.
func (t *site) dropSlots(ctx context.Context) error {
	const terminate = `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active`
	const drop = `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1`
	return t.patiently(ctx, terminate, drop)
}

// dropOrigins removes what relays leave on the server, which outlives the database.
func (t *site) dropOrigins(ctx context.Context) error {
	return t.patiently(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`,
		`SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin, pg_database WHERE datname = $1 AND starts_with(roname, 'sagaz_relay_' || pg_database.oid || '_')`)
}

func (t *site) patiently(ctx context.Context, first, then string) (err error) {
	for range 100 {
		if _, err = t.admin.Exec(ctx, first, t.name); err != nil {
			return err
		}
		if _, err = t.admin.Exec(ctx, then, t.name); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

func (t *site) exec(ctx context.Context, sql string, args ...any) error {
	_, err := t.conn.Exec(ctx, sql, args...)
	return err
}

func (t *site) makeSlot(ctx context.Context, name string) error {
	if err := t.exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, name); err != nil {
		return fmt.Errorf("create slot %s: %w", name, err)
	}
	return nil
}
