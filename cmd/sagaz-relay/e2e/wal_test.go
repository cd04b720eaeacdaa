package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// retained is what the slot holds back, in bytes of WAL, and the server's status of that.
func (w *world) retained() (bytes int64, status string) {
	w.t.Helper()
	err := w.db.Pool.QueryRow(w.t.Context(), `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, wal_status FROM pg_replication_slots WHERE slot_name = $1`, w.slot).Scan(&bytes, &status)
	if err != nil {
		w.t.Fatal(err)
	}
	return bytes, status
}

// checkpoint lets the server recycle WAL; it also writes the record by which a slot's restart_lsn
// can move.
func (w *world) checkpoint() { w.t.Helper(); w.exec(`CHECKPOINT`) }

// written is how much WAL there was since a position.
func (w *world) written(since string) int64 {
	w.t.Helper()
	return value[int64](w, `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1::text::pg_lsn)::bigint`, since)
}

const busy = `CREATE TABLE busy (n int, t text)`

// write makes about so much WAL that no outbox has to do with.
func (w *world) write(bytes int) {
	w.t.Helper()
	w.exec(`INSERT INTO busy SELECT i, repeat(md5(random()::text), 32) FROM generate_series(1, $1::int) AS i`, bytes/1100)
}

// A broker is away for long, and is not to be isolated for it: the slot may hold back half of
// max_slot_wal_keep_size all the same, and the server's disk stays bounded. Then everything is
// delivered, in order.
func TestWALBudget(t *testing.T) {
	t.Parallel()
	const (
		keep   = 128 << 20 // and so the budget is 64 MB
		total  = 180 << 20
		second = 3 << 20 // what is written in a second
		// slack is what may come on top of the budget, and why the budget is no more than half: the
		// slot is looked at every 5 s, what is being published then has RELAY_PUBLISH_TIMEOUT to
		// end, and the slot moves when the stream has gone through what it held back. On an idle
		// machine that is 20 MB here, on a busy one 50.
		slack    = keep / 2
		inflight = 1000
	)
	server := pgtest.OwnServer(t, pgtest.Version(), map[string]string{"max_slot_wal_keep_size": "128MB", "min_wal_size": "32MB", "max_wal_size": "64MB"})
	w := newWorldAt(t, server.DSN("postgres"))
	w.exec(busy)
	q := newQueue(t, brokertest.RabbitMQ(t).URL, "#")
	broker := pgtest.NewProxy(t, q.url)
	l := w.load(loadOptions{topic: "order.created", rate: 60})
	p := w.relay("relay", q.env().with(settings{
		"RABBITMQ_URL": broker.DSN, "RELAY_SINK_ISOLATION": "1h", "RELAY_PUBLISH_TIMEOUT": "3s", "RELAY_BACKOFF_MAX": "500ms", "RELAY_INFLIGHT_EVENTS": fmt.Sprint(inflight),
	}))
	p.waitStreaming()
	l.waitCommitted(50)
	broker.Freeze()
	broker.Cut()
	p.waitSink("rabbitmq", "0")

	from, began := value[string](w, `SELECT pg_current_wal_lsn()::text`), time.Now()
	var most int64
	checked := began
	for w.written(from) < total {
		l.bulk(100)
		w.write(second / 4)
		if time.Since(checked) > time.Second {
			w.checkpoint()
			checked = time.Now()
		}
		bytes, status := w.retained()
		most = max(most, bytes)
		if status == "lost" {
			t.Fatalf("the slot is %s, with %d MB held back", status, bytes>>20)
		}
		// Not faster than that.
		time.Sleep(time.Until(began.Add(time.Duration(w.written(from)) * time.Second / second)))
	}
	w.checkpoint()
	disk := value[int64](w, `SELECT sum(size)::bigint FROM pg_ls_waldir()`)
	t.Logf("%d MB of WAL in %s with the broker away: at most %d MB held back (budget %d MB), pg_wal has %d MB, the ledger %d events", w.written(from)>>20, time.Since(began).Round(time.Second),
		most>>20, keep/2>>20, disk>>20, w.ledger("rabbitmq", ""))
	if most > keep/2+slack {
		t.Errorf("the slot held back %d MB, want at most the budget of %d MB and %d MB", most>>20, keep/2>>20, slack>>20)
	}
	if disk > keep+64<<20 {
		t.Errorf("pg_wal has %d MB", disk>>20)
	}
	if n := len(p.logged("the slot holds back more WAL than its budget")); n == 0 {
		t.Error("the log does not show that the budget was spent")
	}
	if n := len(p.logged("the slot cannot deliver everything")); n != 0 {
		t.Error("the slot was lost")
	}

	broker.Thaw()
	p.waitSink("rabbitmq", "1")
	l.waitCommitted(50)
	w.waitLedger(p, "rabbitmq", 0)
	l.settle(p, "rabbitmq")
	p.stop()
	// What was under way when the broker went away comes again, and so does what it was slow with
	// afterwards.
	unknown := len(p.logged("sink recovered"))
	l.judge("rabbitmq", messageEvents(t, q.drain()), unknown*(inflight+roundEntries))
}

// Nobody writes to the outbox, others write much: the slot follows, within two segments.
func TestIdleOutboxOnBusyServer(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, pgtest.Version(), nil)
	w := newWorldAt(t, server.DSN("postgres"))
	w.exec(busy)
	p := w.relay("relay", settings{"BROKER_TYPE": "file", "RELAY_FILE_PATH": filepath.Join(t.TempDir(), "events.jsonl")})
	p.waitStreaming()
	from := value[string](w, `SELECT pg_current_wal_lsn()::text`)
	var most int64
	for w.written(from) < 160<<20 {
		w.write(8 << 20)
		w.waitPassed()
		w.checkpoint() // as the server does by itself, every 15 s
		bytes, _ := w.retained()
		most = max(most, bytes)
	}
	t.Logf("%d MB of WAL: at most %d MB held back", w.written(from)>>20, most>>20)
	if most > 32<<20 {
		t.Errorf("the slot of an idle outbox held back %d MB, want at most two segments, 32 MB", most>>20)
	}
	p.stop()
}
