package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/debian"
	"github.com/sagaz-relay/relay/internal/testbed/pgserver"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/redistest"
)

// Part is one thing that the tests need.
type Part struct {
	name    string
	sources []source // in order of preference
}

// source is a place that may have a part. errUnavailable means to ask the next one; any other error
// is the end.
type source func(ctx context.Context, log io.Writer) (taken, error)

// errUnavailable: this source was not asked for, and it is not there.
var errUnavailable = errors.New("not available")

// taken is a part that is there.
type taken struct {
	from  string       // for the line in the log
	env   []string     // how the command finds it
	close func() error // nil when it is not ours
}

// take goes through the sources. A source that is there but does not work is logged in a line, and
// the next one is asked: Docker may run and still not be able to fetch an image.
func (p Part) take(ctx context.Context, log io.Writer) (taken, error) {
	for i, source := range p.sources {
		up, err := source(ctx, log)
		var stop *fatal
		switch {
		case err == nil:
			return up, nil
		case ctx.Err() != nil:
			return taken{}, fmt.Errorf("%s: %w", p.name, context.Cause(ctx))
		case errors.As(err, &stop):
			return taken{}, fmt.Errorf("%s: %w", p.name, err)
		case i == len(p.sources)-1:
			return taken{}, fmt.Errorf("%s cannot be had: %w", p.name, err)
		case !errors.Is(err, errUnavailable):
			fmt.Fprintf(log, "testenv: %s: %v; trying the next source\n", p.name, err)
		}
	}
	return taken{}, fmt.Errorf("%s has no source", p.name)
}

// fatal is an error of a source that was asked for by name, for which another one is no
// replacement.
type fatal struct{ error }

func (f *fatal) Unwrap() error { return f.error }

// Choose lists the parts with their sources. work is a directory for what they leave.
func Choose(versions, brokers, work string, log io.Writer) ([]Part, error) {
	var parts []Part
	for _, version := range strings.FieldsFunc(List(versions), func(r rune) bool { return r == ',' }) {
		if _, ok := pgserver.Versions[version]; !ok && os.Getenv("SAGAZ_TEST_POSTGRES_"+version) == "" {
			return nil, fmt.Errorf("-postgres=%s: no PostgreSQL %q here, want some of 14, 15, 16, 17, 18", versions, version)
		}
		parts = append(parts, Part{"PostgreSQL " + version, []source{postgresAt(version), postgresHere(version, work)}})
	}
	// One look for all parts. What it finds is reported only if it matters.
	docker := sync.OnceValue(func() error { return brokertest.DockerRuns(context.Background()) })
	for _, broker := range strings.FieldsFunc(List(brokers), func(r rune) bool { return r == ',' }) {
		switch broker {
		case "kafka":
			parts = append(parts, Part{"Kafka", []source{kafkaAt, inDocker(docker, kafka(work, true)), kafka(work, false)}})
		case "rabbitmq":
			parts = append(parts, Part{"RabbitMQ", []source{rabbitAt, inDocker(docker, rabbit(work, true)), rabbit(work, false)}})
		case "redis":
			parts = append(parts, Part{"Redis", []source{redisHere}})
		default:
			return nil, fmt.Errorf("-brokers=%s: no broker %q here, want some of kafka, rabbitmq, redis", brokers, broker)
		}
	}
	return parts, nil
}

// Compiler is the C compiler that -race needs.
func Compiler() Part { return Part{"C compiler", []source{compiler}} }

// compiler is what -race needs in addition to Go.
func compiler(ctx context.Context, log io.Writer) (taken, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "CC").Output()
	if err != nil {
		return taken{}, fmt.Errorf("go env CC: %w", err)
	}
	if cc := strings.Fields(string(out)); len(cc) > 0 {
		if path, err := exec.LookPath(cc[0]); err == nil {
			return taken{from: path}, nil
		}
	}
	if err := debian.Install(ctx, log, "gcc", "libc6-dev"); err != nil {
		return taken{}, err
	}
	return taken{from: "installed"}, nil
}

func postgresAt(version string) source {
	return func(ctx context.Context, _ io.Writer) (taken, error) {
		name := "SAGAZ_TEST_POSTGRES_" + version
		dsn := os.Getenv(name)
		if dsn == "" {
			return taken{}, errUnavailable
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return taken{}, &fatal{fmt.Errorf("%s: %w (unset it to have one started)", name, err)}
		}
		defer conn.Close(ctx)
		var walLevel string
		if err := conn.QueryRow(ctx, "SHOW wal_level").Scan(&walLevel); err != nil {
			return taken{}, &fatal{fmt.Errorf("%s: SHOW wal_level: %w", name, err)}
		}
		if walLevel != "logical" {
			return taken{}, &fatal{fmt.Errorf("%s: wal_level is %s: ALTER SYSTEM SET wal_level = logical, and restart it", name, walLevel)}
		}
		return taken{from: "from " + name}, nil
	}
}

func postgresHere(version, work string) source {
	return func(ctx context.Context, log io.Writer) (taken, error) {
		s, err := pgserver.Start(ctx, pgserver.Options{
			Version: version, DataDir: filepath.Join(work, "postgres-"+version), Settings: pgtest.Fast(), Log: log,
		})
		if err != nil {
			return taken{}, err
		}
		return taken{
			from:  "embedded " + pgserver.Versions[version] + " on this machine",
			env:   []string{"SAGAZ_TEST_POSTGRES_" + version + "=" + s.DSN("postgres")},
			close: s.Close,
		}, nil
	}
}

// inDocker is start, if Docker runs.
func inDocker(docker func() error, start source) source {
	return func(ctx context.Context, log io.Writer) (taken, error) {
		if docker() != nil {
			return taken{}, errUnavailable
		}
		return start(ctx, log)
	}
}

func kafkaAt(ctx context.Context, _ io.Writer) (taken, error) {
	addr := os.Getenv("SAGAZ_TEST_KAFKA")
	if addr == "" {
		return taken{}, errUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := (&brokertest.KafkaServer{Plaintext: addr}).Ping(ctx); err != nil {
		return taken{}, &fatal{fmt.Errorf("SAGAZ_TEST_KAFKA: %w (unset it to have one started)", err)}
	}
	return taken{from: "from SAGAZ_TEST_KAFKA"}, nil
}

func kafka(work string, docker bool) source {
	return func(ctx context.Context, log io.Writer) (taken, error) {
		if !docker {
			if err := brokertest.EnsureKafka(ctx, log); err != nil {
				return taken{}, err
			}
		}
		k, err := brokertest.StartKafka(ctx, brokertest.KafkaOptions{Dir: dir(work, "kafka", docker), Docker: docker, Log: log})
		if err != nil {
			return taken{}, err
		}
		up := taken{from: brokertest.KafkaVersion + " " + where(docker), env: []string{"SAGAZ_TEST_KAFKA=" + k.Plaintext}, close: k.Close}
		return withState(up, k, "SAGAZ_TEST_KAFKA_STATE", filepath.Join(work, "kafka.json"), docker)
	}
}

func rabbitAt(ctx context.Context, _ io.Writer) (taken, error) {
	url := os.Getenv("SAGAZ_TEST_RABBITMQ")
	if url == "" {
		return taken{}, errUnavailable
	}
	if err := (&brokertest.RabbitMQServer{URL: url}).Ping(ctx); err != nil {
		return taken{}, &fatal{fmt.Errorf("SAGAZ_TEST_RABBITMQ: %w (unset it to have one started)", err)}
	}
	return taken{from: "from SAGAZ_TEST_RABBITMQ"}, nil
}

func rabbit(work string, docker bool) source {
	return func(ctx context.Context, log io.Writer) (taken, error) {
		if !docker {
			if err := brokertest.EnsureRabbitMQ(ctx, log); err != nil {
				return taken{}, err
			}
		}
		r, err := brokertest.StartRabbitMQ(ctx, brokertest.RabbitMQOptions{Dir: dir(work, "rabbitmq", docker), Docker: docker, Log: log})
		if err != nil {
			return taken{}, err
		}
		up := taken{from: where(docker), env: []string{"SAGAZ_TEST_RABBITMQ=" + r.URL}, close: r.Close}
		return withState(up, r, "SAGAZ_TEST_RABBITMQ_STATE", filepath.Join(work, "rabbitmq.json"), docker)
	}
}

// redisHere brings the program: each test starts servers of its own.
func redisHere(ctx context.Context, log io.Writer) (taken, error) {
	if err := redistest.Ensure(ctx, log); err != nil {
		return taken{}, err
	}
	return taken{from: "on this machine, one for each test"}, nil
}

func where(docker bool) string {
	if docker {
		return "in Docker"
	}
	return "on this machine"
}

// dir differs between the sources, so that one that comes second does not find the rest of the
// first.
func dir(work, broker string, docker bool) string {
	if docker {
		broker += "-docker"
	}
	return filepath.Join(work, broker)
}

// withState writes the broker's exported fields where the tests find them. The tests start brokers
// of their own where this one came from.
func withState(up taken, broker any, variable, path string, docker bool) (taken, error) {
	state, err := json.MarshalIndent(broker, "", "\t")
	if err == nil {
		err = os.WriteFile(path, state, 0o644)
	}
	if err != nil {
		return taken{}, errors.Join(&fatal{fmt.Errorf("write %s: %w", path, err)}, up.close())
	}
	up.env = append(up.env, variable+"="+path)
	if docker {
		up.env = append(up.env, "SAGAZ_TEST_DOCKER=1")
	}
	return up, nil
}
