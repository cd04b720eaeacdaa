package pgtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// A stranded connection receives nothing more, and the server does not learn that its client has
// gone. A new connection works.
func TestProxyStrand(t *testing.T) {
	t.Parallel()
	db := New(t)
	proxy := NewProxy(t, db.DSN)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	connect := func() (conn *pgx.Conn, pid int) {
		conn, err := pgx.Connect(ctx, proxy.DSN)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			t.Fatal(err)
		}
		return conn, pid
	}
	old, pid := connect()
	proxy.Strand()
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if _, err := old.Exec(short, `SELECT 1`); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stranded connection: got %v, want %v", err, context.DeadlineExceeded)
	}
	old.Close(ctx)
	conn, _ := connect()
	defer conn.Close(ctx)
	var there bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, pid).Scan(&there); err != nil || !there {
		t.Errorf("the server knows that its client has gone: %t, %v", !there, err)
	}
}
