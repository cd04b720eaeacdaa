package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/orders"
)

func newLoad(load func() (*settings, error)) *cobra.Command {
	var o orders.OutboxOptions
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Write order sagas into the outbox, to try an installation",
		Long: `load writes the events of made-up order sagas into saga_outbox of DATABASE_URL, as an application
would: some in one transaction, some sagas undone by compensations. It touches no other table. It
ends after --events or --for, or with SIGTERM, and prints what is committed.

Every event has a saga_id, the order's number as aggregate_id, the order's version in its payload,
and the headers correlation_id, saga_name, step_name and traceparent. To see events arrive without
a broker: BROKER_TYPE=stdout sagaz-relay run.

The relay delivers these to your brokers like all others. Do not run it where consumers mean
business.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Rate < 0 || o.Events < 0 || o.Duration < 0 || o.Writers < 1 || o.Writers > 100 {
				return usageError{errors.New("want --rate of 0 (no limit) or more, --events and --for of 0 (no end) or more, --writers from 1 to 100")}
			}
			s, err := load()
			if err != nil {
				return err
			}
			if err := s.database(); err != nil {
				return err
			}
			outbox := &orders.Outbox{
				Options: o,
				Connect: func(ctx context.Context) (*pgx.Conn, error) { return s.connect(ctx, "load") },
				Out:     cmd.OutOrStdout(), Progress: cmd.ErrOrStderr(),
			}
			return outbox.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Rate, "rate", 10, "events a second, 0 for as many as it takes")
	f.IntVar(&o.Events, "events", 0, "stop when so many are committed, 0 for no end")
	f.DurationVar(&o.Duration, "for", 0, "stop after this time, 0 for no end")
	f.IntVar(&o.Writers, "writers", 2, "concurrent writers")
	return cmd
}
