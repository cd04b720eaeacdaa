package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/redistest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func publish(t testing.TB, s *Sink, recs ...*relay.Record) error {
	t.Helper()
	return s.Publish(soon(t), recs)
}

func refusal(t testing.TB, err error, reason relay.Reason, text string) {
	t.Helper()
	if r, ok := relay.Refused(err); !ok || r.Reason != reason || !strings.Contains(err.Error(), text) {
		t.Fatalf("got %v, want it refused as %s with %q", err, reason, text)
	}
}

func transient(t testing.TB, err error, text string) {
	t.Helper()
	if _, refused := relay.Refused(err); err == nil || refused || !strings.Contains(err.Error(), text) {
		t.Fatalf("got %v, want a transient error with %q", err, text)
	}
}

func TestOutOfMemory(t *testing.T) {
	server := redistest.Start(t)
	stream := newStream()
	s := newSink(t, config(server))
	set := func(value string) {
		ask(t, server.URL, func(ctx context.Context, rdb *goredis.Client) error {
			return rdb.ConfigSet(ctx, "maxmemory", value).Err()
		})
	}
	set("1") // less than it has
	recs := sinktest.Records(stream, "a", 0, 3)
	transient(t, publish(t, s, recs...), "RELAY_REDIS_MAXLEN")
	set("0")
	if err := publish(t, s, recs...); err != nil {
		t.Fatal(err)
	}
	sinktest.CheckOrder(t, consume(t, server.URL, stream), map[string]int{"a": 3}, false)
}

// Of two records of one key the first fails and the second would not: it must not overtake.
func TestNothingOvertakesAFailure(t *testing.T) {
	server := redistest.Start(t, "--proto-max-bulk-len", "1mb")
	stream := newStream()
	s := newSink(t, config(server))
	recs := []*relay.Record{sinktest.NewRecord(stream, "a", 0, 2<<20), sinktest.NewRecord(stream, "a", 1, 0), sinktest.NewRecord(stream, "b", 0, 0)}
	err := publish(t, s, recs...)
	refusal(t, err, relay.ReasonTooLarge, "proto-max-bulk-len")
	var be *relay.BatchError
	if !errors.As(err, &be) || !errors.Is(be.Errs[1], relay.ErrBehind) {
		t.Fatalf("got %v, want the one behind it held", err)
	}
	if be.Errs[2] != nil { // which went down with the connection
		if err := publish(t, s, recs[2]); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range consume(t, server.URL, stream) {
		if d.Key != "b" {
			t.Errorf("a record of %s is there", d.Key)
		}
	}
}

func TestStreamsAreNotMade(t *testing.T) {
	server := redistest.Start(t)
	cfg := config(server)
	cfg.MakeStreams = false
	s := newSink(t, cfg)
	stream, wrong := newStream(), newStream()
	rec := sinktest.NewRecord(stream, "k", 0, 0)
	refusal(t, publish(t, s, rec), relay.ReasonUnknownTopic, "MKSTREAM")
	ask(t, server.URL, func(ctx context.Context, rdb *goredis.Client) error { return rdb.Set(ctx, wrong, 1, 0).Err() })
	problems, err := s.CheckRoutes(soon(t), []relay.Route{{Topic: stream}, {Topic: wrong}, {Topic: stream}})
	if err != nil || len(problems) != 3 || !strings.Contains(problems[0].Fix, "XGROUP CREATE") || !strings.Contains(problems[1].Problem, "is a string") {
		t.Errorf("got %+v, %v", problems, err)
	}
	ask(t, server.URL, func(ctx context.Context, rdb *goredis.Client) error {
		return rdb.XGroupCreateMkStream(ctx, stream, "readers", "$").Err()
	})
	if err := publish(t, s, rec); err != nil {
		t.Error(err)
	}
	if problems, err := s.CheckRoutes(soon(t), []relay.Route{{Topic: stream}}); err != nil || len(problems) != 0 {
		t.Errorf("got %+v, %v", problems, err)
	}
}

func TestMaxLen(t *testing.T) {
	server := redistest.Start(t)
	cfg := config(server)
	cfg.MaxLen = 100
	stream := newStream()
	s := newSink(t, cfg)
	for first := 0; first < 500; first += 100 {
		if err := publish(t, s, sinktest.Records(stream, "k", first, 100)...); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(consume(t, server.URL, stream)); got < 100 || got > 300 {
		t.Errorf("%d entries, want about 100", got)
	}
}

func TestReplicas(t *testing.T) {
	primary := redistest.Start(t)
	cfg := config(primary)
	cfg.Replicas, cfg.Timeout = 1, 600*time.Millisecond
	stream := newStream()
	s := newSink(t, cfg)
	recs := sinktest.Records(stream, "k", 0, 2)
	err := publish(t, s, recs...)
	transient(t, err, "0 of 1 replicas")
	var be *relay.BatchError
	if !errors.As(err, &be) || !errors.Is(be.Errs[1], errHeld) {
		t.Errorf("got %v, want the second one held", err)
	}
	replica := redistest.Start(t, "--replicaof", fmt.Sprintf("127.0.0.1 %d", primary.Port), "--repl-diskless-sync-delay", "0")
	if _, err := sinktest.Offer(soon(t), s, recs); err != nil {
		t.Fatal(err)
	}
	sinktest.CheckOrder(t, consume(t, replica.URL, stream), map[string]int{"k": 2}, true)

	transient(t, publish(t, newSink(t, config(replica)), recs...), "this is a replica")
	ask(t, primary.URL, func(ctx context.Context, rdb *goredis.Client) error {
		return rdb.ConfigSet(ctx, "min-replicas-to-write", "3").Err()
	})
	transient(t, publish(t, s, recs...), "NOREPLICAS")
}

func TestRights(t *testing.T) {
	server := redistest.Start(t)
	stream := newStream()
	ask(t, server.URL, func(ctx context.Context, rdb *goredis.Client) error {
		for _, rule := range []string{
			"relay on >hunter2-relay ~" + stream + " +xadd +select +ping",
			"idle on >hunter2-idle ~* +select +ping",
			"default off",
		} {
			args := []any{"ACL", "SETUSER"}
			for _, word := range strings.Fields(rule) {
				args = append(args, word)
			}
			if err := rdb.Do(ctx, args...).Err(); err != nil {
				return err
			}
		}
		return nil
	})
	as := func(login string) *Sink {
		cfg := config(server)
		cfg.URL = strings.Replace(cfg.URL, "://", "://"+login, 1)
		return newSink(t, cfg)
	}
	s := as("relay:hunter2-relay@")
	if err := publish(t, s, sinktest.NewRecord(stream, "k", 0, 0)); err != nil {
		t.Fatal(err)
	}
	refusal(t, publish(t, s, sinktest.NewRecord("other", "k", 0, 0)), relay.ReasonRejected, "ACL SETUSER")
	transient(t, publish(t, as("idle:hunter2-idle@"), sinktest.NewRecord(stream, "k", 1, 0)), "+xadd")
	for _, login := range []string{"relay:hunter2-wrong@", ""} {
		err := as(login).Check(soon(t))
		transient(t, err, "REDIS_URL")
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a password is shown: %v", err)
		}
		transient(t, publish(t, as(login), sinktest.NewRecord(stream, "k", 1, 0)), "REDIS_URL")
	}
}

func TestCluster(t *testing.T) {
	server := redistest.Start(t, "--cluster-enabled", "yes")
	transient(t, publish(t, newSink(t, config(server)), sinktest.NewRecord("x", "k", 0, 0)), "Redis Cluster")
}

func TestUnreachable(t *testing.T) {
	server := redistest.Start(t)
	cfg := config(server)
	cfg.Timeout = 300 * time.Millisecond
	s := newSink(t, cfg)
	thaw := server.Freeze(t)
	transient(t, s.Check(soon(t)), "no answer in time")
	thaw()
	server.Kill(t)
	transient(t, s.Check(soon(t)), "nothing listens there")
	server.Restart(t)
	if err := s.Check(soon(t)); err != nil {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	certs, err := brokertest.NewCerts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"--tls-cert-file", certs.ServerCert, "--tls-key-file", certs.ServerKey, "--tls-ca-cert-file", certs.CAFile, "--tls-port"}
	start := func(clients string) string {
		port := redistest.Start(t).Port // a free one, taken by nobody in a moment
		server := redistest.Start(t, append(files, fmt.Sprint(port+10000), "--tls-auth-clients", clients)...)
		_ = server
		return fmt.Sprintf("rediss://127.0.0.1:%d/0", port+10000)
	}
	open, strict := start("no"), start("yes")
	for _, c := range []struct {
		name   string
		change func(*Config)
		fix    string // "" when it connects
	}{
		{"authority", func(c *Config) { c.URL, c.TLSCAFile = open, certs.CAFile }, ""},
		{"client certificate", func(c *Config) {
			c.URL, c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = strict, certs.CAFile, certs.ClientCert, certs.ClientKey
		}, ""},
		{"authority unknown", func(c *Config) { c.URL = open }, "RELAY_REDIS_TLS_CA_FILE"},
		{"wrong name", func(c *Config) { c.URL, c.TLSCAFile, c.TLSServerName = open, certs.CAFile, "redis.example" }, "RELAY_REDIS_TLS_SERVER_NAME"},
		{"no client certificate", func(c *Config) { c.URL, c.TLSCAFile = strict, certs.CAFile }, "RELAY_REDIS_TLS_CERT_FILE"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := DefaultConfig()
			c.change(&cfg)
			s := newSink(t, cfg)
			err := s.Check(soon(t))
			if c.fix != "" {
				transient(t, err, c.fix)
				return
			}
			if err == nil {
				err = publish(t, s, sinktest.Records(newStream(), "k", 0, 20)...)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// The lease ends at each question in turn; see the fence test of sinks/rabbitmq.
func TestFenceAtWrite(t *testing.T) {
	server := redistest.Start(t)
	stream := newStream()
	s := newSink(t, config(server))
	if err := publish(t, s, sinktest.NewRecord(stream, "connect", 0, 0)); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{10, 200_000} { // one write, and several
		for questions := int64(0); ; questions++ {
			before := len(consume(t, server.URL, stream))
			var left atomic.Int64
			left.Store(questions)
			err := s.Publish(relay.WithFence(soon(t), func() bool { return left.Add(-1) >= 0 }), []*relay.Record{sinktest.NewRecord(stream, "k", 0, size)})
			if err == nil {
				if questions < 2 {
					t.Errorf("%d bytes went out after %d questions: none was asked at the write", size, questions)
				}
				break
			}
			if !errors.Is(err, relay.ErrFence) || questions > 50 {
				t.Fatalf("%d bytes, %d questions: %v, want ErrFence", size, questions, err)
			}
			if got := len(consume(t, server.URL, stream)); got != before {
				t.Fatalf("%d bytes, %d questions answered with yes and then no: it arrived", size, questions)
			}
		}
	}
}

// What a connection that was given up carries is worked off before anything else is sent.
func TestUnfinishedConnection(t *testing.T) {
	server := redistest.Start(t)
	stream := newStream()
	s := newSink(t, config(server))
	recs := sinktest.Records(stream, "k", 0, 3)
	if err := publish(t, s, recs[0]); err != nil {
		t.Fatal(err)
	}
	thaw := server.Freeze(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := s.Publish(ctx, recs[1:]); err == nil {
		t.Fatal("a frozen server acknowledges")
	}
	ctx, cancel = context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := s.Publish(ctx, recs[1:]); !errors.Is(err, errUnfinished) {
		t.Errorf("got %v, want it to wait for the connection before", err)
	}
	thaw()
	if err := publish(t, s, recs[1:]...); err != nil {
		t.Fatal(err)
	}
	got := consume(t, server.URL, stream)
	sinktest.CheckOrder(t, got, map[string]int{"k": 3}, true)
	if len(got) != 4 {
		t.Errorf("%d entries, want 0, 1, 1 and 2: what was under way is worked off", len(got))
	}
}

func TestReadBack(t *testing.T) {
	server := redistest.Start(t)
	one, two := newStream(), newStream()
	s := newSink(t, config(server))
	if err := publish(t, s, sinktest.NewRecord(one, "old", 0, 0)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond) // times have milliseconds
	since := time.Now()
	recs := sinktest.Interleave(sinktest.Records(one, "a", 0, readPage+10), sinktest.Records(two, "b", 0, 3))
	if err := publish(t, s, recs...); err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]string)
	if err := ReadBack(soon(t), config(server), []string{one, "nobody", two}, since, func(s Stored) error {
		got[s.Stream] = append(got[s.Stream], s.EventID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := make(map[string][]string)
	for _, rec := range recs {
		want[rec.Topic] = append(want[rec.Topic], rec.EventID.String())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %d and %d entries, want %d and %d in their order", len(got[one]), len(got[two]), len(want[one]), len(want[two]))
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"default", func(*Config) {}, ""},
		{"all", func(c *Config) { c.URL = "rediss://user:p%40ss@[::1]:6380/12" }, ""},
		{"another protocol", func(c *Config) { c.URL = "amqp://u:hunter2@h" }, "REDIS_URL: want it to begin with redis://"},
		{"password with an at sign", func(c *Config) { c.URL = "redis://u:hunter2@x@h" }, "REDIS_URL: an @ is where none belongs"},
		{"password with a slash", func(c *Config) { c.URL = "redis://u:1/hunter2@h" }, "REDIS_URL:"},
		{"no number", func(c *Config) { c.URL = "redis://h/hunter2" }, "no number of a database"},
		{"parameter", func(c *Config) { c.URL = "redis://h/0?password=hunter2" }, "REDIS_URL:"},
		{"several", func(c *Config) { c.URL = "redis://a,b/0" }, "the host is no name"},
		{"numbers", func(c *Config) { c.MaxLen, c.Replicas, c.Timeout = -1, -1, 0 }, "RELAY_REDIS_MAXLEN=-1: want at least 1, or 0 to keep all\nRELAY_REDIS_REPLICAS=-1: want at least 0\nRELAY_REDIS_TIMEOUT=0s: want at least 100ms"},
		{"TLS file without TLS", func(c *Config) { c.TLSCAFile = "ca.pem" }, "has no effect without TLS: want REDIS_URL to begin with rediss://"},
		{"no such file", func(c *Config) { c.URL, c.TLSCAFile = "rediss://h", "/no/such" }, "RELAY_REDIS_TLS_CA_FILE: open"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := DefaultConfig()
			c.change(&cfg)
			err := cfg.Validate()
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
