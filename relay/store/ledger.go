package store

import (
	"context"
	"errors"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

var errNotBuilt = errors.New("not built")

func (l *lease) LastPosition() int64 { return 0 }

func (l *lease) Blocking(context.Context, func(string, uint32, int)) error { return nil }

func (l *lease) Due(context.Context, string, int, int) ([]relay.Entry, time.Duration, error) {
	return nil, -1, nil
}

func (l *lease) Resolve(context.Context, string, []relay.Outcome) error { return errNotBuilt }

func (l *lease) Counts(context.Context) ([]relay.LedgerCount, error) { return nil, nil }

func (l *lease) Confirm(context.Context, relay.LSN) error { return nil }
