package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// notedSQL returns the sinks that were noted, best of this slot, and whether a relay has ever had a
// slot here.
const notedSQL = `SELECT coalesce((SELECT sinks FROM saga_outbox_relay WHERE sinks <> '' AND heir IS NULL ORDER BY slot = $1 DESC, renewed_at DESC LIMIT 1), ''),
	EXISTS (SELECT FROM saga_outbox_relay WHERE epoch > 0)`

// anySentSQL looks for a row that was sent. It may read a table of any size, once: only the first
// relay of a table runs it.
const anySentSQL = `SELECT EXISTS (SELECT FROM saga_outbox WHERE status = 'sent')`

const (
	beforeTimeout = 10 * time.Second
	sentTimeout   = 30 * time.Second
)

// Before implements relay.Store.
func (s *Store) Before(ctx context.Context, slot string) (relay.Before, error) {
	conn, err := s.connect(ctx, "check")
	if err != nil {
		return relay.Before{}, err
	}
	defer closeConn(conn)
	return ReadBefore(ctx, conn, slot)
}

// ReadBefore reads the same over a connection of the caller's, which is closed when a time limit is
// over.
func ReadBefore(ctx context.Context, conn *pgx.Conn, slot string) (b relay.Before, err error) {
	asking, cancel := context.WithTimeout(ctx, beforeTimeout)
	defer cancel()
	var sinks string
	var worked bool
	if err := conn.QueryRow(asking, notedSQL, slot).Scan(&sinks, &worked); err != nil {
		return b, fmt.Errorf("ask which sinks the last relay had: %w", setup(err))
	}
	if sinks != "" {
		b.Sinks = strings.Split(sinks, ",")
	}
	if worked {
		return b, nil
	}
	looking, cancel := context.WithTimeout(ctx, sentTimeout)
	defer cancel()
	err = conn.QueryRow(looking, anySentSQL).Scan(&b.Sent)
	if errors.Is(looking.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
		// So many rows and no answer: the table is in use, and where its events go is a question
		// worth asking.
		b.Sent = true
		return b, nil
	}
	if err != nil {
		return b, fmt.Errorf("ask whether any row was sent: %w", setup(err))
	}
	return b, nil
}
