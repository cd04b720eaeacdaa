package e2e

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
)

var (
	killsFlag = flag.Int("kills", 3, "TestKillReadsBack: kills of each relay")
	rateFlag  = flag.Int("rate", 600, "TestKillReadsBack: rows per second")
)

// A relay is killed again and again under load. Its successor reads back what it had sent and not
// marked: what the topic had by then is not sent again. Without that, all of it is.
func TestKillReadsBack(t *testing.T) {
	t.Parallel()
	repeats := make(map[string]int)
	for _, as := range []killing{
		{name: "off", env: settings{"RELAY_KAFKA_READ_BACK": "false"}, brokersTime: true},
		{name: "on, the broker's time", brokersTime: true},
		{name: "on, the relay's time"},
		{name: "on, the slot is dropped", dropSlot: true},
		{name: "on, polling", env: settings{"RELAY_MODE": "polling"}},
		{name: "on, hybrid", env: settings{"RELAY_HYBRID": "true"}},
		{name: "on, four slots", env: settings{"RELAY_SHARDS": "4"}},
	} {
		t.Run(as.name, func(t *testing.T) { repeats[as.name] = as.run(t) })
	}
	t.Logf("%d kills each, events repeated: %v", *killsFlag, repeats)
}

// killing is one run of it.
type killing struct {
	name        string
	env         settings
	brokersTime bool // the topic has the broker's time of appending
	dropSlot    bool // with the relay
	twoSinks    bool // of one cluster: neither may take the other's records for its own
}

// notReadBack is logged where the successor cannot read what was sent, or not all of it.
const notReadBack = "what the owner before has sent cannot be read back, and may be sent again"

// run returns how many events were delivered again.
func (as killing) run(t *testing.T) int {
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 4)
	if !as.brokersTime {
		k.set("message.timestamp.type", "CreateTime")
	}
	env := settings{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext, "RELAY_BACKOFF_MAX": "500ms"}.with(as.env)
	start := func(name string) *process {
		p := w.relay(name, env)
		if env["RELAY_MODE"] == "polling" {
			p.waitReady()
		} else {
			p.waitStreaming()
		}
		return p
	}
	rnd := newRand(t)
	l, began := w.load(loadOptions{topic: k.name, rate: *rateFlag, workers: 4 + *rateFlag/1000, steady: true, keys: 200}), time.Now()
	var had [][]int64              // what the topic had after each kill, by partition
	readable := make(map[int]bool) // all of it could be read by the next relay
	for i := range *killsFlag {
		p := start(fmt.Sprintf("relay-%d", i))
		time.Sleep(time.Duration(rnd.IntN(1000)) * time.Millisecond) // the random moment
		p.crash()
		w.waitGone()
		if i > 0 {
			readable[i-1] = len(p.logged(notReadBack)) == 0
		}
		if as.dropSlot {
			w.exec(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`)
		}
		had = append(had, k.ends())
	}
	p := start("relay-last")
	t.Logf("%d kills under %d rows/s", *killsFlag, int(float64(l.committed())/time.Since(began).Seconds()))
	l.finish(p)
	readable[*killsFlag-1] = len(p.logged(notReadBack)) == 0
	p.stop()

	arrivals := k.read()
	first := make(map[relay.UUID]arrival)
	for _, a := range arrivals { // in order in each partition, and an event is in one
		id := a.id(t)
		before, again := first[id]
		if !again {
			first[id] = a
			continue
		}
		for kill, ends := range had {
			if env["RELAY_KAFKA_READ_BACK"] != "false" && readable[kill] && before.offset < ends[a.partition] && a.offset >= ends[a.partition] {
				t.Errorf("event %s was in the topic at offset %d of partition %d when the relay after kill %d began, and came again at %d", id, before.offset, a.partition, kill, a.offset)
				break
			}
		}
	}
	return l.judge("kafka", events(t, arrivals), *killsFlag*16384)
}

// A relay dies after its first events have arrived, and before its first mark.
func TestKillBeforeTheFirstMark(t *testing.T) {
	t.Parallel()
	for _, as := range []killing{
		{name: "the slot stays"},
		{name: "the slot is dropped", dropSlot: true},
		{name: "polling", env: settings{"RELAY_MODE": "polling"}},
		{name: "hybrid", env: settings{"RELAY_HYBRID": "true"}},
		{name: "two slots", env: settings{"RELAY_SHARDS": "2"}},
		{name: "two sinks", twoSinks: true},
	} {
		for _, used := range []bool{false, true} { // a relay was here, and stopped in order
			t.Run(fmt.Sprintf("%s, used %v", as.name, used), func(t *testing.T) {
				t.Parallel()
				as.beforeTheFirstMark(t, used)
			})
		}
	}
}

func (as killing) beforeTheFirstMark(t *testing.T, used bool) {
	w := newWorld(t)
	broker := brokertest.Kafka(t)
	k := newTopic(t, broker.Plaintext, 4)
	env := settings{"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": broker.Plaintext}.with(as.env)
	copies := 1
	if as.twoSinks {
		copies = 2
		env = env.with(settings{"RELAY_SINKS": "audit", "RELAY_SINK_AUDIT_KIND": "kafka", "RELAY_SINK_AUDIT_BOOTSTRAP_SERVERS": broker.Plaintext})
	}
	rnd := newRand(t)
	all := 0 // records
	insert := func(n int) []relay.UUID {
		all += n * copies
		return w.insert(w.randomKeys(rnd, n, k.name)...)
	}
	if used {
		p := w.relay("relay-before", env)
		w.waitSent(p, "the relay before", insert(20))
		p.stop()
		w.waitGone()
	}
	w.exec(`CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NEW; END $$`)
	w.exec(`CREATE TRIGGER hold BEFORE UPDATE ON saga_outbox FOR EACH ROW WHEN (NEW.status = 'sent') EXECUTE FUNCTION hold()`)
	holder, err := w.db.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Release()
	hold := func(sql string) {
		if _, err := holder.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	hold(`SELECT pg_advisory_lock(4711)`)
	p := w.relay("relay-dies", env)
	ids := insert(40)
	eventually(t, patience, "all events are in the topic", func() string {
		n := int64(0)
		for _, end := range k.ends() {
			n += end
		}
		if n == int64(all) {
			return ""
		}
		return fmt.Sprintf("%d of %d", n, all)
	})
	p.crash()
	w.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'sagaz-relay%'`) // a mark that waits does not notice
	w.waitGone()
	if as.dropSlot {
		w.exec(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`)
	}
	hold(`SELECT pg_advisory_unlock(4711)`)
	next := w.relay("relay-next", env)
	w.waitSent(next, "the successor", ids)
	next.stop()
	if as.twoSinks {
		all += len(ids) * copies
		if lines := next.logged(notReadBack); len(lines) != copies || !strings.Contains(lines[0].text("error"), "may be of the same cluster") {
			t.Errorf("the successor logs %v", lines)
		}
	}
	if got := len(k.read()); got != all {
		t.Errorf("%d records, want %d", got, all)
	}
}
