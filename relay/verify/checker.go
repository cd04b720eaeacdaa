package verify

import (
	"fmt"
	"sync"

	"github.com/sagaz-relay/relay/relay"
)

// Event is one event, as it was committed or as a sink got it.
type Event struct {
	ID  relay.UUID
	Key string // the partition key
}

func (e Event) String() string { return fmt.Sprintf("%s (key %q)", e.ID, e.Key) }

// AnyNumber as Options.MaxDuplicates allows redeliveries without limit.
const AnyNumber = -1

// Options of a Checker. The zero value allows no duplicate.
type Options struct {
	// MaxDuplicates is how many redeliveries each sink may see, or AnyNumber. Their order is
	// checked in any case.
	MaxDuplicates int
}

// Checker takes notes of commits and deliveries, and judges them. All methods may be called from
// any goroutine. Commits and deliveries may be noted in any order relative to each other: a relay
// is often faster than the answer to COMMIT.
//
// It keeps about 100 bytes an event.
type Checker struct {
	opts Options

	mu        sync.Mutex // guards what follows
	keys      map[string]int32
	keyNames  []string
	committed map[relay.UUID]int32 // index into events
	events    []event              // in the order of Commit
	perKey    []int32              // by key: events committed so far
	sinks     []*sink              // in the order of their names' first mention
}

// event is a committed event and its place.
type event struct {
	id       relay.UUID
	key      int32
	position int32 // in its key's commit order
}

type sink struct {
	name       string
	deliveries []delivery
	dead       map[relay.UUID]struct{}
}

type delivery struct {
	id  relay.UUID
	key int32
}

// New returns a checker for the sinks named. A sink that is named and gets nothing is a sink that
// misses everything; one that is not named counts from its first delivery on.
func New(opts Options, sinks ...string) *Checker {
	c := &Checker{opts: opts, keys: make(map[string]int32), committed: make(map[relay.UUID]int32)}
	for _, name := range sinks {
		c.sink(name)
	}
	return c
}

// Commit notes committed events. Those of one key must come in commit order, over all calls; those
// of different keys in any. It panics when an event comes twice: event_id is the table's primary
// key, so the caller has miscounted.
func (c *Checker) Commit(events ...Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range events {
		if _, twice := c.committed[e.ID]; twice {
			panic("verify: event " + e.String() + " committed twice")
		}
		key := c.key(e.Key)
		c.committed[e.ID] = int32(len(c.events))
		c.events = append(c.events, event{e.ID, key, c.perKey[key]})
		c.perKey[key]++
	}
}

// Deliver notes what a sink got. Deliveries of one key must come in the order in which a consumer
// sees them (that of the partition, queue or file). Those of different keys may come in any.
func (c *Checker) Deliver(sinkName string, events ...Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sink(sinkName)
	for _, e := range events {
		s.deliveries = append(s.deliveries, delivery{e.ID, c.key(e.Key)})
	}
}

// DeadLetter notes events that the relay gave up for a sink, where a person can see and retry them.
// They need not arrive, and when they do, after a retry, they may be late.
func (c *Checker) DeadLetter(sinkName string, ids ...relay.UUID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sink(sinkName)
	if s.dead == nil {
		s.dead = make(map[relay.UUID]struct{})
	}
	for _, id := range ids {
		s.dead[id] = struct{}{}
	}
}

// Counts returns how many commits there were, and how many deliveries to a sink, repetitions
// included. It is cheap.
func (c *Checker) Counts(sinkName string) (committed, delivered int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sinks {
		if s.name == sinkName {
			delivered = len(s.deliveries)
		}
	}
	return len(c.events), delivered
}

// sink and key return what has the name, new if need be. The caller holds mu.
func (c *Checker) sink(name string) *sink {
	for _, s := range c.sinks {
		if s.name == name {
			return s
		}
	}
	s := &sink{name: name}
	c.sinks = append(c.sinks, s)
	return s
}

func (c *Checker) key(name string) int32 {
	k, ok := c.keys[name]
	if !ok {
		k = int32(len(c.keyNames))
		c.keys[name] = k
		c.keyNames = append(c.keyNames, name)
		c.perKey = append(c.perKey, 0)
	}
	return k
}
