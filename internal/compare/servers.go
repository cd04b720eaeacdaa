package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/peers"
	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
)

// servers are what all contestants share.
type servers struct {
	postgres *pgserver.Server
	kafka    *brokertest.KafkaServer
	rabbit   *brokertest.RabbitMQServer
	debezium peers.Debezium
	python   string

	admin   *pgx.Conn
	version string // of PostgreSQL
	dir     string

	o options

	relay, forwarder, logs string // absolute
}

// postgresSettings are the server's: as it comes, but for room, and without a checkpoint by the
// clock in the middle of a run. Each run has one just before it is timed.
var postgresSettings = map[string]string{
	"max_wal_size": "16GB", "checkpoint_timeout": "1h", "synchronous_commit": "on", "fsync": "on", "full_page_writes": "on",
}

// kafkaJVM has Java's own compilers compile what is busy, as in production.
var kafkaJVM = []string{"-XX:TieredStopAtLevel=4", "-Xmx1g"}

// bringUp installs and starts what these contestants need.
func bringUp(ctx context.Context, wanted []*contestant, o options, log io.Writer) (_ *servers, err error) {
	s := &servers{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for to, path := range map[*string]string{&s.relay: o.relay, &s.forwarder: o.forwarder, &s.logs: o.logs} {
		if *to, err = filepath.Abs(path); err != nil { // some run elsewhere
			return nil, err
		}
	}
	if err := os.MkdirAll(s.logs, 0o755); err != nil {
		return nil, fmt.Errorf("create directory for logs: %w", err)
	}
	if s.dir, err = os.MkdirTemp("", "sagaz-compare-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(s.dir, 0o755); err != nil { // PostgreSQL runs as somebody else when we are root
		return nil, err
	}
	needs := func(match func(*contestant) bool) bool { return slices.ContainsFunc(wanted, match) }
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		if err := peers.EnsureRecvlogical(gctx, log); err != nil {
			return err
		}
		s.postgres, err = pgserver.Start(gctx, pgserver.Options{Version: "17", DataDir: filepath.Join(s.dir, "postgres"), Settings: postgresSettings, Log: log})
		return err
	})
	if needs(func(c *contestant) bool { return c.broker == "kafka" }) {
		group.Go(func() (err error) {
			if err := brokertest.EnsureKafka(gctx, log); err != nil {
				return err
			}
			s.kafka, err = brokertest.StartKafka(gctx, brokertest.KafkaOptions{Dir: filepath.Join(s.dir, "kafka"), JVM: kafkaJVM, Log: log})
			return err
		})
	}
	if needs(func(c *contestant) bool { return c.broker == "rabbitmq" }) {
		group.Go(func() (err error) {
			if err := brokertest.EnsureRabbitMQ(gctx, log); err != nil {
				return err
			}
			s.rabbit, err = brokertest.StartRabbitMQ(gctx, brokertest.RabbitMQOptions{Dir: filepath.Join(s.dir, "rabbitmq"), Log: log})
			return err
		})
	}
	group.Go(func() (err error) {
		if needs(func(c *contestant) bool { return c.program == "python" || c.program == "debezium" }) {
			if s.python, err = peers.Library(gctx, log); err != nil {
				return err
			}
		}
		if needs(func(c *contestant) bool { return c.program == "debezium" }) {
			s.debezium, err = peers.DebeziumServer(gctx, log)
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if s.admin, err = pgx.Connect(ctx, s.postgres.DSN("postgres")); err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	return s, s.admin.QueryRow(ctx, `SHOW server_version`).Scan(&s.version)
}

func (s *servers) close() error {
	var errs []error
	if s.admin != nil {
		errs = append(errs, s.admin.Close(context.Background()))
	}
	if s.kafka != nil {
		errs = append(errs, s.kafka.Close())
	}
	if s.rabbit != nil {
		errs = append(errs, s.rabbit.Close())
	}
	if s.postgres != nil {
		errs = append(errs, s.postgres.Close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}
