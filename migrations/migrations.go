// Package migrations holds the schema as numbered SQL files and applies them.
//
// It works next to the Python library, which creates its tables by itself at every start: whatever
// is there already stays as it is. Several processes may migrate at once; with an advisory lock
// they do so one after the other.
package migrations

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed *.sql
var files embed.FS

// lockKey is the advisory lock of migrating processes: "sagaz" in ASCII.
const lockKey = 0x736167617a

// Migration is one numbered file.
type Migration struct {
	Version int
	Name    string // without number and ending
	SQL     string
}

// All returns the migrations in order.
func All() []Migration {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		panic(err) // the pattern is constant
	}
	all := make([]Migration, 0, len(names))
	for i, name := range names { // Glob sorts
		number, rest, _ := strings.Cut(name, "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != i+1 {
			panic(fmt.Sprintf("migrations: %s is not number %d", name, i+1))
		}
		sql, err := files.ReadFile(name)
		if err != nil {
			panic(err)
		}
		all = append(all, Migration{Version: version, Name: strings.TrimSuffix(rest, ".sql"), SQL: string(sql)})
	}
	return all
}

// The schema that tables are made in may have functions and operators of other people. Those that
// fit a call better than PostgreSQL's own would be called. So what is called here is qualified, or
// cast to exactly what PostgreSQL's own takes: a varchar to text, a regclass to oid.

// Run applies the migrations that are missing, each in its own transaction, and returns those it
// applied. It may be run at any time and by several processes at once; what is there stays.
func Run(ctx context.Context, conn *pgx.Conn) (applied []Migration, err error) {
	if _, err := conn.Exec(ctx, `SELECT pg_catalog.pg_advisory_lock($1::bigint)`, int64(lockKey)); err != nil {
		return nil, fmt.Errorf("wait for the migration lock: %w", err)
	}
	defer func() {
		// Closing the connection would release it too; a pooled one is not closed.
		_, uerr := conn.Exec(context.WithoutCancel(ctx), `SELECT pg_catalog.pg_advisory_unlock($1::bigint)`, int64(lockKey))
		err = errors.Join(err, uerr)
	}()
	if _, err := conn.Exec(ctx, `CREATE TABLE IF NOT EXISTS saga_outbox_migrations (
		version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TIMESTAMPTZ NOT NULL DEFAULT now())`); err != nil {
		return nil, fmt.Errorf("create table saga_outbox_migrations: %w", err)
	}
	var done []int
	if err := conn.QueryRow(ctx, `SELECT coalesce(pg_catalog.array_agg(version), '{}') FROM saga_outbox_migrations`).Scan(&done); err != nil {
		return nil, fmt.Errorf("read saga_outbox_migrations: %w", err)
	}
	seen := make(map[int]bool)
	for _, v := range done {
		seen[v] = true
	}
	for _, m := range All() {
		if seen[m.Version] {
			continue
		}
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, m.SQL, pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO saga_outbox_migrations (version, name) VALUES ($1, $2)`, m.Version, m.Name)
			return err
		})
		if err != nil {
			return applied, fmt.Errorf("migration %04d_%s: %w", m.Version, m.Name, err)
		}
		applied = append(applied, m)
	}
	return applied, nil
}
