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

// takeAnyBytes asks a database without an encoding for its bytes as they are. It cannot convert.
// Asked for UTF-8 it would refuse to send a row that is not, and with it all rows of the same
// statement, or the stream from there on. So the code that reads rows checks their bytes.
func takeAnyBytes(ctx context.Context, conn *pgconn.PgConn) error {
	if Encoding(conn) != AnyBytes {
		return nil
	}
	if _, err := conn.Exec(ctx, `SET client_encoding = '`+AnyBytes+`'`).ReadAll(); err != nil {
		return fmt.Errorf("set client_encoding: %w", err)
	}
	return nil
}
