package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// Belonging is something of ours in the database or its server.
type Belonging struct {
	Kind    string `json:"kind"` // slot, publication, origin or table
	Name    string `json:"name"`
	Note    string `json:"note,omitempty"`    // about what is lost with it, or why it stays
	Stays   bool   `json:"stays,omitempty"`   // it is not removed
	Removed bool   `json:"removed,omitempty"` // it is gone
	Error   string `json:"error,omitempty"`

	sql string
}

// ErrInUse means that a relay runs.
var ErrInUse = errors.New("a relay is running")

// Belongings are what relays have made in this database and its server for it: slots,
// publications, origins and, if they are asked for, our own tables. Nothing that another database
// or another program made is among them. set is as the settings have it; slots and publications of
// sets with another number of slots are found by their names.
func Belongings(ctx context.Context, conn *pgx.Conn, set relay.Set, withTables bool) ([]Belonging, error) {
	about := sessions.Of(conn.PgConn())
	slots := []string{set.Slot}
	publications := []string{set.Publication}
	if about.Named("saga_outbox_set") != nil {
		noted, err := ReadSet(ctx, conn)
		if err != nil {
			return nil, err
		}
		if noted != nil {
			slots, publications = append(slots, noted.Slot), append(publications, noted.Publication)
		}
	}
	made, err := names(ctx, conn, `SELECT slot_name::text FROM pg_replication_slots, unnest($1::text[]) AS base
		WHERE database = current_database() AND plugin = 'pgoutput' AND `+ofAnySet("slot_name::text", "base"), slots)
	if err != nil {
		return nil, fmt.Errorf("read the slots: %w", setup(err))
	}
	slots = append(slots, made...)
	if about.Named("saga_outbox_relay") != nil {
		noted, err := names(ctx, conn, `SELECT slot FROM saga_outbox_relay`)
		if err != nil {
			return nil, fmt.Errorf("read the slots: %w", setup(err))
		}
		slots = append(slots, noted...)
	}
	var all []Belonging
	rows, err := conn.Query(ctx, `SELECT slot_name::text, active, database = current_database() AND plugin = 'pgoutput', coalesce(database::text, 'none') FROM pg_replication_slots
		WHERE slot_name::text = ANY($1::text[]) ORDER BY slot_name`, slots)
	if err != nil {
		return nil, fmt.Errorf("read the slots: %w", setup(err))
	}
	var name, database string
	var active, ours bool
	_, err = pgx.ForEachRow(rows, []any{&name, &active, &ours, &database}, func() error {
		b := Belonging{Kind: "slot", Name: name, sql: `SELECT pg_drop_replication_slot(` + term.Literal(name) + `)`}
		switch {
		case !ours:
			b.Stays, b.Note = true, "it is somebody else's (database "+database+")"
		case active:
			return fmt.Errorf("%w: slot %s is being read; stop all relays of this database first", ErrInUse, name)
		}
		all = append(all, b)
		return nil
	})
	if err != nil {
		return nil, err
	}
	origins, _, err := Origins(ctx, conn, slots)
	switch {
	case sessions.Code(err) == sessions.NoPrivilege:
		all = append(all, Belonging{Kind: "origin", Name: "sagaz_relay_…", Stays: true, Note: "as a superuser: GRANT SELECT ON pg_replication_origin TO …; the role may not look"})
	case err != nil:
		return nil, err
	}
	for _, origin := range origins {
		all = append(all, Belonging{Kind: "origin", Name: origin, sql: `SELECT pg_replication_origin_drop(` + term.Literal(origin) + `)`})
	}
	var others int
	rows, err = conn.Query(ctx, `SELECT pubname::text, (SELECT count(*) FROM pg_publication_tables t WHERE t.pubname = p.pubname AND t.tablename <> 'saga_outbox') FROM pg_publication p
		WHERE EXISTS (SELECT FROM unnest($1::text[]) AS base WHERE pubname::text = base OR `+ofAnySet("pubname::text", "base")+`) ORDER BY pubname`, publications)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&name, &others}, func() error {
			b := Belonging{Kind: "publication", Name: name, sql: `DROP PUBLICATION IF EXISTS ` + term.Ident(name)}
			if others > 0 {
				b.Stays, b.Note = true, "it carries other tables, too"
			}
			all = append(all, b)
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("look at publications: %w", setup(err))
	}
	if !withTables {
		return all, nil
	}
	tables := about.Ours()
	for _, table := range tables {
		b := Belonging{Kind: "table", Name: table, sql: `DROP TABLE IF EXISTS ` + about.Table(table)}
		if table == "saga_outbox_delivery" {
			var entries int64
			if err := conn.QueryRow(ctx, `SELECT count(*) FROM saga_outbox_delivery`).Scan(&entries); err != nil {
				return nil, fmt.Errorf("count the ledger: %w", setup(err))
			}
			if entries > 0 {
				b.Note = fmt.Sprintf("with %d entries of events that were not delivered; their rows stay in saga_outbox", entries)
			}
		}
		all = append(all, b)
	}
	return all, nil
}

// Remove removes what Belongings has found and notes in each how that went. What is gone already
// counts as removed. It goes on after an error, and reports whether all are gone that were to go.
//
// While it works it holds the slots' locks, so that a relay which starts meanwhile waits as
// standby. It may be interrupted and run again at any place: no step depends on another.
func Remove(ctx context.Context, conn *pgx.Conn, all []Belonging) bool {
	for i := range all {
		if b := &all[i]; b.Kind == "slot" && !b.Stays {
			var free bool
			err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1::bigint::int, hashtext($2))`, int64(lockClass), b.Name).Scan(&free)
			if err == nil && !free {
				err = ErrInUse
			}
			if err != nil {
				b.Error = err.Error()
				return false
			}
		}
	}
	done := true
	for i := range all {
		b := &all[i]
		if b.Stays {
			continue
		}
		_, err := conn.Exec(ctx, b.sql)
		var pg *pgconn.PgError
		switch {
		case err == nil, sessions.Code(err) == sessions.UndefinedObject:
			b.Removed = true
		case sessions.Code(err) == sessions.NoPrivilege && errors.As(err, &pg):
			b.Error, done = pg.Message+"; as a superuser or its owner: "+b.sql+";", false
		default:
			b.Error, done = err.Error(), false
		}
	}
	return done
}
