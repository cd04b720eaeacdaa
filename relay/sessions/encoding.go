package sessions

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// AnyBytes is the encoding of a database that takes any bytes as text.
const AnyBytes = "SQL_ASCII"

// Encoding is the encoding of a session's database.
func Encoding(conn *pgconn.PgConn) string { return conn.ParameterStatus("server_encoding") }

// settleEncoding asks a database without an encoding for its bytes as they are. It cannot convert,
// and asked for UTF-8 it would refuse to send a row that is not, and with it all that were asked
// for together, or the stream from there on. So whoever reads rows looks at them.
func settleEncoding(ctx context.Context, conn *pgconn.PgConn) error {
	if Encoding(conn) != AnyBytes {
		return nil
	}
	if _, err := conn.Exec(ctx, `SET client_encoding = '`+AnyBytes+`'`).ReadAll(); err != nil {
		return fmt.Errorf("set client_encoding: %w", err)
	}
	return nil
}
