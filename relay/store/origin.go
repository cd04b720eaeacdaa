package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// A marking session has a replication origin, so that a server from 16 on drops our own updates
// before decoding them. Origins are the server's, of all databases together, and their number is
// limited (max_replication_slots, from 18 on max_active_replication_origins); subscriptions need
// them, too. So a slot has one, with the database's OID in its name, which is dropped with the slot
// (uninstall). One that would be the server's last is not made. Without an origin everything works
// the same, only slower.
const (
	originSQL = `SELECT 'sagaz_relay_' || d.oid || '_' || $1::text, EXISTS (SELECT FROM pg_replication_origin WHERE roname = 'sagaz_relay_' || d.oid || '_' || $1::text),
		EXISTS (SELECT FROM pg_replication_origin WHERE ` + former + `),
		(SELECT count(*) FROM pg_replication_origin), coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::bigint
		FROM pg_database d WHERE d.datname = current_database()`

	// formerOriginsSQL drops those that older relays made, two a slot. One in use is left, and so
	// are all without the right.
	formerOriginsSQL = `SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE ` + former

	former = `roname IN ('sagaz_relay_' || $1::text || '_a', 'sagaz_relay_' || $1::text || '_b')`
)

// originPatience is how long a predecessor's session, which was just ended, may take to let the
// origin go.
const originPatience = 500 * time.Millisecond

// errLastOrigin means that our origin would be the last one that the server can have.
var errLastOrigin = errors.New("the server has no origin to spare")

// setOrigin gives the session its origin, or logs why it has none.
func (l *lease) setOrigin(ctx context.Context, conn *pgx.Conn) {
	err := takeOrigin(ctx, conn, l.slot)
	if err == nil {
		return
	}
	fix := "as a superuser: " + strings.Join(OriginGrants(pgx.Identifier{conn.Config().User}.Sanitize()), " ")
	if errors.Is(err, errLastOrigin) {
		fix = "look for origins that are not needed: sagaz-relay doctor; or raise max_replication_slots (from PostgreSQL 18 on max_active_replication_origins)"
	}
	l.log.Info("marking without a replication origin, so the server decodes our marks too", "error", err, "fix", fix)
}

func takeOrigin(ctx context.Context, conn *pgx.Conn, slot string) error {
	var name string
	var there, formers bool
	var used, limit int64
	if err := conn.QueryRow(ctx, originSQL, slot).Scan(&name, &there, &formers, &used, &limit); err != nil {
		return err
	}
	if !there {
		if used+1 >= limit {
			return fmt.Errorf("%w: %d of %d are taken", errLastOrigin, used, limit)
		}
		if _, err := conn.Exec(ctx, `SELECT pg_replication_origin_create($1)`, name); err != nil {
			return err
		}
	}
	end := time.Now().Add(originPatience)
	err := relay.Retry(ctx, relay.Backoff{Min: originPatience / 25, Max: originPatience / 25}, func() error {
		_, err := conn.Exec(ctx, `SELECT pg_replication_origin_session_setup($1)`, name)
		return err
	}, func(err error, _ time.Duration) bool {
		return sessions.Code(err) == sessions.InUse && time.Now().Before(end)
	})
	if err == nil && formers {
		_, _ = conn.Exec(ctx, formerOriginsSQL, slot) // not ours to insist
	}
	return err
}

// ourOriginsSQL are the origins of this database's slots $1. Those of older relays have no database
// in their name, so they count only where no other database has a slot of that name.
const ourOriginsSQL = `SELECT o.roname FROM pg_replication_origin o, pg_database d WHERE d.datname = current_database()
	AND (starts_with(o.roname, 'sagaz_relay_' || d.oid || '_')
		OR o.roname IN (SELECT 'sagaz_relay_' || slot || suffix FROM unnest($1::text[]) AS slot, unnest('{_a,_b}'::text[]) AS suffix
			WHERE NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.slot_name = slot AND s.database IS DISTINCT FROM d.datname)))
	ORDER BY o.roname`

// leftOriginsSQL are origins of relays whose database is gone.
const leftOriginsSQL = `SELECT o.roname FROM pg_replication_origin o WHERE o.roname ~ '^sagaz_relay_[0-9]+_'
	AND NOT EXISTS (SELECT FROM pg_database d WHERE d.oid::text = split_part(o.roname, '_', 3)) ORDER BY o.roname`

// Origins are the replication origins of this database's slots, and those of relays whose database
// is gone.
func Origins(ctx context.Context, conn *pgx.Conn, slots []string) (ours, left []string, err error) {
	ours, err = names(ctx, conn, ourOriginsSQL, slots)
	if err == nil {
		left, err = names(ctx, conn, leftOriginsSQL)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("look at the replication origins: %w", setup(err))
	}
	return ours, left, nil
}

func names(ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
