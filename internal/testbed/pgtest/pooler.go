package pgtest

import (
	"context"
	"os"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
)

// Pooled starts a PgBouncer in transaction mode in front of the database's server, and returns the
// database's DSN by way of it. It ends with the test. settings are further lines for its
// configuration.
func (db *DB) Pooled(t testing.TB, settings ...string) (dsn string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	p, err := pgserver.StartPooler(ctx, db.DSN, os.Stderr, settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close PgBouncer: %v", err)
		}
	})
	return p.DSN
}
