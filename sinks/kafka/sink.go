package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/sagaz-relay/relay/relay"
)

// Sink publishes to a Kafka cluster. Its methods may be called from any goroutine.
type Sink struct {
	cfg       Config
	log       hclog.Logger
	addrs     []string // to start from
	dialer    *dialer
	control   *control
	topics    *topics
	refresher *refresher
	others    []*Sink // of this process; see Apart

	ctx        context.Context // ends, with ErrClosed, by Close
	cancel     context.CancelCauseFunc
	goroutines sync.WaitGroup

	producer     atomic.Pointer[producerID] // nil until asked for; see the package comment
	producerTurn relay.Turn                 // who has it asks

	mu      sync.Mutex
	brokers map[int32]*broker
	closed  bool
}

var (
	_ relay.Sink    = (*Sink)(nil)
	_ relay.Checker = (*Sink)(nil)
)

// New checks the configuration and reads the TLS files. It does not connect.
func New(cfg Config, log hclog.Logger) (*Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	addrs, err := cfg.addresses()
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = hclog.NewNullLogger()
	}
	s := &Sink{
		cfg:          cfg,
		log:          log,
		addrs:        addrs,
		producerTurn: relay.NewTurn(),
		brokers:      map[int32]*broker{},
	}
	if s.dialer, err = newDialer(&s.cfg); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.control = newControl(s.dialer, s.knownAddrs)
	s.topics = &topics{sink: s, known: map[string]*topic{}, missing: map[string]string{}}
	s.refresher = &refresher{sink: s, wake: make(chan struct{}, 1), topics: map[string]struct{}{}, limits: map[*topic]struct{}{}}
	if !cfg.Idempotence {
		s.producer.Store(&noProducer)
	}
	s.goroutines.Go(s.refresher.run)
	return s, nil
}

// Name returns "kafka", or the name that its Config has.
func (s *Sink) Name() string { return s.cfg.Called("kafka") }

// brokerTimeout is how long a broker waits for its replicas: less than we wait for it.
func (s *Sink) brokerTimeout() time.Duration { return s.cfg.RequestTimeout * 2 / 3 }

// Publish implements relay.Sink. Records are grouped by partition; groups go to their brokers at
// once and together with those of other lanes. Order holds per key within a topic, since topics
// have no order among themselves in Kafka. Even so, nothing of a key is sent behind a refused
// record. So a record waits, for a further round, for the one of its key before it when that one
// goes to another topic which is not known yet, to a partition that has taken nothing yet, or to a
// topic that has refused something lately.
func (s *Sink) Publish(ctx context.Context, batch []*relay.Record) error {
	if len(batch) == 0 {
		return nil
	}
	if s.ctx.Err() != nil {
		return ErrClosed
	}
	if ctx.Err() != nil {
		return fmt.Errorf("publish to kafka: %w", context.Cause(ctx))
	}
	if err := s.needProducer(ctx); err != nil {
		return fmt.Errorf("get a producer id from kafka: %w", err)
	}
	c := &call{batch: batch, fence: relay.Fence(ctx)}
	for places, more := []int32(nil), true; more; more = len(places) > 0 {
		var ended error
		if places, ended = s.round(ctx, c, places); ended != nil {
			for _, i := range places {
				c.fail(int(i), ended)
			}
			break
		}
		places = c.passable(places)
	}
	return s.result(ctx, c)
}

// round sends the records at the given places of the batch (nil for all) that need not wait for
// another record of their key, and waits for their fates. It returns the places of the rest, and
// why no further round is to be tried.
func (s *Sink) round(ctx context.Context, c *call, places []int32) (rest []int32, ended error) {
	c.done = make(chan struct{})
	c.open.Store(1) // itself, until all groups are made
	toAsk, rest := s.place(c, places, false)
	if len(toAsk) > 0 {
		s.askAbout(ctx, c, toAsk)
	}
	c.finish()
	select {
	case <-c.done:
		return rest, nil
	case <-ctx.Done():
		ended = fmt.Errorf("publish to kafka: %w", context.Cause(ctx))
	case <-s.ctx.Done():
		ended = ErrClosed
	}
	c.abandon(ended)
	return rest, ended
}

// call is one Publish under way.
type call struct {
	batch  []*relay.Record
	fence  func() bool  // whether it may still be sent
	groups []*group     // written by the Publish goroutine only
	open   atomic.Int32 // groups without all fates
	done   chan struct{}

	refusals atomic.Bool // refused has entries

	mu      sync.Mutex
	errs    []error        // by record; nil while none failed
	refused map[string]int // by key: the first refused record
}

func (c *call) fail(i int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.errs == nil {
		c.errs = make([]error, len(c.batch))
	}
	c.errs[i] = err
	if key := c.batch[i].Key; key != "" {
		if _, refused := relay.Refused(err); refused {
			if before, ok := c.refused[key]; !ok || i < before {
				if c.refused == nil {
					c.refused = map[string]int{}
				}
				c.refused[key] = i
				c.refusals.Store(true)
			}
		}
	}
}

// behind reports whether record i is behind a refused one of its key.
func (c *call) behind(i int) bool {
	if !c.refusals.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	first, ok := c.refused[c.batch[i].Key]
	return ok && first < i
}

// passable fails the records at those of the places that are behind one of their key without an
// acknowledgement, and returns the other places.
func (c *call) passable(places []int32) []int32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(places) == 0 || c.errs == nil {
		return places
	}
	failed := map[string]error{}
	for i, rec := range c.batch {
		if c.errs[i] != nil && failed[rec.Key] == nil {
			failed[rec.Key] = fateBehind(c.errs[i], "not sent")
		}
	}
	return slices.DeleteFunc(places, func(i int32) bool {
		err := failed[c.batch[i].Key]
		if err != nil {
			c.errs[i] = err
		}
		return err != nil
	})
}

// fateBehind is the fate of a record behind one of its key with err.
func fateBehind(err error, what string) error {
	if _, refused := relay.Refused(err); refused || errors.Is(err, relay.ErrBehind) {
		return relay.ErrBehind
	}
	return fmt.Errorf("%s, an earlier record of the same key failed: %w", what, err)
}

func (c *call) finish() {
	if c.open.Add(-1) == 0 {
		close(c.done)
	}
}

func (c *call) abandon(err error) {
	for _, g := range c.groups {
		g.p.abandon(g, err)
	}
}

// enqueue hands the groups from first on to their partitions.
func (c *call) enqueue(first int) {
	c.open.Add(int32(len(c.groups) - first))
	for _, g := range c.groups[first:] {
		g.p.enqueue(g)
	}
}

// destination is a topic as one round sees it: with one number of partitions from beginning to end.
type destination struct {
	parts   []*partition
	groups  []*group // by partition; nil where nothing goes
	keyless *partition
	t       *topic
	ask     bool // must be asked about first
	awaited bool // what is behind its records waits for their fate, except in the same partition
	untried bool // that goes for the records of some of its partitions
}

// destinations looks at all the topics that a round sends to. mayWait is whether a record may have
// to wait for another one of its key. asked is whether large records were looked at.
func (s *Sink) destinations(c *call, n int, at func(int) int32, asked bool) (dests map[string]*destination, mayWait bool) {
	var (
		now  = time.Now()
		name string
		d    *destination
	)
	dests = make(map[string]*destination, 8)
	for i := range n {
		rec := c.batch[at(i)]
		if d == nil || rec.Topic != name {
			name = rec.Topic
			if d = dests[name]; d == nil {
				d = new(destination)
				if d.t, d.parts = s.topics.lookup(name, now); d.t == nil {
					d.ask, d.awaited = true, true
				} else {
					d.awaited, d.untried = d.t.refusedLately(now), d.t.untried.Load() > 0
				}
				d.groups = make([]*group, len(d.parts))
				dests[name] = d
				mayWait = mayWait || d.awaited || d.untried
			}
		}
		if !asked && rec.Size() > s.cfg.BatchBytes {
			d.ask, d.awaited, mayWait = true, true, true
		}
	}
	return dests, mayWait
}

// place groups the records at the given places of the batch, nil for all, by partition and sends
// them, with two exceptions. toAsk are, by topic, the places of records whose topic must be asked
// about first, because it is not known yet, or because a record is so large that the topic's limit
// must be known. Topics that only a further round needs are in it without places. rest are the
// places of records behind one of their key that goes to another, awaited topic.
func (s *Sink) place(c *call, places []int32, asked bool) (toAsk map[string][]int32, rest []int32) {
	n := len(places)
	if places == nil {
		n = len(c.batch)
	}
	at := func(i int) int32 {
		if places == nil {
			return int32(i)
		}
		return places[i]
	}
	dests, mayWait := s.destinations(c, n, at, asked)
	var (
		name  string
		d     *destination
		to    = make([]*group, n)
		first = len(c.groups)
		// by key: the awaited topic that it went to, nil once a record of it is in rest
		ahead  map[string]*destination
		locate = func(rec *relay.Record) {
			if d == nil || rec.Topic != name {
				name, d = rec.Topic, dests[rec.Topic]
			}
		}
	)
	if mayWait {
		toAsk, ahead = map[string][]int32{}, map[string]*destination{}
		for name, d := range dests {
			if d.ask {
				toAsk[name] = nil
			}
		}
	}
	for i := range n {
		rec := c.batch[at(i)]
		locate(rec)
		var (
			index   int32
			chosen  bool
			refusal error
		)
		if !d.ask {
			index, chosen, refusal = s.partitionOf(rec, len(d.parts))
		}
		if mayWait && rec.Key != "" {
			if len(ahead) > 0 {
				// With a header a key may be in several partitions, which have no order either.
				if before, ok := ahead[rec.Key]; ok && (before != d || s.cfg.PartitionHeader != "") {
					ahead[rec.Key] = nil
					rest = append(rest, at(i))
					continue
				}
			}
			if d.awaited || d.untried && !d.parts[index].tried.Load() {
				ahead[rec.Key] = d
			}
		}
		switch {
		case d.ask:
			toAsk[rec.Topic] = append(toAsk[rec.Topic], at(i))
			continue
		case refusal != nil: // not sooner, since nothing of its key may be behind it that comes before it
			c.fail(int(at(i)), refusal)
			continue
		case chosen || rec.MessageKey() != "":
		case d.keyless == nil:
			d.keyless = d.t.spread(d.parts)
			fallthrough
		default:
			index = d.keyless.index
		}
		g := d.groups[index]
		if g == nil {
			g = &group{call: c, p: d.parts[index]}
			d.groups[index] = g
			c.groups = append(c.groups, g)
		}
		g.next++ // the number of its records, until they are there
		to[i] = g
	}
	s.fill(c, c.groups[first:], to, at)
	c.enqueue(first)
	return toAsk, rest
}

// partitionOf returns the partition of a record, by its header or by its key; chosen is whether a
// header says it. Without both it is 0, and the sink spreads the record.
func (s *Sink) partitionOf(rec *relay.Record, parts int) (index int32, chosen bool, err error) {
	if name := s.cfg.PartitionHeader; name != "" {
		for i := range rec.Headers {
			if h := &rec.Headers[i]; h.Key == name && !h.Null() {
				return headerPartition(rec.Topic, h, parts)
			}
		}
	}
	if key := rec.MessageKey(); key != "" {
		index = int32(partitionOf(key, parts))
	}
	return index, false, nil
}

// headerPartition reads a partition's number. One that is too high may be there later, as a topic
// may.
func headerPartition(topic string, h *relay.Header, parts int) (index int32, chosen bool, err error) {
	n, err := strconv.ParseUint(h.Value, 10, 31)
	switch {
	case err != nil:
		return 0, true, relay.Refuse(relay.ReasonEncode, fmt.Errorf("header %s: want the number of a partition, from 0 on", h.Key))
	case int(n) >= parts:
		return 0, true, relay.Refuse(relay.ReasonUnknownTopic, fmt.Errorf("header %s: topic %s has no partition %d, it has %d", h.Key, topic, n, parts))
	}
	return int32(n), true, nil
}

// fill gives the groups their records. The groups share two arrays.
func (s *Sink) fill(c *call, groups []*group, to []*group, at func(int) int32) {
	if len(groups) == 1 && groups[0].next == len(c.batch) {
		groups[0].recs, groups[0].next = c.batch, 0
		return
	}
	recs, pos := make([]*relay.Record, len(to)), make([]int32, len(to))
	for _, g := range groups {
		n := g.next
		g.recs, recs = recs[:0:n], recs[n:]
		g.pos, pos = pos[:0:n], pos[n:]
		g.next = 0
	}
	for i, g := range to {
		if g != nil {
			g.recs, g.pos = append(g.recs, c.batch[at(i)]), append(g.pos, at(i))
		}
	}
}

// askAbout asks about the topics and then sends their records, or fails them.
func (s *Sink) askAbout(ctx context.Context, c *call, toAsk map[string][]int32) {
	ctx, cancel := s.whileOpen(ctx)
	defer cancel()
	send := func(name string) {
		places := s.refuseLarge(ctx, c, name, toAsk[name])
		if len(places) == 0 {
			return
		}
		rest, _ := s.place(c, places, true)
		for _, places := range rest { // gone again since it was found
			for _, i := range places {
				c.fail(int(i), fmt.Errorf("topic %s: %w", name, kafkago.UnknownTopicOrPartition))
			}
		}
	}
	var unknown []string
	for name := range toAsk {
		if _, ok := s.topics.live.Load(name); ok {
			send(name)
		} else {
			unknown = append(unknown, name)
		}
	}
	for name, err := range s.topics.resolve(ctx, unknown, send) {
		for _, i := range toAsk[name] {
			c.fail(int(i), err)
		}
	}
}

// refuseLarge refuses records that the topic would not take, so that they do not travel only to be
// thrown away, and returns the places of the others. Where the limit is not known the broker
// decides.
func (s *Sink) refuseLarge(ctx context.Context, c *call, name string, places []int32) []int32 {
	v, ok := s.topics.live.Load(name)
	if !ok {
		return places
	}
	plain := codecs[s.cfg.Compression] == codecs["none"]
	return slices.DeleteFunc(slices.Clone(places), func(i int32) bool {
		rec := c.batch[i]
		if rec.Size() <= s.cfg.BatchBytes {
			return false
		}
		size, limit := recordSize(rec), s.topics.learnLimit(ctx, v.(*topic))
		switch {
		case plain && limit > 0 && int64(size) > limit:
			c.fail(int(i), tooLarge(size, limit, fmt.Errorf("larger than max.message.bytes of topic %s", name)))
		case size > maxRecord && (!plain || limit == 0):
			c.fail(int(i), tooLarge(size, limit, fmt.Errorf("larger than %d bytes, about what a broker reads in one request (socket.request.max.bytes)", maxRecord)))
		default:
			return false
		}
		return true
	})
}

// result makes the fates into what Publish returns.
func (s *Sink) result(ctx context.Context, c *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.errs == nil {
		return nil
	}
	// Of each key acknowledged ones are at the front, and then either transient errors or one
	// refusal with ErrBehind after it. What was acknowledged behind that, in another topic, counts
	// as failed too.
	failed := map[string]error{}
	for i, rec := range c.batch {
		err := c.errs[i]
		if before := failed[rec.Key]; before != nil {
			if errors.Is(before, relay.ErrBehind) {
				c.errs[i] = before
				continue
			}
			if _, refused := relay.Refused(err); refused || err == nil || errors.Is(err, relay.ErrBehind) {
				c.errs[i] = before
			}
			continue
		}
		if err == nil {
			continue
		}
		if rec.Key != "" {
			failed[rec.Key] = fateBehind(err, "to be offered again")
		}
		if r, ok := relay.Refused(err); ok && r.Reason == relay.ReasonTooLarge && r.Limit == 0 && ctx.Err() == nil {
			if v, ok := s.topics.live.Load(rec.Topic); ok {
				ctx, cancel := s.whileOpen(ctx)
				c.errs[i] = tooLarge(int(r.Size), s.topics.learnLimit(ctx, v.(*topic)), r.Err)
				cancel()
			}
		}
	}
	return &relay.BatchError{Errs: c.errs}
}

// Check asks a broker for the cluster's brokers. Its error names the address and what to check.
func (s *Sink) Check(ctx context.Context) error {
	if s.ctx.Err() != nil {
		return ErrClosed
	}
	ctx, cancel := s.whileOpen(ctx)
	defer cancel()
	res, err := s.control.topics(ctx, nil)
	if err != nil {
		return err
	}
	s.setBrokers(res.Brokers)
	return nil
}

// Close ends all connections and goroutines. A Publish in progress returns ErrClosed.
func (s *Sink) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel(ErrClosed)
	s.goroutines.Wait()
	s.control.close()
	return nil
}

// whileOpen returns a context that ends with ctx or with the sink.
func (s *Sink) whileOpen(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// producerPause is between two questions for a producer id.
const producerPause = 20 * time.Millisecond

// needProducer gets a producer id if the sink has none.
func (s *Sink) needProducer(ctx context.Context) error {
	if s.producer.Load() != nil {
		return nil
	}
	ctx, cancel := s.whileOpen(ctx)
	defer cancel()
	if err := s.producerTurn.Take(ctx); err != nil {
		return err
	}
	defer s.producerTurn.Give()
	if s.producer.Load() != nil {
		return nil
	}
	var id producerID
	end := time.Now().Add(s.cfg.DialTimeout)
	err := relay.Retry(ctx, relay.Backoff{Min: producerPause, Max: producerPause}, func() (err error) {
		id, err = s.control.producer(ctx)
		return err
	}, func(err error, _ time.Duration) bool {
		// The broker has just started, or is about to hand out a new block of ids.
		return loading(err) && time.Now().Before(end)
	})
	switch {
	case err == nil:
	case unsupported(err):
		s.withoutProducer(err)
		return nil
	case loading(err) && ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return err
	}
	s.producer.Store(&id)
	return nil
}

// withoutProducer goes on without a producer id, for good.
func (s *Sink) withoutProducer(err error) {
	if before := s.producer.Swap(&noProducer); before == nil || *before != noProducer {
		s.log.Warn(s.cfg.Said("no producer id, a request that times out may be appended late and out of order; grant IDEMPOTENT_WRITE on the cluster, or set RELAY_KAFKA_IDEMPOTENCE=false to silence this"), "error", err)
	}
}

// broker returns the sender for a node.
func (s *Sink) broker(id int32) *broker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.brokerLocked(id)
}

func (s *Sink) brokerLocked(id int32) *broker {
	b := s.brokers[id]
	if b == nil {
		b = &broker{sink: s, id: id, wake: make(chan struct{}, 1)}
		b.batch.compression = codecs[s.cfg.Compression]
		s.brokers[id] = b
		if !s.closed {
			s.goroutines.Go(b.run)
		}
	}
	return b
}

// setBrokers takes over the cluster's addresses.
func (s *Sink) setBrokers(brokers []metadata.ResponseBroker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range brokers {
		b := s.brokerLocked(m.NodeID)
		b.mu.Lock()
		b.addr = net.JoinHostPort(m.Host, strconv.Itoa(int(m.Port)))
		b.mu.Unlock()
	}
}

// knownAddrs are the configured addresses and those learnt since.
func (s *Sink) knownAddrs() []string {
	addrs := slices.Clone(s.addrs)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.brokers {
		if addr := b.address(); addr != "" && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}
