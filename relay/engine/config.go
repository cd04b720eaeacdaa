package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/relay"
)

// Config is what can be set of the engine. It is fixed once New has taken it.
type Config struct {
	// WorkerID names this relay in the lease, in logs and in metric labels.
	//
	// Default: the host name. WORKER_ID.
	WorkerID string `env:"WORKER_ID"`

	// Lanes is the number of ordered lanes per sink. One key always uses one lane, so more lanes
	// publish more keys at once; each costs a goroutine and one batch in flight. Too many make
	// batches small, which costs the broker and the relay CPU; past the number of busy keys they
	// buy nothing.
	//
	// Default 4. RELAY_LANES.
	Lanes int `env:"RELAY_LANES"`

	// BatchSize is the most events that a lane offers its sink at once. Below 100 the brokers'
	// round trips show; above some thousands memory and latency grow and nothing gets faster. Where
	// a relay owns several slots, a lane of each offers an equal part, but no fewer than 100.
	//
	// Default 1000. BATCH_SIZE or WORKER_BATCH_SIZE.
	BatchSize int `env:"BATCH_SIZE,WORKER_BATCH_SIZE"`

	// BatchBytes is the most bytes that a lane offers its sink at once; a single larger event goes
	// alone. Where a relay owns several slots, a lane of each offers an equal part, but no less than
	// 64 KiB.
	//
	// Default 1 MiB. RELAY_BATCH_BYTES.
	BatchBytes int `env:"RELAY_BATCH_BYTES"`

	// InflightEvents and InflightBytes bound what has been read from a slot and is not yet marked.
	// When either is spent the relay stops reading, and PostgreSQL waits. Where a relay owns several
	// slots, each has an equal share. They bound memory: about
	// twice InflightBytes, whatever the size of a transaction. Too little makes the stream stop and
	// go: the product of rate and time from commit to mark has to fit. One event larger than all of
	// it still passes, alone.
	//
	// Defaults 16384 events, 16 MiB. RELAY_INFLIGHT_EVENTS, RELAY_INFLIGHT_BYTES.
	InflightEvents int `env:"RELAY_INFLIGHT_EVENTS"`
	InflightBytes  int `env:"RELAY_INFLIGHT_BYTES"`

	// MarkBatch is the most rows marked in one transaction, MarkLinger the longest that a lone
	// resolved event waits for company. Small batches cost the database a commit each; a long
	// linger makes rows say "pending" longer than they are. At most 32767 rows and 10s.
	//
	// Defaults 2500 rows, 20ms. RELAY_MARK_BATCH, RELAY_MARK_LINGER.
	MarkBatch  int           `env:"RELAY_MARK_BATCH"`
	MarkLinger time.Duration `env:"RELAY_MARK_LINGER"`

	// PublishTimeout bounds one offer of a batch to a sink. The fate of what was under way is
	// unknown then, and it is offered again.
	//
	// Default 60s. RELAY_PUBLISH_TIMEOUT.
	PublishTimeout time.Duration `env:"RELAY_PUBLISH_TIMEOUT"`

	// BackoffMin and BackoffMax bound the wait before a lane offers again after a transient error,
	// or a connection is tried again. It doubles from one to the other, with jitter.
	//
	// Defaults 100ms, 5s. RELAY_BACKOFF_MIN, RELAY_BACKOFF_MAX.
	BackoffMin time.Duration `env:"RELAY_BACKOFF_MIN"`
	BackoffMax time.Duration `env:"RELAY_BACKOFF_MAX"`

	// DrainTimeout is how long a stopping relay lets events in flight finish. What is not marked by
	// then is delivered again by the next owner. Keep it below the pod's
	// terminationGracePeriodSeconds.
	//
	// Default 20s. RELAY_DRAIN_TIMEOUT.
	DrainTimeout time.Duration `env:"RELAY_DRAIN_TIMEOUT"`

	// Hybrid makes the relay claim the row of every event before it publishes it, and leave out
	// what another worker has claimed or sent, so that the library's worker may publish from the
	// same table at the same time (docs/migrating-from-the-python-worker.md). Without it each would
	// send what the other has sent. It costs a query and an update a batch. Order per key holds
	// among what the relay sends.
	//
	// Default false. RELAY_HYBRID.
	Hybrid bool `env:"RELAY_HYBRID"`

	// Mode is how events are found. "cdc" streams from a replication slot and refuses to start
	// where that is impossible. "polling" looks at the table every PollInterval, and needs neither
	// wal_level = logical nor the REPLICATION right, and may have a pooler in between. "auto"
	// streams if it can. If it cannot, it logs why, and polls until it can.
	//
	// Default auto. RELAY_MODE or SAGAZ_OUTBOX_MODE.
	Mode string `env:"RELAY_MODE,SAGAZ_OUTBOX_MODE"`

	// PollInterval is the pause between two looks at the table for rows that the stream does not
	// deliver. While polling it is the latency; while streaming such rows are exceptions. A look
	// that takes long is made less often, so that looking takes at most 1/500 of the database's
	// time.
	//
	// Default 1s. POLL_INTERVAL or WORKER_POLL_INTERVAL_SECONDS.
	PollInterval time.Duration `env:"POLL_INTERVAL,WORKER_POLL_INTERVAL_SECONDS"`

	// MaxRetries is the number of refusals after which an event is a dead letter. Only what is the
	// event's own fault counts: a broker that is down charges nothing.
	//
	// Default 5. MAX_RETRIES or MAX_RETRY_ATTEMPTS.
	MaxRetries int `env:"MAX_RETRIES,MAX_RETRY_ATTEMPTS"`

	// UnroutablePatience is for how long at least an event is offered again that a person can make
	// welcome: no queue is bound for it, or its topic does not exist. It is a dead letter when that
	// time is over and MaxRetries are spent. Later events of its key wait as long. Counted are the
	// pauses between the offers, at their shortest, so time in which no relay runs does not count.
	// 0 leaves MaxRetries alone to decide.
	//
	// Default 15m. RELAY_UNROUTABLE_PATIENCE.
	UnroutablePatience time.Duration `env:"RELAY_UNROUTABLE_PATIENCE"`

	// RetryMin and RetryMax bound the wait before a refused event is offered again. It doubles from
	// one to the other, with jitter.
	//
	// Defaults 1s, 1m. INITIAL_RETRY_DELAY_SECONDS, MAX_RETRY_DELAY_SECONDS.
	RetryMin time.Duration `env:"INITIAL_RETRY_DELAY_SECONDS"`
	RetryMax time.Duration `env:"MAX_RETRY_DELAY_SECONDS"`

	// DeadLetter is what a dead letter means for later events of its key: with "continue" they go
	// on without it, with "hold" they wait until a person retries or discards it (sagaz-relay
	// dead-letter).
	//
	// Default continue. RELAY_DEAD_LETTER.
	DeadLetter string `env:"RELAY_DEAD_LETTER"`

	// SinkIsolation is for how long a sink may fail before its events go to the ledger, so that the
	// other sinks and the slot go on. Too short moves events to the ledger at every hiccup, which
	// costs the database some writes; too long keeps the other sinks waiting once the in-flight
	// budget is spent. It also bounds one offer, so keep it well above a broker's slowest answer.
	//
	// Default 30s. RELAY_SINK_ISOLATION.
	SinkIsolation time.Duration `env:"RELAY_SINK_ISOLATION"`

	// StallTimeout is after how long an owner that has work and moves nothing gives the lease up,
	// so that another relay may try; 0 is never. A sink that is down is no reason, nor is a
	// transaction that the server waits for. Longer than an offer, a mark and a sink's isolation
	// may take, or a lease would change hands for what passes by itself; what was published and not
	// marked is published again by the next owner. It doubles each time that nothing was marked in
	// between.
	//
	// Default 5m. RELAY_STALL_TIMEOUT.
	StallTimeout time.Duration `env:"RELAY_STALL_TIMEOUT"`

	// WALBudget is how much WAL, in bytes, the slot may hold back before the events of sinks that
	// are behind go to the ledger, so that the slot can move. It keeps the database's disk safe,
	// and the slot from being invalidated. 0 means half of the server's max_slot_wal_keep_size, and
	// nothing where that has no limit. Leave room above it for what is written in 5 s and one
	// publish timeout.
	//
	// Default 0. RELAY_WAL_BUDGET.
	WALBudget int `env:"RELAY_WAL_BUDGET"`

	// Retention is the age at which rows that were sent are removed, in small batches, by the
	// owner of the (first) slot; 0 keeps them. RetentionAction is "delete", or "archive", which moves them to
	// saga_outbox_archive.
	//
	// Defaults 0s, delete. RELAY_RETENTION, RELAY_RETENTION_ACTION.
	Retention       time.Duration `env:"RELAY_RETENTION"`
	RetentionAction string        `env:"RELAY_RETENTION_ACTION"`

	// SinksByDefault: nobody has named the sinks, so that they must be those of the relay
	// before (CheckSinks). Default nil: they are named.
	SinksByDefault *relay.SinksByDefault

	// BrokerTypes are the sinks that BROKER_TYPE can name; those of other names are of RELAY_SINKS.
	// For messages. Default nil: all.
	BrokerTypes []string

	// Routers have the rules by which events go to sinks, by the sinks' names. A sink without one gets
	// every event as it is. Default nil: all do.
	Routers map[string]relay.Router

	// Tracer gets what was done, for traces. Default nil: none.
	Tracer relay.Tracer
}

// DefaultConfig returns every default but WorkerID, which depends on the machine.
func DefaultConfig() Config {
	return Config{
		Lanes:          4,
		BatchSize:      1000,
		BatchBytes:     1 << 20,
		InflightEvents: 16384,
		InflightBytes:  16 << 20,
		MarkBatch:      2500,
		MarkLinger:     20 * time.Millisecond,
		PublishTimeout: 60 * time.Second,
		BackoffMin:     100 * time.Millisecond,
		BackoffMax:     5 * time.Second,
		DrainTimeout:   20 * time.Second,

		Mode:               relay.ModeAuto,
		PollInterval:       time.Second,
		MaxRetries:         5,
		UnroutablePatience: 15 * time.Minute,
		RetryMin:           time.Second,
		RetryMax:           time.Minute,
		DeadLetter:         relay.DeadLetterContinue,
		SinkIsolation:      30 * time.Second,
		StallTimeout:       5 * time.Minute,
		RetentionAction:    relay.RetentionDelete,
	}
}

// longestWorkerID is that of the table's worker_id, and of any host name.
const longestWorkerID = 255

// maxMarkLinger bounds how far rows are behind the truth: a longer linger is a slip, and looks as
// if nothing were marked.
const maxMarkLinger = 10 * time.Second

// Validate reports everything that is wrong at once, by the names the user typed.
func (c *Config) Validate() error {
	var errs []error
	atLeast := func(name string, got, want int) {
		if got < want {
			errs = append(errs, fmt.Errorf("%s=%d: want at least %d", name, got, want))
		}
	}
	positive := func(name string, got time.Duration) {
		if got <= 0 {
			errs = append(errs, fmt.Errorf("%s=%s: want a duration above 0, such as 5s", name, got))
		}
	}
	if c.WorkerID == "" {
		errs = append(errs, errors.New("WORKER_ID: empty, and the host name is not known: set it"))
	} else if !utf8.ValidString(c.WorkerID) || strings.ContainsFunc(c.WorkerID, unicode.IsControl) || len(c.WorkerID) > longestWorkerID {
		errs = append(errs, fmt.Errorf("WORKER_ID: want UTF-8 text of at most %d bytes without control characters, such as a host name", longestWorkerID))
	}
	atLeast("RELAY_LANES", c.Lanes, 1)
	if c.Lanes > 256 {
		errs = append(errs, fmt.Errorf("RELAY_LANES=%d: want at most 256", c.Lanes))
	}
	atLeast("BATCH_SIZE", c.BatchSize, 1)
	atLeast("RELAY_BATCH_BYTES", c.BatchBytes, 1024)
	atLeast("RELAY_INFLIGHT_EVENTS", c.InflightEvents, 1)
	atLeast("RELAY_INFLIGHT_BYTES", c.InflightBytes, 64<<10)
	atLeast("RELAY_MARK_BATCH", c.MarkBatch, 1)
	if c.MarkBatch > 32767 {
		errs = append(errs, fmt.Errorf("RELAY_MARK_BATCH=%d: want at most 32767", c.MarkBatch))
	}
	if c.MarkLinger < 0 || c.MarkLinger > maxMarkLinger {
		errs = append(errs, fmt.Errorf("RELAY_MARK_LINGER=%s: want 0 to %s", c.MarkLinger, maxMarkLinger))
	}
	positive("RELAY_PUBLISH_TIMEOUT", c.PublishTimeout)
	positive("RELAY_BACKOFF_MIN", c.BackoffMin)
	if c.BackoffMax < c.BackoffMin {
		errs = append(errs, fmt.Errorf("RELAY_BACKOFF_MAX=%s: want at least RELAY_BACKOFF_MIN=%s", c.BackoffMax, c.BackoffMin))
	}
	positive("RELAY_DRAIN_TIMEOUT", c.DrainTimeout)
	oneOf := func(name, got string, want ...string) {
		if !slices.Contains(want, got) {
			last := len(want) - 1
			errs = append(errs, fmt.Errorf("%s=%s: want %s or %s", name, got, strings.Join(want[:last], ", "), want[last]))
		}
	}
	oneOf("RELAY_MODE", c.Mode, relay.ModeAuto, relay.ModeCDC, relay.ModePolling)
	positive("POLL_INTERVAL", c.PollInterval)
	atLeast("MAX_RETRIES", c.MaxRetries, 1)
	if c.UnroutablePatience < 0 {
		errs = append(errs, fmt.Errorf("RELAY_UNROUTABLE_PATIENCE=%s: want 0 or more, such as 15m", c.UnroutablePatience))
	}
	positive("INITIAL_RETRY_DELAY_SECONDS", c.RetryMin)
	if c.RetryMax < c.RetryMin {
		errs = append(errs, fmt.Errorf("MAX_RETRY_DELAY_SECONDS=%s: want at least INITIAL_RETRY_DELAY_SECONDS=%s", c.RetryMax, c.RetryMin))
	}
	oneOf("RELAY_DEAD_LETTER", c.DeadLetter, relay.DeadLetterContinue, relay.DeadLetterHold)
	positive("RELAY_SINK_ISOLATION", c.SinkIsolation)
	if c.StallTimeout != 0 && c.StallTimeout < time.Second {
		errs = append(errs, fmt.Errorf("RELAY_STALL_TIMEOUT=%s: want 0, or at least 1s", c.StallTimeout))
	}
	atLeast("RELAY_WAL_BUDGET", c.WALBudget, 0)
	if c.Retention < 0 {
		errs = append(errs, fmt.Errorf("RELAY_RETENTION=%s: want 0 or more, such as 168h", c.Retention))
	}
	oneOf("RELAY_RETENTION_ACTION", c.RetentionAction, relay.RetentionDelete, relay.RetentionArchive)
	return errors.Join(errs...)
}
