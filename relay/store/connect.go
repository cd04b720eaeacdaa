package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// directSetting is a setting of our own that a connection asks for when it starts. In a session that does not have it afterwards, somebody between
// us and the server has started the session: a pooler. PgBouncer refuses it instead.
const directSetting = "sagaz_relay.direct"

// codeProtocolViolation is the SQLSTATE with which PgBouncer refuses settings that it does not know.
const codeProtocolViolation = "08P01"

// pooledMark is the key of CustomData that a connection through a pooler has.
const pooledMark = "pooled"

// isPooled reports whether a pooler may run each transaction of the connection in another session. Then a session has no state: no
// settings, no prepared statements with a name, no advisory locks, no origin.
func isPooled(conn *pgx.Conn) bool { return conn.PgConn().CustomData()[pooledMark] != nil }

// Pooled reports whether the last connection that was made went through a pooler, such as PgBouncer, in which no session is ours. Everything
// works then, but for replication; the lease is held by renewal alone, so a relay that dies is followed only after RELAY_LEASE_TTL.
func (s *Store) Pooled() bool { return s.pooled.Load() == pooledYes }

const (
	pooledNo  = 1
	pooledYes = 2
)

// connect opens a connection for one purpose. Silence of the peer shows within seconds on both sides, not after the kernels' hours.
func (s *Store) connect(ctx context.Context, purpose string) (*pgx.Conn, error) {
	cfg := s.conn.Copy()
	cfg.RuntimeParams["application_name"] = applicationName(purpose)
	cfg.RuntimeParams["datestyle"] = "ISO" // for the text form, in which pooled connections read
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: 2 * time.Second, Count: 3}}
	cfg.DialFunc = dialer.DialContext
	// ConnectTimeout is for one address, and not for the first statement.
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout+factLeast)
	defer cancel()
	direct := cfg.Copy()
	direct.RuntimeParams["tcp_keepalives_idle"] = "3"
	direct.RuntimeParams["tcp_keepalives_interval"] = "2"
	direct.RuntimeParams["tcp_keepalives_count"] = "3"
	direct.RuntimeParams["tcp_user_timeout"] = strconv.FormatInt(s.cfg.LeaseTTL.Milliseconds(), 10)
	direct.RuntimeParams[directSetting] = "yes"

	conn, err := pgx.ConnectConfig(ctx, direct)
	if err == nil {
		var is bool
		err = conn.QueryRow(ctx, `SELECT current_setting($1, true) IS NOT DISTINCT FROM 'yes'`, pgx.QueryExecModeExec, directSetting).Scan(&is)
		if err == nil && is {
			s.pooled.Store(pooledNo)
			return conn, nil
		}
		closeConn(conn)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", s.address(), err)
		}
	} else if pg := (*pgconn.PgError)(nil); !errors.As(err, &pg) || pg.Code != codeProtocolViolation {
		return nil, fmt.Errorf("connect to %s: %w", s.address(), plainConnectError(err))
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec // no prepared statement, not even for two round trips
	cfg.StatementCacheCapacity, cfg.DescriptionCacheCapacity = 0, 0
	if conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", s.address(), plainConnectError(err))
	}
	conn.PgConn().CustomData()[pooledMark] = true
	// Without a description of the statement, parameters have the types of their Go values.
	conn.TypeMap().RegisterDefaultPgType(uuids{}, "_uuid")
	conn.TypeMap().RegisterDefaultPgType(pgtype.UUID{}, "uuid")
	conn.TypeMap().RegisterDefaultPgType(timestamp(0), "timestamptz")
	conn.TypeMap().RegisterDefaultPgType((*timestamp)(nil), "timestamptz")
	if s.pooled.Swap(pooledYes) != pooledYes {
		s.log.Warn("there is a pooler between us and the server: the lease is held by renewal alone, and nothing can be streamed", "address", s.address())
	}
	return conn, nil
}
