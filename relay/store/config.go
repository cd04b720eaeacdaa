package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// Config is what can be set of the store.
type Config struct {
	// DatabaseURL is where PostgreSQL is; see cdc.Config.
	//
	// No default. DATABASE_URL.
	DatabaseURL string `env:"DATABASE_URL" secret:"database"`

	// Owner names this relay in the lease.
	//
	// Default: the host name. WORKER_ID.
	Owner string `env:"WORKER_ID"`

	// Slot is the replication slot through which the table's events are delivered, or what the
	// names of several begin with. Relays with the same one share it: one owns it, the others are
	// standbys. A relay with another slot is a standby while one of them lives, and takes over what
	// they left when none has been seen for 2 s.
	//
	// Default "sagaz_outbox". RELAY_SLOT.
	Slot string `env:"RELAY_SLOT"`

	// Publication is the publication whose inserts are read, or what the names of several begin
	// with. It is created when missing, if the role owns the table.
	//
	// Default "sagaz_outbox". RELAY_PUBLICATION.
	Publication string `env:"RELAY_PUBLICATION"`

	// Shards is among how many replication slots the table's events are divided, by key, so that
	// several relays work at once: 1 to 64. It counts when the first relay starts, or migrate runs:
	// then the number is kept in the database, and another one here is only logged. More than 1
	// needs PostgreSQL 15.
	//
	// Default 1. RELAY_SHARDS.
	Shards int `env:"RELAY_SHARDS"`

	// Mark is what becomes of a row whose event every sink has: "update" sets status and sent_at,
	// "delete" deletes the row, "archive" moves it to saga_outbox_archive. Rows that were refused
	// are always kept.
	//
	// Default "update". RELAY_MARK.
	Mark string `env:"RELAY_MARK"`

	// ClaimTimeout is how old a claim of the library's worker on a row may be before that worker
	// counts as dead. The relay waits that long for the fate of a claimed row where it looks rows
	// up (RELAY_HYBRID). Too short publishes twice what a slow worker is still publishing; too long
	// delays delivery when a worker was killed.
	//
	// Default 5m. STUCK_CLAIM_TIMEOUT_SECONDS.
	ClaimTimeout time.Duration `env:"STUCK_CLAIM_TIMEOUT_SECONDS"`

	// MaxEventBytes is how large an event may be; see cdc.Config.MaxEventBytes.
	//
	// Default 33554432 (32 MiB). RELAY_MAX_EVENT_BYTES.
	MaxEventBytes int `env:"RELAY_MAX_EVENT_BYTES"`

	// Hybrid makes the relay claim the rows that it looks up before it publishes them, so that a
	// worker of the library that runs at the same time leaves them alone; see engine.Config.Hybrid.
	//
	// Default false. RELAY_HYBRID.
	Hybrid bool `env:"RELAY_HYBRID"`

	// LeaseTTL bounds how long a slot stays with an owner that is frozen or cut off from the
	// database. The owner stops by itself when it could not renew for five sixths of it, and
	// another takes over after all of it. An owner that dies or stops frees the slot at once,
	// whatever this is. Too short makes owners fight while the database stalls.
	//
	// Default 9s. RELAY_LEASE_TTL.
	LeaseTTL time.Duration `env:"RELAY_LEASE_TTL"`

	// AcquireInterval is how often a standby looks whether the slot is free.
	//
	// Default 250ms. RELAY_ACQUIRE_INTERVAL.
	AcquireInterval time.Duration `env:"RELAY_ACQUIRE_INTERVAL"`
}

// maxName is how long names of slots and publications may be (NAMEDATALEN).
const maxName = 63

// Ways to mark.
const (
	MarkUpdate  = "update"
	MarkDelete  = "delete"
	MarkArchive = "archive"
)

// DefaultConfig returns every default but Owner.
func DefaultConfig() Config {
	return Config{Slot: "sagaz_outbox", Publication: "sagaz_outbox", Shards: 1, Mark: MarkUpdate, ClaimTimeout: 5 * time.Minute, LeaseTTL: 9 * time.Second, AcquireInterval: 250 * time.Millisecond, MaxEventBytes: relay.DefaultMaxEventBytes}
}

// Validate reports everything that is wrong at once.
func (c *Config) Validate() error {
	var errs []error
	if c.DatabaseURL == "" {
		errs = append(errs, errors.New("DATABASE_URL: not set: want postgresql://user:password@host:5432/database"))
	}
	if c.Owner == "" {
		errs = append(errs, errors.New("WORKER_ID: empty, and the host name is not known: set it"))
	}
	if !validSlotName(c.Slot) {
		errs = append(errs, fmt.Errorf("RELAY_SLOT=%s: a slot name has 1 to %d of the characters a-z, 0-9 and _", c.Slot, maxName))
	}
	if c.Publication == "" || len(c.Publication) > maxName {
		errs = append(errs, fmt.Errorf("RELAY_PUBLICATION=%s: want a name of 1 to %d bytes", c.Publication, maxName))
	}
	if c.Shards < 1 || c.Shards > relay.MaxShards {
		errs = append(errs, fmt.Errorf("RELAY_SHARDS=%d: want 1 to %d", c.Shards, relay.MaxShards))
	} else if c.Shards > 1 {
		last := relay.Set{Slot: c.Slot, Publication: c.Publication, Shards: c.Shards}.Shard(c.Shards - 1)
		for _, n := range []struct{ variable, base, name string }{{"RELAY_SLOT", c.Slot, last.Slot}, {"RELAY_PUBLICATION", c.Publication, last.Publication}} {
			if len(n.name) > maxName && len(n.base) <= maxName {
				errs = append(errs, fmt.Errorf("%s=%s: too long for RELAY_SHARDS=%d: %s has more than %d bytes", n.variable, n.base, c.Shards, n.name, maxName))
			}
		}
	}
	switch c.Mark {
	case MarkUpdate, MarkDelete, MarkArchive:
	default:
		errs = append(errs, fmt.Errorf("RELAY_MARK=%s: want update, delete or archive", c.Mark))
	}
	if c.ClaimTimeout < 0 {
		errs = append(errs, fmt.Errorf("STUCK_CLAIM_TIMEOUT_SECONDS=%s: want 0 or more", c.ClaimTimeout))
	}
	if c.LeaseTTL < time.Second {
		errs = append(errs, fmt.Errorf("RELAY_LEASE_TTL=%s: want at least 1s", c.LeaseTTL))
	}
	if c.AcquireInterval <= 0 || c.AcquireInterval > c.LeaseTTL {
		errs = append(errs, fmt.Errorf("RELAY_ACQUIRE_INTERVAL=%s: want more than 0 and at most RELAY_LEASE_TTL=%s", c.AcquireInterval, c.LeaseTTL))
	}
	if err := relay.CheckMaxEventBytes(c.MaxEventBytes); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// validSlotName follows PostgreSQL's ReplicationSlotValidateName.
func validSlotName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}
