package cdc

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// common is an ordinary connection that the streams of this process have together, for one purpose.
// It is made when it is needed, and again when it is broken, and ends with the last stream.
type common struct {
	open func(context.Context) (*pgconn.PgConn, error)
	turn relay.Turn // whoever has it owns conn
	conn *pgconn.PgConn

	mu    sync.Mutex // guards users
	users int
}

// use runs f on the connection, which nothing else uses meanwhile.
func (c *common) use(ctx context.Context, f func(*pgconn.PgConn) error) error {
	if err := c.turn.Take(ctx); err != nil {
		return err
	}
	defer c.turn.Give()
	if c.conn == nil || c.conn.IsClosed() {
		conn, err := c.open(ctx)
		if err != nil {
			return err
		}
		c.conn = conn
	}
	return f(c.conn)
}

// join makes the connection outlive its use, until leave was called as often.
func (c *common) join() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users++
}

func (c *common) leave() {
	c.mu.Lock()
	c.users--
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if c.turn.Take(ctx) != nil {
		return // somebody uses it: a stream that has begun since, which leaves, too
	}
	defer c.turn.Give()
	c.mu.Lock()
	needed := c.users > 0
	c.mu.Unlock()
	if !needed && c.conn != nil {
		_ = c.conn.Close(ctx)
		c.conn = nil
	}
}
