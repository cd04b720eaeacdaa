package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/testbed/program"
)

// steadyRun is a drain of bench, as its JSON has it.
type steadyRun struct {
	Axis      string  `json:"axis"`
	Value     int     `json:"value"`
	Rows      int     `json:"rows"`
	PerSecond float64 `json:"events_per_second"`
	Relay     float64 `json:"relay_us"`
}

// Bench drains what it was asked to, at every point, and leaves nothing on the server.
func TestBench(t *testing.T) {
	server := pgtest.Server(t, pgtest.Version())
	bench := func(t *testing.T, env settings, args ...string) (report struct {
		Grow   []steadyRun `json:"grow"`
		Beside struct {
			Bare  []steadyRun `json:"bare_publisher"`
			Relay []steadyRun `json:"relay"`
		} `json:"bare_publisher_beside"`
	},
	) {
		p := launch(t, program.Path(t), "bench", env.with(settings{"DATABASE_URL": server}), nil, append([]string{"bench", "--json"}, args...)...)
		if code := p.end(patience); code != 0 {
			t.Fatalf("exit code %d: %s", code, p.stderr.String())
		}
		if err := json.Unmarshal([]byte(p.stdout.String()), &report); err != nil {
			t.Fatalf("%v in %s", err, p.stdout.String())
		}
		// The database that it made is named in none of the server's lists any more.
		conn, err := pgx.Connect(t.Context(), server)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context()) //nolint:errcheck // read only
		rows, _ := conn.Query(t.Context(), `SELECT datname::text FROM pg_database WHERE starts_with(datname, 'sagaz_relay_bench_')
			UNION ALL SELECT slot_name::text FROM pg_replication_slots WHERE starts_with(slot_name, 'sagaz_relay_bench_')`)
		if left, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(left) > 0 {
			t.Errorf("bench has left %v, %v", left, err)
		}
		return report
	}
	check := func(t *testing.T, runs []steadyRun, rows int) {
		t.Helper()
		for _, run := range runs {
			if run.Rows != rows || run.PerSecond <= 0 || run.Relay <= 0 {
				t.Errorf("measured %+v, want %d rows, a rate, and CPU", run, rows)
			}
		}
	}
	t.Run("Grow", func(t *testing.T) {
		r := bench(t, settings{"BROKER_TYPE": "stdout"}, "--discard", "--rows", "2000", "--shapes", "500", "--repeat", "2",
			"--grow", "keys=1,1000", "--grow", "ledger=0,10", "--grow", "sent=0,3000", "--grow", "headers=20", "--grow", "lanes=7")
		var order []string
		for _, run := range r.Grow {
			order = append(order, strings.Join([]string{run.Axis, jsonOf(run.Value)}, "="))
		}
		want := []string{
			"keys=1", "keys=1000", "keys=1000", "keys=1", "ledger=0", "ledger=10", "ledger=10", "ledger=0",
			"sent=0", "sent=3000", "sent=3000", "sent=0", "headers=20", "headers=20", "lanes=7", "lanes=7",
		}
		if !slices.Equal(order, want) {
			t.Errorf("measured %v\nwant     %v", order, want)
		}
		check(t, r.Grow, 2000)
	})
	t.Run("Bare", func(t *testing.T) {
		r := bench(t, settings{"BROKER_TYPE": "rabbitmq", "RABBITMQ_URL": brokertest.RabbitMQ(t).URL}, "--bare", "--rows", "6000", "--shapes", "1000", "--repeat", "2")
		if len(r.Beside.Bare) != 3 || len(r.Beside.Relay) != 2 {
			t.Errorf("%d runs of the bare publisher and %d of the relay, want 3 and 2", len(r.Beside.Bare), len(r.Beside.Relay))
		}
		check(t, append(r.Beside.Bare, r.Beside.Relay...), 6000)
	})
}

func jsonOf(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}
