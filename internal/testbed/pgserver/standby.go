package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// NewStandby makes a hot standby of s and waits until it takes connections. It streams by the
// physical slot of the given name, which is made, and from PostgreSQL 17 on it copies the logical
// slots that have failover = true. settings are added to those of s, or override them. s is stopped
// for the copy, cleanly, and started again. The caller closes both.
//
// What the copying of slots needs (PostgreSQL docs, "Replication Slot Synchronization") is set:
// sync_replication_slots, hot_standby_feedback, primary_slot_name, and a dbname in
// primary_conninfo. The other half is a setting of the primary: synchronized_standby_slots, with
// this slot, keeps logical decoding from running ahead of the standby.
func (s *Server) NewStandby(ctx context.Context, slot string, settings map[string]string) (*Server, error) {
	conn, err := pgx.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		return nil, fmt.Errorf("make a slot for the standby: %w", err)
	}
	_, err = conn.Exec(ctx, `SELECT pg_create_physical_replication_slot($1, true)`, slot)
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return nil, fmt.Errorf("make a slot for the standby: %w", err)
	}
	standby := &Server{version: s.version, binDir: s.binDir, ownDir: true, password: s.password, settings: maps.Clone(s.settings)}
	standby.settings["primary_slot_name"] = slot
	standby.settings["primary_conninfo"] = "host=127.0.0.1 port=" + strconv.Itoa(s.port) + " user=postgres password=" + s.password + " dbname=postgres sslmode=disable"
	standby.settings["hot_standby_feedback"] = "on"
	if version, err := strconv.Atoi(s.version); err == nil && version >= 17 {
		standby.settings["sync_replication_slots"] = "on"
	}
	maps.Copy(standby.settings, settings)
	if standby.dataDir, err = os.MkdirTemp("", "sagaz-postgres-"+s.version+"-standby-"); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	if err := s.Stop(ctx); err != nil {
		return nil, errors.Join(err, standby.Close())
	}
	err = errors.Join(standby.copyFrom(s.dataDir), s.Start(ctx))
	if err == nil {
		err = standby.startFirst(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, standby.Close())
	}
	return standby, nil
}

// copyFrom fills the data directory from that of a server that is down, without its slots, and
// makes it a standby's.
func (s *Server) copyFrom(primary string) error {
	err := filepath.WalkDir(primary, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(primary, path)
		switch {
		case err != nil || name == "server.log":
			return err
		case entry.IsDir() && filepath.Dir(name) == "pg_replslot":
			return fs.SkipDir
		case entry.IsDir():
			if err := os.MkdirAll(s.in(name), 0o700); err != nil {
				return err
			}
		default:
			if err := copyFile(s.in(name), path); err != nil {
				return err
			}
		}
		return giveTo(s.in(name))
	})
	if err != nil {
		return fmt.Errorf("copy the data directory: %w", err)
	}
	return errors.Join(s.write("standby.signal", ""), s.writeSettings())
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Promote makes a standby a primary, and waits until it takes writes.
func (s *Server) Promote(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing depends on it
	var done bool
	if err := conn.QueryRow(ctx, `SELECT pg_promote(true, 120)`).Scan(&done); err != nil || !done {
		return fmt.Errorf("promote (done: %t): %w; the log ends with\n%s", done, err, s.LogTail(20))
	}
	return nil
}
