package bench

import (
	"context"

	"github.com/sagaz-relay/relay/relay"
)

// relayArgs are the arguments that start a relay for what is measured.
func (o Options) relayArgs() []string {
	if !o.Discard && !o.NoMarks {
		return []string{"run"}
	}
	args := o.RelayCommand
	if o.Discard {
		args = append(args[:len(args):len(args)], "--discard")
	}
	if o.NoMarks {
		args = append(args[:len(args):len(args)], "--no-marks")
	}
	return args
}

// Discard is a sink that does nothing with its records.
type Discard struct{}

// Name implements relay.Sink.
func (Discard) Name() string { return "discard" }

// Publish implements relay.Sink.
func (Discard) Publish(context.Context, []*relay.Record) error { return nil }

// Close implements relay.Sink.
func (Discard) Close() error { return nil }

// Unmarked is a store whose leases write no marks: they report them written.
func Unmarked(of relay.Store) relay.Store { return unmarked{of} }

type unmarked struct{ relay.Store }

// Acquire implements relay.Store.
func (u unmarked) Acquire(ctx context.Context, shard relay.Shard) (relay.Lease, error) {
	l, err := u.Store.Acquire(ctx, shard)
	if err != nil {
		return nil, err
	}
	return unmarkedLease{l}, nil
}

type unmarkedLease struct{ relay.Lease }

// Mark implements relay.Marks.
func (unmarkedLease) Mark(context.Context, relay.MarkBatch) ([]int, error) { return nil, nil }
