package interop

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// switchover is a database whose applications never stop, one consumer, and the settings of both
// workers.
type switchover struct {
	*fixture
	consumer *consumer
	python   map[string]string // the library's worker
	rows     []written
	first    int // number of the next event
}

func newSwitchover(t *testing.T) *switchover {
	s := &switchover{fixture: newFixture(t, pgtest.Version())}
	s.consumer = s.consume(t, "consume_kafka", s.kafka.Plaintext, s.topics, s.db.DSN)
	s.settings["BROKER_TYPE"] = "kafka"
	s.python = map[string]string{
		"DATABASE_URL": s.db.DSN, "BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": s.kafka.Plaintext,
		"POLL_INTERVAL": "0.05", "BATCH_SIZE": "20", "WORKER_ID": "python",
	}
	return s
}

// insert inserts n events.
func (s *switchover) insert(t *testing.T, n int) {
	t.Helper()
	s.rows = append(s.rows, call[written](t, s.library, "insert", s.db.DSN, s.prefix, fmt.Sprint(s.first), fmt.Sprint(n), "0")...)
	s.first += n
}

// load inserts events, in transactions with such pauses between them, until the function it returns
// is called.
func (s *switchover) load(t *testing.T, pause time.Duration) (enough func()) {
	t.Helper()
	cmd := s.command("insert", s.db.DSN, s.prefix, fmt.Sprint(s.first), "0", fmt.Sprint(pause.Milliseconds()))
	var out bytes.Buffer
	problem := &syncBuffer{}
	cmd.Stdout, cmd.Stderr = &out, problem
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	enough = func() {
		if ended {
			return
		}
		ended = true
		stdin.Close() //nolint:errcheck // that is the sign
		if err := cmd.Wait(); err != nil {
			t.Fatalf("the load ended: %v\n%s", err, problem.tail(30))
		}
		s.rows = append(s.rows, decode[written](t, &out)...)
	}
	t.Cleanup(enough)
	return enough
}

// more waits until n events have arrived that were not even inserted when it was called.
func (s *switchover) more(t *testing.T, n int) {
	t.Helper()
	var have int
	if err := s.db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox`).Scan(&have); err != nil {
		t.Fatal(err)
	}
	s.arrive(t, have+n)
}

func (s *switchover) arrive(t *testing.T, n int) {
	t.Helper()
	s.consumer.wait(t, fmt.Sprintf("event %d", n), func(d []delivery) bool { return len(byEvent(d)) >= n })
}

// check wants every event delivered exactly once, though nobody's inbox was needed for that.
func (s *switchover) check(t *testing.T) {
	t.Helper()
	s.arrive(t, len(s.rows))
	waitStatuses(t, s.db, map[string]int{"sent": len(s.rows)})
	time.Sleep(300 * time.Millisecond) // for what would come twice
	times := make(map[string]int)
	for _, d := range s.consumer.close() {
		times[d.eventID]++
	}
	for i, w := range s.rows {
		if times[w.EventID] != 1 {
			t.Errorf("event %d of %d was delivered %d times, want once", i, len(s.rows), times[w.EventID])
		}
	}
}

// The way of docs/migrating-from-the-python-worker.md, there and back, with applications that go on
// all the time.
func TestSwitchThereAndBack(t *testing.T) {
	s := newSwitchover(t)
	worker := s.worker(t, s.python)
	enough := s.load(t, 20*time.Millisecond)
	s.more(t, 20)
	runRelay(t, s.settings, "migrate")
	hybrid := maps.Clone(s.settings)
	hybrid["RELAY_HYBRID"] = "true"
	relay := startRelay(t, hybrid)
	s.more(t, 40)
	worker.stop(t)
	s.more(t, 40)

	// Once it is past what the worker sent, it does without.
	relay.stop(t)
	relay = startRelay(t, s.settings)
	s.more(t, 40)

	// Back, side by side first.
	relay.stop(t)
	relay = startRelay(t, hybrid)
	worker = s.worker(t, s.python)
	s.more(t, 40)
	relay.stop(t)
	s.more(t, 40)

	// There again with the slot that was kept: it delivers all that the worker sent meanwhile.
	relay = startRelay(t, hybrid)
	s.more(t, 40)
	worker.stop(t)
	s.more(t, 40)
	enough()
	s.check(t)
	relay.stop(t)
}

// A worker that was killed leaves rows claimed, and nobody knows whether they were sent. The relay
// waits for them until they are given back or the claim is too old; then it sends them: rather
// twice than not at all.
func TestSwitchFromKilledWorker(t *testing.T) {
	s := newSwitchover(t)
	runRelay(t, s.settings, "migrate", "--slot")
	s.insert(t, 20)
	// As a worker that died after its claim of some, and one whose claim is old, leave them.
	for _, mark := range []struct {
		from, to int
		claim    string
	}{
		{0, 4, "status = 'sent', worker_id = 'python', claimed_at = now(), sent_at = now()"},
		{4, 7, "status = 'claimed', worker_id = 'python', claimed_at = now() - interval '1 hour'"},
		{7, 8, "status = 'failed', worker_id = 'python', claimed_at = now() - interval '1 hour', retry_count = 1, last_error = 'gone'"},
		{8, 10, "status = 'claimed', worker_id = 'python', claimed_at = now()"},
		{10, 11, "status = 'failed', worker_id = 'python', claimed_at = now(), retry_count = 1, last_error = 'gone'"},
	} {
		for _, w := range s.rows[mark.from:mark.to] {
			if _, err := s.db.Pool.Exec(t.Context(), "UPDATE saga_outbox SET "+mark.claim+" WHERE event_id = $1", w.EventID); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.settings["RELAY_HYBRID"] = "true"
	relay := startRelay(t, s.settings)
	for deadline := time.Now().Add(patience); !relay.logged("waiting for rows that another worker has claimed"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the relay does not wait for the claims")
		}
	}
	fresh := 0
	if err := s.db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM saga_outbox WHERE status IN ('claimed', 'failed') AND worker_id = 'python'
		AND claimed_at > now() - interval '5 minutes'`).Scan(&fresh); err != nil {
		t.Fatal(err)
	}
	// What is in front of the first fresh claim may have gone out: the stream brings it with what
	// is behind, or in a batch of its own.
	behind := 0
	for _, w := range s.rows[8:] {
		var sent bool
		if err := s.db.Pool.QueryRow(t.Context(), `SELECT status = 'sent' FROM saga_outbox WHERE event_id = $1`, w.EventID).Scan(&sent); err != nil {
			t.Fatal(err)
		}
		if sent {
			behind++
		}
	}
	if fresh != 3 || behind != 0 {
		t.Errorf("while claims are fresh: %d rows are the worker's, want 3; %d of what is behind them are sent, want none (%v)", fresh, behind, statuses(t, s.db))
	}
	// The worker is gone, and the operator sets its rows back.
	if _, err := s.db.Pool.Exec(t.Context(), `UPDATE saga_outbox SET status = 'pending', worker_id = NULL, claimed_at = NULL
		WHERE status IN ('claimed', 'failed') AND worker_id = 'python' AND claimed_at > now() - interval '5 minutes'`); err != nil {
		t.Fatal(err)
	}
	s.rows = s.rows[4:]
	s.arrive(t, len(s.rows))
	waitStatuses(t, s.db, map[string]int{"sent": 20})
	relay.stop(t)
	times := make(map[string]int)
	for _, d := range s.consumer.close() {
		times[d.eventID]++
	}
	for i, w := range s.rows {
		if times[w.EventID] != 1 {
			t.Errorf("event %d was delivered %d times, want once", i+4, times[w.EventID])
		}
	}
	if len(times) != len(s.rows) {
		t.Errorf("%d events were delivered, want %d: those that the worker had sent are not ours to send", len(times), len(s.rows))
	}
}

// What a worker leaves from before the slot the relay finds in the table: pending rows, claims of
// the dead, and what a worker left failed when it died between two attempts.
func TestRowsFromBeforeTheSlot(t *testing.T) {
	s := newSwitchover(t)
	s.insert(t, 20)
	for i, left := range map[int]string{
		3:  `status = 'claimed', worker_id = 'python', claimed_at = now() - interval '1 hour'`,
		5:  `status = 'failed', worker_id = 'python', claimed_at = now() - interval '1 hour', retry_count = 1, last_error = 'gone'`,
		12: `status = 'claimed', worker_id = 'python', claimed_at = now()`,
	} {
		if _, err := s.db.Pool.Exec(t.Context(), `UPDATE saga_outbox SET `+left+` WHERE event_id = $1`, s.rows[i].EventID); err != nil {
			t.Fatal(err)
		}
	}
	runRelay(t, s.settings, "migrate")
	hybrid := maps.Clone(s.settings)
	hybrid["RELAY_HYBRID"] = "true"
	relay := startRelay(t, hybrid)
	s.insert(t, 10)
	waitStatuses(t, s.db, map[string]int{"claimed": 1, "sent": 29})
	if _, err := s.db.Pool.Exec(t.Context(), giveBackSQL(t)); err != nil {
		t.Fatal(err)
	}
	s.check(t)
	relay.stop(t)
}

// giveBackSQL returns the statement of step 3 of the page on migrating.
func giveBackSQL(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../../docs/migrating-from-the-python-worker.md")
	if err != nil {
		t.Fatal(err)
	}
	_, statement, found := strings.Cut(string(page), "```sql\n")
	statement, _, closed := strings.Cut(statement, "```")
	if !found || !closed || !strings.Contains(statement, "worker_id NOT LIKE 'sagaz-relay/%'") {
		t.Fatal("docs/migrating-from-the-python-worker.md no longer has the statement that gives a dead worker's rows back")
	}
	return statement
}
