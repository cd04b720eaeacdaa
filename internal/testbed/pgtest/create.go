package pgtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/migrations"
)

// templateLock is the advisory lock of sessions that make a template on a server.
const templateLock = 0x73616761746d706c

// create makes a database as a copy of template0, because no session can be connected to that one,
// and CREATE DATABASE fails while one is. If the database is to be migrated, it is a copy of a
// template with our migrations, which is made once on each server.
func create(ctx context.Context, superuser, name string, o options) error {
	conn, err := pgx.Connect(ctx, superuser)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	template := "template0"
	if o.migrated {
		if template, err = migratedTemplate(ctx, conn); err != nil {
			return fmt.Errorf("migrated template: %w", err)
		}
	}
	return copyDatabase(ctx, conn, name, template, o.encoding)
}

func copyDatabase(ctx context.Context, conn *pgx.Conn, name, template, encoding string) error {
	var version int
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int / 10000`).Scan(&version); err != nil {
		return err
	}
	sql := `CREATE DATABASE "` + name + `" TEMPLATE "` + template + `"`
	if encoding != "" {
		sql += ` ENCODING '` + encoding + `' LC_COLLATE 'C' LC_CTYPE 'C'`
	} else {
		sql += ` ENCODING 'UTF8'`
	}
	if version >= 15 {
		sql += ` STRATEGY FILE_COPY` // a quarter of the work of writing it all to the WAL
	}
	_, err := conn.Exec(ctx, sql)
	return err
}

// migratedTemplate returns the name of the template with our migrations, and makes it if it is not
// there.
func migratedTemplate(ctx context.Context, conn *pgx.Conn) (string, error) {
	sum := sha256.New()
	for _, m := range migrations.All() {
		sum.Write([]byte(m.SQL))
	}
	name := fmt.Sprintf("sagaz_migrated_%x", sum.Sum(nil)[:8])
	if there, err := isTemplate(ctx, conn, name); there || err != nil {
		return name, err
	}
	// until the connection ends
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(templateLock)); err != nil {
		return "", err
	}
	if there, err := isTemplate(ctx, conn, name); there || err != nil {
		return name, err // made while we waited
	}
	// left by a process that was killed half-way
	if _, err := conn.Exec(ctx, `DROP DATABASE IF EXISTS "`+name+`" WITH (FORCE)`); err != nil {
		return "", err
	}
	if err := copyDatabase(ctx, conn, name, "template0", ""); err != nil {
		return "", err
	}
	cfg := conn.Config().Copy()
	cfg.Database = name
	inside, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return "", err
	}
	if err := errors.Join(migrate(ctx, inside), inside.Close(ctx)); err != nil {
		return "", err
	}
	_, err = conn.Exec(ctx, `ALTER DATABASE "`+name+`" WITH IS_TEMPLATE true ALLOW_CONNECTIONS false`)
	return name, err
}

func isTemplate(ctx context.Context, conn *pgx.Conn, name string) (bool, error) {
	var there bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datistemplate)`, name).Scan(&there)
	return there, err
}
