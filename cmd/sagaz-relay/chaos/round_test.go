package chaos

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// patience bounds what must come in the end, on a machine that runs other tests too.
const patience = 90 * time.Second

// round is one plan carried out, in a database of its own.
type round struct {
	t       *testing.T
	testbed *testbed
	plan    *plan
	db      *pgtest.DB
	dir     string // logs, and what the sink file writes
	slot    string // RELAY_SLOT, also the queue's name
	topics  []string
	marker  string // is in every payload
	secrets []string
	load    *load
	seats   []*seat
	// Where there are named sinks.
	nats   *natstest.Server
	toNATS *link

	launched atomic.Int64
	shards   atomic.Int64 // that the table has now
	watching sync.WaitGroup

	mu        sync.Mutex // guards what follows
	processes []*process
	poison    map[string]ids // by sink
	apart     map[string]ids // by sink
	replayed  ids
	fixes     []func() error
	extra     []string // topics that faults made
	done      map[*fault]int
}

// runRound carries a plan out and judges it.
func runRound(t *testing.T, s *testbed, p *plan) (*comparison, map[string]int) {
	t.Helper()
	id := strings.ToLower(rand.Text()[:10])
	r := &round{
		t: t, testbed: s, plan: p, dir: keep(t, p.seed), slot: "chaos_" + id, marker: "payload-secret-" + rand.Text(),
		poison: map[string]ids{"kafka": {}, "rabbitmq": {}, "file": {}}, apart: map[string]ids{"kafka": {}, "rabbitmq": {}}, replayed: make(ids), done: make(map[*fault]int),
	}
	r.shards.Store(int64(p.shards))
	r.set(id)
	r.load = newLoad(r, r.db.DSN, r.topics)
	for i := range p.relays {
		r.seats = append(r.seats, &seat{r: r, index: i, name: fmt.Sprintf("relay-%d", i), env: r.env(i)})
	}
	t.Cleanup(r.endAll)
	t.Cleanup(r.load.stop)
	t.Cleanup(s.heal)

	start := time.Now()
	r.load.start()
	for _, seat := range r.seats {
		seat.mu.Lock()
		err := seat.start()
		seat.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	var steps sync.WaitGroup
	for _, step := range p.steps {
		steps.Go(func() {
			time.Sleep(time.Until(start.Add(step.at)))
			if err := step.fault.do(r, step); err != nil {
				r.errorf("%s: %v", step, err)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.done[step.fault]++
		})
	}
	steps.Wait()
	s.heal()
	for _, fix := range r.fixes {
		if err := retry(fix); err != nil {
			r.errorf("fix: %v", err)
		}
	}
	time.Sleep(500 * time.Millisecond) // some more load with everything healed
	r.load.stop()
	finished := r.finish()
	if p.relays > maxRelays {
		r.leftovers()
	}
	for _, seat := range r.seats {
		seat.mu.Lock()
		if seat.proc != nil {
			if err := seat.stop(); err != nil {
				r.errorf("%v", err)
			}
		}
		seat.mu.Unlock()
	}
	v := r.compare()
	if !finished {
		v.problems = append(v.problems, "not every row got its fate")
	}
	for _, text := range v.problems {
		r.errorf("%s", text)
	}
	counts := make(map[string]int)
	for f, n := range r.done {
		counts[f.name] += n
	}
	return v, counts
}

// shardOf is the shard that a step is about.
func (r *round) shardOf(s step) relay.Shard {
	shards := int(r.shards.Load())
	return relay.Set{Slot: r.slot, Publication: "sagaz_outbox", Shards: shards}.Shard(int(s.pick % uint64(shards)))
}

// slotOf is its slot.
func (r *round) slotOf(s step) string { return r.shardOf(s).Slot }

// errorf fails the round, and logs how to repeat it.
func (r *round) errorf(format string, args ...any) {
	r.t.Helper()
	pods := ""
	if r.plan.relays > maxRelays {
		pods = fmt.Sprintf(" CHAOS_PODS=%d", r.plan.relays)
	}
	r.t.Errorf("CHAOS_SEED=%d CHAOS_SHARDS=%d%s: %s", r.plan.seed, r.plan.shards, pods, fmt.Sprintf(format, args...))
}

// set makes the database with its role, and what the brokers need.
func (r *round) set(id string) {
	t := r.t
	t.Helper()
	superuser := r.testbed.pg.DSN("postgres")
	r.db = pgtest.NewAt(t, superuser)
	role, password := "chaos_"+id, "pw-"+rand.Text()
	r.secrets = []string{password, url.QueryEscape(password), r.marker}
	r.must(r.sql(fmt.Sprintf("CREATE ROLE %s LOGIN REPLICATION PASSWORD '%s'", role, password)))
	r.must(r.sql(fmt.Sprintf("ALTER DATABASE %q OWNER TO %s", r.db.Name, role)))
	// The role stays on the server, which ends with the run: it owns what is dropped after us.
	u, err := url.Parse(r.db.DSN)
	if err != nil {
		t.Fatal("the DSN is no URL")
	}
	u.User = url.UserPassword(role, password)
	r.plan.env = r.plan.env.with(settings{"DATABASE_URL": u.String(), "RELAY_SLOT": r.slot, "RELAY_HTTP_ADDR": "127.0.0.1:0"})
	r.topics = []string{"orders-" + id, "payments-" + id}
	var args []string
	// otherwise the first relay makes the slot, with rows in the table already
	if r.plan.seed%2 == 0 {
		args = append(args, "--slot")
	}
	p, err := r.migrate(args...)
	r.must(err)
	<-p.Done()
	if p.Err() != nil {
		r.must(fmt.Errorf("migrate: %w: %s", p.Err(), p.lastLine()))
	}
	if r.testbed.kafka == nil {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, topic := range r.topics {
		// The round before may have started the broker again: it has no leaders for a moment.
		r.must(retry(func() error { return r.testbed.createTopic(ctx, topic) }))
	}
	r.must(retry(func() error { return r.testbed.createQueue(r.slot, eventTypes...) }))
	if r.plan.kinds != nil {
		r.startNATS()
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		r.testbed.deleteTopics(ctx, append(r.topics, r.extra...)...)
		r.testbed.deleteQueue(r.slot)
	})
}

func (r *round) must(err error) {
	r.t.Helper()
	if err != nil {
		r.errorf("%v", err)
		r.t.FailNow()
	}
}

// env are the variables of a seat's relay: the way to each server is by a link.
func (r *round) env(seat int) settings {
	env := r.plan.env.with(settings{
		"WORKER_ID":    fmt.Sprintf("relay-%d", seat),
		"DATABASE_URL": via(r.plan.env["DATABASE_URL"], r.testbed.toPG[seat].addr),
		"RELAY_TOPIC":  "{aggregate_type}", "RELAY_ROUTING_KEY": "{event_type}",
	})
	if r.plan.kinds != nil {
		return r.nameEnv(env)
	}
	if len(r.plan.sinks) == 1 {
		return env.with(settings{"RELAY_FILE_PATH": r.filePath()})
	}
	k, q := r.testbed.kafka, r.testbed.rabbit
	return env.with(settings{
		"KAFKA_BOOTSTRAP_SERVERS": r.testbed.toKafka.addr, "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SASL_MECHANISM": "PLAIN",
		"KAFKA_SASL_USERNAME": k.User, "KAFKA_SASL_PASSWORD": k.Password,
		"RABBITMQ_URL": via(q.URL, r.testbed.toRabbit.addr), "RABBITMQ_EXCHANGE": r.slot,
	})
}

func (r *round) filePath() string { return filepath.Join(r.dir, "events.jsonl") }

// sql runs statements as the superuser, one after the other, through a server that goes away and
// comes back.
func (r *round) sql(statement string, args ...any) error {
	return retry(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := r.db.Pool.Exec(ctx, statement, args...)
		return err
	})
}

// query is sql for one column of a result.
func query[T any](r *round, statement string, args ...any) (values []T, err error) {
	err = retry(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		rows, err := r.db.Pool.Query(ctx, statement, args...)
		if err == nil {
			values, err = pgx.CollectRows(rows, pgx.RowTo[T])
		}
		return err
	})
	return values, err
}

// retry does something again while a server is away. An error of the statement itself ends it.
func retry(f func() error) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		var pg *pgconn.PgError
		if err == nil || time.Now().After(deadline) || errors.As(err, &pg) && pg.Code[:2] != "57" && pg.Code[:2] != "08" {
			return err
		}
	}
}
