package e2e

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
)

// private are brokers of this package alone, which its tests stop and kill, one test at a time.
var private struct {
	mu     sync.Mutex // held by the test that has them
	kafka  *brokertest.KafkaServer
	rabbit *brokertest.RabbitMQServer
}

// privateBrokers returns a Kafka and a RabbitMQ that this test may stop and kill until it ends.
// They run.
func privateBrokers(t testing.TB) (*brokertest.KafkaServer, *brokertest.RabbitMQServer) {
	t.Helper()
	private.mu.Lock()
	t.Cleanup(private.mu.Unlock)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var both sync.WaitGroup
	var errs [2]error
	both.Go(func() {
		if private.kafka == nil {
			private.kafka, errs[0] = brokertest.StartKafka(ctx, brokertest.KafkaOptions{})
		}
	})
	both.Go(func() {
		if private.rabbit == nil {
			private.rabbit, errs[1] = brokertest.StartRabbitMQ(ctx, brokertest.RabbitMQOptions{})
		}
	})
	both.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return private.kafka, private.rabbit
}

func closePrivate() {
	if private.kafka != nil {
		if err := private.kafka.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if private.rabbit != nil {
		if err := private.rabbit.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}
