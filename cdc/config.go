package cdc

import (
	"errors"
	"fmt"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// Config is the configuration of the replication side.
type Config struct {
	// DatabaseURL is where PostgreSQL is, as a URL or as keyword=value pairs (libpq's connection
	// strings). The role needs REPLICATION and rights on the outbox table. Let it reach PostgreSQL
	// itself: through a pooler nothing can be streamed, and the table is polled.
	//
	// No default. DATABASE_URL.
	DatabaseURL string `env:"DATABASE_URL" secret:"database"`

	// WALSenderTimeout is the server's wal_sender_timeout on the relay's replication connection. It
	// bounds how long a slot stays in use after its owner has vanished without closing; a silence
	// of that length also makes the relay give the connection up. Each time that this did not help,
	// the next silence may be twice as long. Too short breaks connections on a database that stalls
	// for a moment.
	//
	// Default 10s. RELAY_WAL_SENDER_TIMEOUT.
	WALSenderTimeout time.Duration `env:"RELAY_WAL_SENDER_TIMEOUT"`

	// StatusInterval is how often the watermark is reported. A long interval makes a crash repeat
	// no more than a short one (rows are looked up), but the server keeps WAL for that much longer.
	// At most a third of WALSenderTimeout.
	//
	// Default 1s. RELAY_STATUS_INTERVAL.
	StatusInterval time.Duration `env:"RELAY_STATUS_INTERVAL"`

	// Failover creates slots with failover = true on PostgreSQL 17 and later, so that a standby
	// which synchronises slots can go on after a failover.
	//
	// Default true. RELAY_SLOT_FAILOVER.
	Failover bool `env:"RELAY_SLOT_FAILOVER"`

	// MaxEventBytes is how large an event may be: saga_id, aggregate_type, aggregate_id,
	// event_type, payload and headers together, as text. A larger row is not read whole: it becomes
	// a dead letter with reason too_large, and all others go on. Several copies of an event are in
	// memory on its way, so keep it below a sixteenth of the memory limit. Brokers have limits of
	// their own, most of them lower.
	//
	// Default 33554432 (32 MiB). RELAY_MAX_EVENT_BYTES.
	MaxEventBytes int `env:"RELAY_MAX_EVENT_BYTES"`
}

// DefaultConfig returns every default.
func DefaultConfig() Config {
	return Config{
		WALSenderTimeout: 10 * time.Second,
		StatusInterval:   time.Second,
		Failover:         true,
		MaxEventBytes:    relay.DefaultMaxEventBytes,
	}
}

// askAfter is the silence after which the server is asked for a sign of life. Its answer also has
// its position.
//
// While the server decodes a large transaction it reads what we send only every half of its timeout
// (walsender.c, WalSndUpdateProgress). So its answer comes up to this, one interval and half the
// timeout later, which has to be well within the timeout. Otherwise we would give up the
// connection, and the next one would begin the same transaction again, for ever.
func (c *Config) askAfter() time.Duration { return max(0, c.WALSenderTimeout/4-c.StatusInterval) }

// Validate reports everything that is wrong at once.
func (c *Config) Validate() error {
	var errs []error
	if c.DatabaseURL == "" {
		errs = append(errs, errors.New("DATABASE_URL: not set: want postgresql://user:password@host:5432/database"))
	} else if _, err := sessions.Parse(c.DatabaseURL); err != nil {
		errs = append(errs, err)
	}
	if c.WALSenderTimeout < time.Second {
		errs = append(errs, fmt.Errorf("RELAY_WAL_SENDER_TIMEOUT=%s: want at least 1s", c.WALSenderTimeout))
	}
	if c.StatusInterval <= 0 || c.StatusInterval > c.WALSenderTimeout/3 {
		errs = append(errs, fmt.Errorf("RELAY_STATUS_INTERVAL=%s: want more than 0 and at most a third of RELAY_WAL_SENDER_TIMEOUT=%s", c.StatusInterval, c.WALSenderTimeout))
	}
	if err := relay.CheckMaxEventBytes(c.MaxEventBytes); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
