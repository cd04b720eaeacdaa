package kafka

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/sagaz-relay/relay/relay"
)

// topic is what the sink knows of one. Once known it is kept, even while the broker denies it,
// because its partitions' sequence numbers must never start over under the same producer id. A
// broker would take the records for copies and drop them.
type topic struct {
	name    string
	parts   atomic.Pointer[[]*partition] // as in the cluster's last answer; nil when it has none
	fetched atomic.Int64                 // when that was, Unix nanoseconds
	turn    atomic.Uint32                // the next one to take records without a key

	limit   atomic.Int64 // max.message.bytes, 0 when not known
	limitAt atomic.Int64 // when it was learnt

	refusedAt atomic.Int64 // when a broker last refused a record for it, Unix nanoseconds

	// untried is how many partitions have not taken anything from us under their present leader.
	untried atomic.Int64

	all []*partition // all that there ever were; guarded by topics.mu
}

// limitTTL is short: it is how long an operator waits after having raised a topic's limit.
const limitTTL = 5 * time.Second

// awaitedFor is how long the same key's records for other topics wait for the records to a topic
// that refused one.
const awaitedFor = 30 * time.Second

func (t *topic) refusedLately(now time.Time) bool {
	at := t.refusedAt.Load()
	return at > 0 && now.UnixNano()-at < int64(awaitedFor)
}

// batchLimit is how large a batch for the topic may be.
func (t *topic) batchLimit(configured int) int {
	if limit := t.limit.Load(); limit > 0 && limit < int64(configured) && time.Since(time.Unix(0, t.limitAt.Load())) < 10*limitTTL {
		return int(limit)
	}
	return configured
}

// spread returns the partition for records without a key of one batch: another one for each batch,
// one that has a leader if any has.
func (t *topic) spread(parts []*partition) *partition {
	first := t.turn.Add(1)
	for i := range uint32(len(parts)) {
		p := parts[(first+i)%uint32(len(parts))]
		p.mu.Lock()
		ok := p.leader >= 0
		p.mu.Unlock()
		if ok {
			return p
		}
	}
	return parts[first%uint32(len(parts))]
}

// topics is the sink's memory of the cluster.
type topics struct {
	sink *Sink
	live sync.Map // name → *topic with at least one partition

	mu    sync.Mutex
	known map[string]*topic
	// topics that did not come, and why they are not created, as far as brokers report that
	missing map[string]string
}

// lookup returns a topic that can be written to without asking first, and has it asked for in the
// background when what is known is getting old.
func (ts *topics) lookup(name string, now time.Time) (*topic, []*partition) {
	v, ok := ts.live.Load(name)
	if !ok {
		return nil, nil
	}
	t := v.(*topic)
	if at := t.fetched.Load(); now.UnixNano()-at > int64(ts.sink.cfg.MetadataTTL) && t.fetched.CompareAndSwap(at, now.UnixNano()) {
		ts.sink.refresher.learnTopic(name)
	}
	return t, *t.parts.Load()
}

// fetch asks the cluster about topics and takes over the answer. The codes are by topic.
func (ts *topics) fetch(ctx context.Context, names []string) (map[string]kafkago.Error, error) {
	res, err := ts.sink.control.topics(ctx, names)
	if err != nil {
		return nil, err
	}
	ts.sink.setBrokers(res.Brokers)
	codes := make(map[string]kafkago.Error, len(res.Topics))
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for i := range res.Topics {
		codes[res.Topics[i].Name] = ts.apply(&res.Topics[i])
	}
	return codes, nil
}

func (ts *topics) apply(m *metadata.ResponseTopic) kafkago.Error {
	code := kafkago.Error(m.ErrorCode)
	t := ts.known[m.Name]
	n := 0
	if code == 0 {
		for _, p := range m.Partitions {
			n = max(n, int(p.PartitionIndex)+1)
		}
	}
	if n == 0 {
		if t != nil && code == kafkago.UnknownTopicOrPartition { // deleted
			ts.live.Delete(m.Name)
			t.setLeaders(nil, 0)
		}
		if code == 0 {
			return kafkago.LeaderNotAvailable
		}
		return code
	}
	if t == nil {
		t = &topic{name: m.Name}
		ts.known[m.Name] = t
	}
	for len(t.all) < n {
		t.untried.Add(1)
		t.all = append(t.all, &partition{sink: ts.sink, topic: t, index: int32(len(t.all)), leader: -1, asked: true})
	}
	if before := t.parts.Load(); before == nil || len(*before) != n {
		if before != nil {
			ts.sink.log.Info("number of partitions changed, keys move", "topic", t.name, "from", len(*before), "to", n)
		}
		parts := slices.Clone(t.all[:n])
		t.parts.Store(&parts)
	}
	led := t.setLeaders(m.Partitions, n)
	t.fetched.Store(time.Now().UnixNano())
	delete(ts.missing, m.Name)
	ts.live.Store(m.Name, t)
	if led == 0 {
		return kafkago.LeaderNotAvailable
	}
	return 0
}

// setLeaders takes over the leaders from an answer; partitions that are not in it have none. It
// returns how many have one.
func (t *topic) setLeaders(parts []metadata.ResponsePartition, n int) (led int) {
	leaders := make([]int32, len(t.all))
	for i := range leaders {
		leaders[i] = -1
	}
	for i := range parts {
		if parts[i].LeaderID >= 0 {
			leaders[parts[i].PartitionIndex] = parts[i].LeaderID
			led++
		}
	}
	for i, p := range t.all {
		p.mu.Lock()
		if p.leader != leaders[i] {
			p.setTried(false)
		}
		p.leader = leaders[i]
		if i >= n {
			p.resync = true // if it comes back, then under a new epoch
		}
		p.mu.Unlock()
	}
	return led
}

// resolve finds topics that are not known yet and hands each to found as soon as it can be written
// to. For the others it returns the error: a refusal when a topic is not there after the wait, a
// transient error when the cluster could not be asked.
func (ts *topics) resolve(ctx context.Context, names []string, found func(name string)) map[string]error {
	failed := map[string]error{}
	var open []string
	for _, name := range names {
		if legalTopic(name) {
			open = append(open, name)
		} else {
			failed[name] = relay.Refuse(relay.ReasonUnknownTopic, fmt.Errorf(
				"%q is no legal topic name: 1 to 249 of a-z A-Z 0-9 . _ - and not . or ..; change event_type, RELAY_TOPIC or the topic of its rule", name))
		}
	}
	deadline := time.Now().Add(ts.sink.cfg.TopicWait)
	// No relay.Retry: each question is about fewer topics, and has an answer for each.
	for pause := 25 * time.Millisecond; ; pause = min(2*pause, 400*time.Millisecond) {
		if len(open) == 0 {
			return failed
		}
		codes, err := ts.fetch(ctx, open)
		now := time.Now()
		open = slices.DeleteFunc(open, func(name string) bool {
			if err != nil {
				failed[name] = fmt.Errorf("find topic %s: %w", name, err)
				return true
			}
			code := codes[name]
			switch code {
			case 0:
				found(name)
				return true
			case kafkago.InvalidTopic:
				why := ts.whyMissing(ctx, name)
				if why == "" {
					why = code.Error()
				}
				failed[name] = relay.Refuse(relay.ReasonUnknownTopic, fmt.Errorf("topic %s: %s", name, why))
				return true
			case kafkago.TopicAuthorizationFailed:
				failed[name] = relay.Refuse(relay.ReasonRejected, fmt.Errorf("topic %s: %w; grant the user WRITE and DESCRIBE on it (and CREATE, if brokers are to create it)", name, code))
				return true
			case kafkago.UnknownTopicOrPartition:
				if now.Before(deadline) && !ts.isMissing(name) {
					return false
				}
				if why := ts.whyMissing(ctx, name); why != "" {
					failed[name] = relay.Refuse(relay.ReasonUnknownTopic, fmt.Errorf("topic %s does not exist: %s", name, why))
					return true
				}
				failed[name] = relay.Refuse(relay.ReasonUnknownTopic, fmt.Errorf(
					"topic %s does not exist and was not created within %s: create it, or let brokers do so (auto.create.topics.enable)", name, ts.sink.cfg.TopicWait))
				return true
			default: // just created and not led yet, or a broker that is not ready
				if now.Before(deadline) {
					return false
				}
				failed[name] = fmt.Errorf("topic %s: %w", name, code)
				return true
			}
		})
		if len(open) == 0 {
			return failed
		}
		if !relay.Sleep(ctx, pause) {
			for _, name := range open {
				failed[name] = context.Cause(ctx)
			}
			return failed
		}
	}
}

// A topic that did not come is not waited for again: it is asked for once.
func (ts *topics) isMissing(name string) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	_, ok := ts.missing[name]
	return ok
}

// whyMissing notes that a topic did not come, and asks once why it is not created.
func (ts *topics) whyMissing(ctx context.Context, name string) string {
	ts.mu.Lock()
	why, ok := ts.missing[name]
	ts.mu.Unlock()
	if ok {
		return why
	}
	why = ts.sink.control.notCreated(ctx, name)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if len(ts.missing) >= 10_000 { // names come from rows
		clear(ts.missing)
	}
	ts.missing[strings.Clone(name)] = why // a part of a row's text keeps all of it
	return why
}

// learnLimit asks for the topic's max.message.bytes unless it is known. 0 is not known.
func (ts *topics) learnLimit(ctx context.Context, t *topic) int64 {
	if time.Since(time.Unix(0, t.limitAt.Load())) < limitTTL {
		return t.limit.Load()
	}
	limit, err := ts.sink.control.limit(ctx, t.name)
	if err != nil {
		ts.sink.log.Debug("limit not learnt", "topic", t.name, "error", err)
		return t.limit.Load()
	}
	t.limit.Store(limit)
	t.limitAt.Store(time.Now().UnixNano())
	return limit
}

// refresher asks the cluster in the background, for partitions that wait for a leader, for topics
// whose time is up, for limits. It asks one question at a time; what gathers meanwhile goes with
// the next.
type refresher struct {
	sink *Sink
	wake chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []*partition
	topics  map[string]struct{}
	limits  map[*topic]struct{}
}

// add takes a partition that is to be routed when its leader is known. Its mutex is held.
func (r *refresher) add(p *partition) {
	r.mu.Lock()
	r.waiting = append(r.waiting, p)
	r.topics[p.topic.name] = struct{}{}
	r.mu.Unlock()
	relay.Wake(r.wake)
}

func (r *refresher) learnTopic(name string) {
	r.mu.Lock()
	r.topics[name] = struct{}{}
	r.mu.Unlock()
	relay.Wake(r.wake)
}

func (r *refresher) learnLimit(t *topic) {
	r.mu.Lock()
	r.limits[t] = struct{}{}
	r.mu.Unlock()
	relay.Wake(r.wake)
}

func (r *refresher) run() {
	ctx := r.sink.ctx
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		waiting, names, limits := r.waiting, r.topics, r.limits
		r.waiting, r.topics, r.limits = nil, map[string]struct{}{}, map[*topic]struct{}{}
		r.mu.Unlock()
		if len(names) > 0 {
			r.refresh(ctx, waiting, names)
		}
		for t := range limits {
			r.sink.topics.learnLimit(ctx, t)
		}
	}
}

func (r *refresher) refresh(ctx context.Context, waiting []*partition, topics map[string]struct{}) {
	names := make([]string, 0, len(topics))
	for name := range topics {
		names = append(names, name)
	}
	if slices.ContainsFunc(waiting, (*partition).movedAgain) {
		relay.Sleep(ctx, movePause)
	}
	codes, err := r.sink.topics.fetch(ctx, names)
	if err != nil && len(waiting) == 0 {
		r.sink.log.Debug("topics not refreshed", "topics", len(names), "error", err)
	}
	for _, p := range waiting {
		p.mu.Lock()
		p.listed = false
		switch {
		case err != nil:
			p.failAll(fmt.Errorf("find the leader of %s/%d: %w", p.topic.name, p.index, err))
		case p.leader < 0:
			code := codes[p.topic.name]
			if code == 0 {
				code = kafkago.LeaderNotAvailable
			}
			p.failAll(fmt.Errorf("find the leader of %s/%d: %w", p.topic.name, p.index, code))
		default:
			p.stale, p.asked = false, true
			p.route()
		}
		p.mu.Unlock()
	}
}
