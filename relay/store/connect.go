package store

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sagaz-relay/relay/relay/sessions"
)

// isPooled reports whether a pooler may run each transaction of the connection in another session;
// see sessions.About.
func isPooled(conn *pgx.Conn) bool { return sessions.Of(conn.PgConn()).Pooled }

// Pooled reports whether the last connection that was made went through a pooler, such as
// PgBouncer, in which no session is ours. Everything works then, but for replication; the lease is
// held by renewal alone, so a relay that dies is followed only after RELAY_LEASE_TTL.
func (s *Store) Pooled() bool { return s.pooled.Load() == pooledYes }

const (
	pooledNo  = 1
	pooledYes = 2
)

// describe registers the types of our Go values on a connection that gets no description of its
// statements.
func describe(conn *pgx.Conn) {
	conn.TypeMap().RegisterDefaultPgType(uuids{}, "_uuid")
	conn.TypeMap().RegisterDefaultPgType(pgtype.UUID{}, "uuid")
	conn.TypeMap().RegisterDefaultPgType(timestamp(0), "timestamptz")
	conn.TypeMap().RegisterDefaultPgType((*timestamp)(nil), "timestamptz")
}

// connect opens a connection for one purpose. Silence of the peer shows within seconds on both
// sides, not after the kernels' hours.
func (s *Store) connect(ctx context.Context, purpose string) (*pgx.Conn, error) {
	// ConnectTimeout is for one address, and not for the first statements.
	ctx, cancel := context.WithTimeout(ctx, s.conn.ConnectTimeout+factLeast)
	defer cancel()
	conn, err := sessions.Open(ctx, s.conn.ConnConfig, sessions.Options{Purpose: purpose, Direct: map[string]string{
		"tcp_keepalives_idle": "3", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3",
		"tcp_user_timeout": strconv.FormatInt(s.cfg.LeaseTTL.Milliseconds(), 10),
	}})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", s.conn, err)
	}
	s.noteEncoding(conn)
	if !isPooled(conn) {
		s.pooled.Store(pooledNo)
		return conn, nil
	}
	describe(conn)
	if s.pooled.Swap(pooledYes) != pooledYes {
		s.log.Warn("there is a pooler between us and the server: the lease is held by renewal alone, and nothing can be streamed", "address", s.conn.String())
	}
	return conn, nil
}
