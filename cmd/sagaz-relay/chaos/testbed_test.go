package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// testbed is what all rounds of a run share: the binary, the servers, and the network between them
// and the relays.
type testbed struct {
	program string

	pg *pgserver.Server
	// toPG has a link for each relay.
	toPG [maxPods]*link

	// Brokers, nil without them.
	kafka    *brokertest.KafkaServer
	rabbit   *brokertest.RabbitMQServer
	toKafka  *link
	toRabbit *link

	pgMu, kafkaMu, rabbitMu sync.Mutex // held by the fault that has the server
}

// newTestbed starts the servers. They end with the test.
func newTestbed(t *testing.T, brokers bool) *testbed {
	t.Helper()
	s := &testbed{program: program.Path(t)}
	s.pg = pgtest.OwnServer(t, pgtest.Version(), nil)
	for i := range s.toPG {
		s.toPG[i] = newLink(t)
		s.toPG[i].connect(fmt.Sprintf("127.0.0.1:%d", s.pg.Port()))
	}
	if !brokers {
		return s
	}
	s.toKafka, s.toRabbit = newLink(t), newLink(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var both sync.WaitGroup
	var errs [2]error
	both.Go(func() {
		s.kafka, errs[0] = brokertest.StartKafka(ctx, brokertest.KafkaOptions{
			Advertise: s.toKafka.addr, Config: []string{"auto.create.topics.enable=false"},
		})
	})
	both.Go(func() { s.rabbit, errs[1] = brokertest.StartRabbitMQ(ctx, brokertest.RabbitMQOptions{}) })
	both.Wait()
	t.Cleanup(func() {
		if s.kafka != nil {
			errs[0] = s.kafka.Close()
		}
		if s.rabbit != nil {
			errs[1] = s.rabbit.Close()
		}
		if err := errors.Join(errs[:]...); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	s.toKafka.connect(s.kafka.SASLPlaintext)
	s.toRabbit.connect(host(s.rabbit.URL))
	return s
}

// heal opens every link. The servers run: whoever stopped one has started it.
func (s *testbed) heal() {
	for _, l := range append(s.toPG[:], s.toKafka, s.toRabbit) {
		if l != nil {
			l.heal(false)
		}
	}
}

// host is host:port of a URL.
func host(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "" // it holds a password, and is not shown
	}
	return u.Host
}

// via is the URL with another host:port.
func via(raw, addr string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	u.Host = addr
	return u.String()
}

// keep is where the logs of a round go: below CHAOS_DIR, where they stay, or where the test's files
// go.
func keep(t *testing.T, seed uint64) string {
	t.Helper()
	root := os.Getenv("CHAOS_DIR")
	if root == "" {
		return t.TempDir()
	}
	dir, err := filepath.Abs(filepath.Join(root, fmt.Sprint(seed)))
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		t.Fatalf("CHAOS_DIR: %v", err)
	}
	return dir
}
