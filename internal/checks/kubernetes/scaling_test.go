package kubernetes

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	corev1 "k8s.io/api/core/v1"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// broker takes what a pod writes to stdout at a pace of its own, whatever the machine has to do, as
// one does that is far away: with 150 events in flight, 250 a second are an answer after 600 ms.
type broker struct {
	pace  int // events a second
	begun time.Time
	n     int
	took  *atomic.Int64 // by all pods
}

const (
	inFlight = "150"
	podPace  = 250
)

func (b *broker) Write(p []byte) (int, error) {
	now := time.Now()
	if due := b.begun.Add(time.Duration(b.n) * time.Second / time.Duration(b.pace)); now.Before(due) {
		time.Sleep(due.Sub(now))
	} else {
		b.begun, b.n = now, 0
	}
	events := bytes.Count(p, []byte{'\n'})
	b.n += events
	b.took.Add(int64(events))
	return len(p), nil
}

// fleet is the Deployment: pods on a real database, made by the manifests.
type fleet struct {
	t       *testing.T
	spec    corev1.PodSpec
	secrets map[string]string
	db      *pgxpool.Pool
	shards  int
	pods    []*podProcess
	started int
	took    atomic.Int64 // events, by the broker
}

type podProcess struct {
	*product.Process
	address string
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	db := newDatabase(t, nil)
	f := &fleet{t: t, spec: worker(t), secrets: example(t, db, "127.0.0.1:1"), shards: shardsOf(t, file(t, "configmap.yaml"))}
	if out, err := db.script(t, "role.sh"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if p := run(t, migration(t), f.secrets, nil); p.Exit() != 0 {
		t.Fatalf("the migration: %s", p)
	}
	pool, err := pgxpool.New(t.Context(), f.secrets["sagaz-db-credentials connection-string"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	f.db = pool
	return f
}

// scale has so many pods, as the Deployment's controller: the newest go first.
func (f *fleet) scale(n int) {
	f.t.Helper()
	for len(f.pods) < n {
		ports, err := child.FreePorts(1)
		if err != nil {
			f.t.Fatal(err)
		}
		address := fmt.Sprintf("127.0.0.1:%d", ports[0])
		cmd := container(f.t, f.spec, f.secrets, map[string]string{
			"RELAY_HTTP_ADDR": address, "WORKER_ID": fmt.Sprintf("outbox-worker-%d", f.started), "BROKER_TYPE": "stdout", "RELAY_INFLIGHT_EVENTS": inFlight, "LOG_LEVEL": "WARNING",
		})
		cmd.Stdout = &broker{pace: podPace, took: &f.took}
		f.pods = append(f.pods, &podProcess{product.Start(f.t, fmt.Sprintf("pod %d", f.started), cmd), address})
		f.started++
	}
	var ends sync.WaitGroup
	for _, p := range f.pods[n:] {
		ends.Go(func() {
			_ = p.Signal(syscall.SIGTERM) // Exit fails if that did
			if code := p.Exit(); code != 0 {
				f.t.Errorf("a pod ends with %d", code)
			}
		})
	}
	ends.Wait()
	f.pods = f.pods[:n]
}

// number is the value of a metric, 0 where there is none yet.
func (p *podProcess) number(name string) float64 {
	_, text := get(p.address, "/metrics")
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	v, _ := strconv.ParseFloat(m[1], 64)
	return v
}

// report scrapes all pods at once: what they export as pending, and how many slots each owns.
func (f *fleet) report() (pending []float64, owned []int) {
	pending, owned = make([]float64, len(f.pods)), make([]int, len(f.pods))
	var scrapes sync.WaitGroup
	for i, p := range f.pods {
		scrapes.Go(func() {
			pending[i], owned[i] = p.number("outbox_pending_events_total"), int(p.number("outbox_shards_owned"))
		})
	}
	scrapes.Wait()
	return pending, owned
}

// owning is how many pods own slots.
func owning(owned []int) (n int) {
	for _, slots := range owned {
		if slots > 0 {
			n++
		}
	}
	return n
}

// even waits until the pods share the slots.
func (f *fleet) even() {
	f.t.Helper()
	want := min(len(f.pods), f.shards)
	product.Eventually(f.t, fmt.Sprintf("%d pods share %d slots", len(f.pods), f.shards), func() string {
		_, owned := f.report()
		all := 0
		for _, slots := range owned {
			all += slots
		}
		if owning(owned) != want || all != f.shards {
			return fmt.Sprintf("they own %v", owned)
		}
		return ""
	})
}

// commit writes events of a thousand keys.
func (f *fleet) commit(n int) {
	if _, err := f.db.Exec(f.t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'saga', 'order-' || i % 1000, 'OrderCreated', '{}' FROM generate_series(1, $1::int) AS i`, n); err != nil {
		f.t.Error(err)
	}
}

func (f *fleet) count(sql string) (n int) {
	f.t.Helper()
	if err := f.db.QueryRow(f.t.Context(), sql).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

func (f *fleet) backlog() int {
	return f.count(`SELECT count(*)::int FROM saga_outbox WHERE status = 'pending'`)
}

// connections are those of relays, the walsenders among them.
func (f *fleet) connections(like string) int {
	f.t.Helper()
	var n int
	err := f.db.QueryRow(f.t.Context(), `SELECT count(*)::int FROM pg_stat_activity WHERE application_name LIKE $1`, like).Scan(&n)
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// wantConnections compares them with what k8s/README.md has. A pod that stands by has one.
func (f *fleet) wantConnections() {
	f.t.Helper()
	product.Eventually(f.t, "connections are within what the README has", func() string {
		_, owned := f.report()
		most := 0
		for _, slots := range owned {
			most += connectionsOf(slots)
		}
		all, pods := f.connections("sagaz-relay%"), f.connections("sagaz-relay roster%")
		if pods != len(f.pods)*connectionsOfPod || all > most {
			return fmt.Sprintf("%d pods own %v slots and have %d connections, want at most %d", pods, owned, all, most)
		}
		f.t.Logf("pods that own %v slots have %d connections", owned, all)
		return ""
	})
}

// TestMorePodsDeliverMore: events a second with one, two, four and eight owners of the shipped
// slots, each with a broker that takes 250 a second of it. Nothing is delivered twice while slots
// move.
func TestMorePodsDeliverMore(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	rates := make(map[int]float64)
	committed := 0
	for _, pods := range []int{1, 2, 4, f.shards} {
		f.scale(pods)
		f.even()
		const seconds = 3
		n := (seconds + 1) * podPace * pods
		f.commit(n)
		committed += n
		product.Until(t, "events are delivered", func() bool { return f.took.Load() > int64(committed-n) })
		before, began := f.took.Load(), time.Now()
		time.Sleep(seconds * time.Second)
		rates[pods] = float64(f.took.Load()-before) / time.Since(began).Seconds()
		t.Logf("%d pods that own slots: %.0f events a second", pods, rates[pods])
		product.Until(t, "all is delivered", func() bool { return f.backlog() == 0 })
	}
	if rates[2] < 1.3*rates[1] || rates[4] < 1.3*rates[2] || rates[f.shards] < 1.3*rates[4] {
		t.Errorf("events a second: %v; more pods do not deliver more", rates)
	}
	f.scale(f.shards + 2)
	f.even()
	f.wantConnections()
	f.scale(0)
	if got := f.took.Load(); got != int64(committed) {
		t.Errorf("%d events were committed, %d delivered", committed, got)
	}
}

// TestAutoscalerDrivesPods: the published autoscaler, by the controller's algorithm, starts and
// stops real pods by what they export, 30 times as fast as a real one, and 90 times on the way down.
// More is committed than the least number of pods delivers: it goes up to the maximum, the backlog
// is worked off while as much goes on coming, and when that ends it comes down again. Nothing is
// lost or delivered twice.
func TestAutoscalerDrivesPods(t *testing.T) {
	t.Parallel()
	const faster, fasterDown = 30, 90
	f, a := newFleet(t), newAutoscaler(t)
	a.replicas = int(*a.spec.MinReplicas)
	f.scale(a.replicas)
	f.even()
	var committed, rate atomic.Int64
	rate.Store(1000) // 3 pods deliver 750 at most
	f.commit(14000)
	committed.Add(14000)
	ended, commits := make(chan struct{}), sync.WaitGroup{}
	end := sync.OnceFunc(func() { close(ended); commits.Wait() })
	defer end()
	commits.Go(func() {
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-ended:
				return
			case <-tick.C:
				n := rate.Load() / 10
				f.commit(int(n))
				committed.Add(n)
			}
		}
	})

	least, most := int(*a.spec.MinReplicas), int(a.spec.MaxReplicas)
	sizes, drained := []int{a.replicas}, false
	looks := time.NewTicker(syncPeriod / faster)
	defer looks.Stop()
	for deadline := time.Now().Add(2 * product.Patience); a.replicas != least || !drained; {
		if time.Now().After(deadline) {
			t.Fatalf("%v pods, %d events wait; drained: %v", sizes, f.backlog(), drained)
		}
		<-looks.C
		pending, owned := f.report()
		sum := 0.0
		for _, v := range pending {
			sum += v
		}
		before := a.replicas
		a.look(pending)
		if a.replicas != before {
			t.Logf("after %s: %d pods own %v slots, %d events wait, the sum is %.0f: %d pods", a.now, before, owned, f.backlog(), sum, a.replicas)
			sizes = append(sizes, a.replicas)
			f.scale(a.replicas)
		}
		if !drained && sum < 1000 && f.backlog() < 1000 {
			t.Logf("after %s: %d of %d pods own slots, the backlog is worked off", a.now, owning(owned), before)
			drained = true
			rate.Store(200)
			looks.Reset(syncPeriod / fasterDown)
		}
	}
	t.Logf("pods: %v; after %s %d events wait", sizes, a.now, f.backlog())
	if slices.Max(sizes) != most || sizes[len(sizes)-1] != least {
		t.Errorf("pods: %v, want up to %d and down to %d", sizes, most, least)
	}
	f.even()
	f.wantConnections()
	end()
	product.Until(t, "all is delivered", func() bool { return f.backlog() == 0 })
	product.Eventually(t, "the sum is 0", func() string {
		if pending, _ := f.report(); slices.Max(pending) != 0 {
			return fmt.Sprint(pending)
		}
		return ""
	})
	f.scale(0)
	if got := f.took.Load(); got != committed.Load() {
		t.Errorf("%d events were committed, %d delivered", committed.Load(), got)
	}
}
