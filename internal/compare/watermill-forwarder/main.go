// Command watermill-forwarder is the outbox of Watermill, a library for event-driven Go programs,
// as its documents build one: a subscriber that polls a table of PostgreSQL, and the forwarder,
// which publishes each message to the topic that it names.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	brokers := flag.String("brokers", "", "an address of Kafka")
	topic := flag.String("topic", "", "the forwarder's topic: its table is watermill_TOPIC")
	flag.Parse()
	if err := run(ctx, os.Getenv("DATABASE_URL"), *brokers, *topic); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "watermill-forwarder:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dsn, brokers, topic string) error {
	log := watermill.NewSlogLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	db, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	from, err := sql.NewSubscriber(sql.BeginnerFromPgx(db), sql.SubscriberConfig{
		ConsumerGroup:    "forwarder",
		PollInterval:     10 * time.Millisecond,
		SchemaAdapter:    sql.DefaultPostgreSQLSchema{SubscribeBatchSize: 1000},
		OffsetsAdapter:   sql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
	}, log)
	if err != nil {
		return err
	}
	cfg := kafka.DefaultSaramaSyncPublisherConfig()
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	key := func(_ string, m *message.Message) (string, error) { return m.Metadata.Get("aggregate_id"), nil }
	to, err := kafka.NewPublisher(kafka.PublisherConfig{
		Brokers: []string{brokers}, Marshaler: kafka.NewWithPartitioningMarshaler(key), OverwriteSaramaConfig: cfg,
	}, log)
	if err != nil {
		return err
	}
	f, err := forwarder.NewForwarder(from, to, log, forwarder.Config{ForwarderTopic: topic})
	if err != nil {
		return err
	}
	return f.Run(ctx)
}
