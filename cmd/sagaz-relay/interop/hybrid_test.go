package interop

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

// claimTimeout is STUCK_CLAIM_TIMEOUT_SECONDS here: longer than a worker that lives needs for a
// batch, on a machine that is busy with other tests.
const claimTimeout = 10 * time.Second

// The library's worker and a relay in hybrid mode publish from one table at the same time, for as
// long as anybody likes. Each event goes out once. When one of them is killed, only what it had
// claimed by then may go out twice: after the claim has lapsed, or at once when it was a relay's.
func TestHybrid(t *testing.T) {
	for _, mode := range []string{"cdc", "polling"} {
		t.Run(mode, func(t *testing.T) { testHybrid(t, mode) })
	}
}

func testHybrid(t *testing.T, mode string) {
	s := newSwitchover(t)
	s.consumer.close()
	// without an inbox, which would be slower than the load
	s.consumer = s.consume(t, "consume_kafka", s.kafka.Plaintext, s.topics)
	maps.Copy(s.settings, map[string]string{
		"RELAY_HYBRID": "true", "RELAY_MODE": mode, "POLL_INTERVAL": "0.02", "STUCK_CLAIM_TIMEOUT_SECONDS": fmt.Sprint(claimTimeout.Seconds()),
	})
	dsn, err := url.Parse(s.db.DSN)
	if err != nil {
		t.Fatal("the DSN is no URL")
	}
	query := dsn.Query()
	query.Set("application_name", "python")
	dsn.RawQuery = query.Encode()
	s.python["DATABASE_URL"] = dsn.String()
	args := []string{"migrate"}
	if mode == "cdc" {
		args = append(args, "--slot")
	}
	runRelay(t, s.settings, args...)
	enough := s.load(t, 10*time.Millisecond)
	worker := s.worker(t, s.python)
	relay := startRelay(t, s.settings)
	s.more(t, 800)
	s.bothSent(t)

	// The worker dies with rows in hand.
	unsure := s.killWith(t, worker, "python", "python")
	s.waitSent(t, unsure)
	if early := s.sentBefore(t, unsure, claimTimeout); early > 0 {
		t.Errorf("%d rows that the worker had claimed were sent again before STUCK_CLAIM_TIMEOUT_SECONDS", early)
	}
	worker = s.worker(t, s.python)
	s.more(t, 300)

	// The relay dies with rows in hand; the next one takes them at once.
	ours := s.killWith(t, relay, "sagaz-relay", "sagaz-relay/")
	relay = startRelay(t, s.settings)
	s.waitSent(t, ours)
	maps.Copy(unsure, ours)
	s.more(t, 300)

	enough()
	s.arrive(t, len(s.rows))
	waitStatuses(t, s.db, map[string]int{"sent": len(s.rows)})
	worker.stop(t)
	relay.stop(t)
	published := s.published(t)
	s.consumer.wait(t, "all that was published", func(d []delivery) bool { return len(d) >= published })
	times := make(map[string]int)
	for _, d := range s.consumer.close() {
		times[d.eventID]++
	}
	twice := 0
	for i, w := range s.rows {
		_, doubt := unsure[w.EventID]
		switch n := times[w.EventID]; {
		case n == 2 && doubt:
			twice++
		case n != 1:
			t.Errorf("event %d of %d was delivered %d times, want once (claimed by one that was killed: %t)", i, len(s.rows), n, doubt)
		}
	}
	t.Logf("%d events, %d in doubt after kills, %d of them delivered twice", len(s.rows), len(unsure), twice)
}

// killWith kills a process, whose connections have that name, at a moment when it has claimed rows,
// and returns those with the times of their claims.
func (s *switchover) killWith(t *testing.T, p *process, name, claimant string) map[string]time.Time {
	t.Helper()
	for deadline := time.Now().Add(patience); len(s.claims(t, claimant)) == 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%s was never found with claimed rows", p.name)
		}
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Millisecond) // another moment
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	// What it has sent to the server counts, its last mark maybe.
	s.db.Until(t, `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND starts_with(application_name, $1))`, name)
	return s.claims(t, claimant)
}

// claims are the rows that somebody has claimed.
func (s *switchover) claims(t *testing.T, claimant string) map[string]time.Time {
	t.Helper()
	claims := make(map[string]time.Time)
	rows, err := s.db.Pool.Query(t.Context(), `SELECT event_id::text, claimed_at FROM saga_outbox WHERE status IN ('claimed', 'failed') AND starts_with(worker_id, $1)`, claimant)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var id string
		var at time.Time
		if err := rows.Scan(&id, &at); err != nil {
			t.Fatal(err)
		}
		claims[id] = at
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return claims
}

// waitSent waits until these rows are sent.
func (s *switchover) waitSent(t *testing.T, rows map[string]time.Time) {
	t.Helper()
	s.db.Until(t, `SELECT NOT EXISTS (SELECT FROM saga_outbox WHERE event_id = ANY($1::text[]::uuid[]) AND status <> 'sent')`, ids(rows))
}

// sentBefore counts the rows that were sent sooner after their claims than that.
func (s *switchover) sentBefore(t *testing.T, rows map[string]time.Time, after time.Duration) (early int) {
	t.Helper()
	for id, claimed := range rows {
		var sent time.Time
		if err := s.db.Pool.QueryRow(t.Context(), `SELECT sent_at FROM saga_outbox WHERE event_id = $1`, id).Scan(&sent); err != nil {
			t.Fatal(err)
		}
		if sent.Sub(claimed) < after {
			early++
		}
	}
	return early
}

func ids(rows map[string]time.Time) []string {
	var all []string
	for id := range rows {
		all = append(all, id)
	}
	return all
}

// bothSent waits until each of the two has sent a good part of the rows.
func (s *switchover) bothSent(t *testing.T) {
	t.Helper()
	s.db.Until(t, `SELECT count(*) FILTER (WHERE worker_id = 'python') > 100 AND count(*) FILTER (WHERE starts_with(worker_id, 'sagaz-relay/')) > 100
		FROM saga_outbox WHERE status = 'sent'`)
}

// published is how many messages the topics hold.
func (s *switchover) published(t *testing.T) (n int) {
	t.Helper()
	ask := make(map[string][]kafka.OffsetRequest)
	for _, topic := range strings.Split(s.topics, ",") {
		for partition := range 4 {
			ask[topic] = append(ask[topic], kafka.LastOffsetOf(partition))
		}
	}
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(s.kafka.Plaintext), Timeout: 30 * time.Second, Transport: transport}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	answer, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: ask})
	if err != nil {
		t.Fatal(err)
	}
	for _, partitions := range answer.Topics {
		for _, p := range partitions {
			if p.Error != nil {
				t.Fatal(p.Error)
			}
			n += int(p.LastOffset)
		}
	}
	return n
}
