package brokertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// startTimeout is far above the 5 to 10 s that a broker needs on an idle machine, because tests of
// other packages run meanwhile.
const startTimeout = 3 * time.Minute

// started are the brokers that this test process started on demand.
var started struct {
	sync.Mutex
	kafka  *KafkaServer
	rabbit *RabbitMQServer
	errs   [2]error // a start that did not work is not tried again by every test
}

// M is what a *testing.M can do.
type M interface{ Run() int }

// Main runs the tests and stops what Kafka and RabbitMQ started for them. Every package that calls
// those has
//
//	func TestMain(m *testing.M) { brokertest.Main(m) }
func Main(m M) { os.Exit(Run(m)) }

// Run is Main for a TestMain that has more to do: it returns the exit code.
func Run(m M) int {
	defer func() {
		started.Lock()
		defer started.Unlock()
		if started.kafka != nil {
			started.kafka.Close()
		}
		if started.rabbit != nil {
			started.rabbit.Close()
		}
	}()
	return m.Run()
}

// Closing wraps m so that its Run stops the brokers, too. It goes together with pgtest and goleak:
// goleak.VerifyTestMain(brokertest.Closing(pgtest.Closing(m))).
func Closing(m M) M { return closing{m} }

type closing struct{ m M }

func (c closing) Run() int { return Run(c.m) }

// Kafka returns the broker that the tests of this run share. It must not be stopped; Start, Stop
// and Kill are for a broker of StartKafka. A test that needs a listener that the broker of the
// environment does not have fails.
func Kafka(t testing.TB) *KafkaServer {
	t.Helper()
	if addr := os.Getenv("SAGAZ_TEST_KAFKA"); addr != "" {
		k := &KafkaServer{}
		readState(t, "SAGAZ_TEST_KAFKA_STATE", k)
		k.Plaintext = addr
		return k
	}
	started.Lock()
	defer started.Unlock()
	if started.kafka == nil && started.errs[0] == nil {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		started.kafka, started.errs[0] = StartKafka(ctx, KafkaOptions{Log: os.Stderr})
	}
	if started.errs[0] != nil {
		t.Fatalf("%v\n(make test brings what is missing; SAGAZ_TEST_KAFKA=host:port uses a broker that runs already)", started.errs[0])
	}
	return started.kafka
}

// RabbitMQ returns the broker that the tests of this run share. It must not be stopped; see Kafka.
func RabbitMQ(t testing.TB) *RabbitMQServer {
	t.Helper()
	if addr := os.Getenv("SAGAZ_TEST_RABBITMQ"); addr != "" {
		r := &RabbitMQServer{}
		readState(t, "SAGAZ_TEST_RABBITMQ_STATE", r)
		r.URL = addr
		if u, err := url.Parse(addr); err == nil && u.User != nil {
			r.User = u.User.Username()
			r.Password, _ = u.User.Password()
		}
		return r
	}
	started.Lock()
	defer started.Unlock()
	if started.rabbit == nil && started.errs[1] == nil {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		started.rabbit, started.errs[1] = StartRabbitMQ(ctx, RabbitMQOptions{Log: os.Stderr})
	}
	if started.errs[1] != nil {
		t.Fatalf("%v\n(make test brings what is missing; SAGAZ_TEST_RABBITMQ=amqp://… uses a broker that runs already)", started.errs[1])
	}
	return started.rabbit
}

func readState(t testing.TB, variable string, broker any) {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		return
	}
	state, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(state, broker)
	}
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
}

// Topic creates a topic for one test and returns its name; it is deleted when the test ends.
func (k *KafkaServer) Topic(t testing.TB, partitions int) string {
	t.Helper()
	name := "test-" + strings.ToLower(rand.Text()[:12])
	transport := &kafka.Transport{}
	client := &kafka.Client{Addr: kafka.TCP(k.Plaintext), Timeout: 30 * time.Second, Transport: transport}
	answer, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: name, NumPartitions: partitions, ReplicationFactor: 1}},
	})
	if err == nil {
		err = answer.Errors[name]
	}
	if err != nil {
		t.Fatalf("create topic %s: %v", name, err)
	}
	t.Cleanup(func() {
		defer transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{name}})
	})
	return name
}

// ready calls try until it returns no error. It gives up when the process (nil for a container) or
// ctx ends, and then shows the logs.
func ready(ctx context.Context, p *child.Process, name string, logs func() string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not ready after %v", startTimeout))
	defer cancel()
	var ended <-chan struct{}
	if p != nil {
		ended = p.Done()
	}
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-poll.C:
		case <-ended:
			return fmt.Errorf("%s ended while starting: %w\n%s", name, endOf(p), logs())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last answer: %w)\n%s", name, context.Cause(ctx), err, logs())
		}
	}
}

func endOf(p *child.Process) error {
	if err := p.Err(); err != nil {
		return err
	}
	return errors.New("exit status 0")
}

func progress(w io.Writer, format string, args ...any) {
	if w != nil {
		fmt.Fprintf(w, format+"\n", args...)
	}
}

func tail(path string, lines int) string {
	content, err := os.ReadFile(path)
	if err != nil || len(content) == 0 {
		return ""
	}
	return lastLines(content, lines) + "\n"
}

func lastLines(text []byte, n int) string {
	lines := strings.Split(string(bytes.TrimSpace(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
