package relay

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxShards is how many slots a table's events may be divided among. Each costs the primary a
// walsender that decodes all of the WAL, and a few connections.
const MaxShards = 64

// Set is how a table's events are divided among replication slots: one set of slots for a table,
// kept in the database.
type Set struct {
	Slot        string // RELAY_SLOT: the slot's name, or what the names of several begin with
	Publication string // the same, RELAY_PUBLICATION
	Shards      int    // slots, at least 1
	// Generation counts the changes of Shards.
	Generation int64
}

// Shard returns one of the set's shards, from 0 on.
func (s Set) Shard(i int) Shard {
	shard := Shard{Set: s, Index: i, Slot: s.Slot, Publication: s.Publication}
	if s.Shards > 1 {
		suffix := fmt.Sprintf("_%dof%d", i, s.Shards)
		shard.Slot += suffix
		shard.Publication += suffix
	}
	return shard
}

// All returns the set's shards in their order.
func (s Set) All() []Shard {
	all := make([]Shard, s.Shards)
	for i := range all {
		all[i] = s.Shard(i)
	}
	return all
}

// Slots are the names of the set's slots, in the order of their shards.
func (s Set) Slots() []string {
	return s.names(func(one Shard) string { return one.Slot })
}

// Publications are the names of the set's publications, in the order of their shards.
func (s Set) Publications() []string {
	return s.names(func(one Shard) string { return one.Publication })
}

func (s Set) names(of func(Shard) string) []string {
	names := make([]string, s.Shards)
	for i := range names {
		names[i] = of(s.Shard(i))
	}
	return names
}

// SlotSQL is the name of the slot of the shard that a key belongs to; see Shard.SQL.
func (s Set) SlotSQL(key string) string {
	name := func(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
	if s.Shards <= 1 {
		return name(s.Slot) + "::text"
	}
	shards := strconv.Itoa(s.Shards)
	return name(s.Slot+"_") + " || " + ShardSQL(key, shards) + " || " + name("of"+shards)
}

// Shard is the part of a table's events that one slot delivers: those of the keys whose hash falls
// to it. Whoever owns the slot owns these keys altogether: stream, sweeps, ledger, retries. So no
// two relays ever handle one key.
type Shard struct {
	Set         Set
	Index       int
	Slot        string
	Publication string
}

// Alone is the one shard of a table that is not divided.
func Alone(slot, publication string) Shard {
	return Set{Slot: slot, Publication: publication, Shards: 1}.Shard(0)
}

// Whole reports whether the shard is all of the table.
func (s Shard) Whole() bool { return s.Set.Shards <= 1 }

// RowKey is the key of a row of saga_outbox, as text. Whatever the column's type is, that is what
// its output function writes, as in the stream and in the ledger; a cast would take the blanks off
// a char(n). A publication's filter cannot have it: see columns.Filterable.
const RowKey = "concat(aggregate_id)"

// SQL is the condition that a key belongs to the shard; key is an expression of its text, such as
// RowKey, or partition_key of the ledger. It is a filter that PostgreSQL takes for a publication:
// only built-in, immutable functions. The hash is of the key's bytes (COLLATE "C"), and without its
// sign, because % keeps that. A row without a key is delivered with an empty one.
func (s Shard) SQL(key string) string {
	if s.Whole() {
		return "true"
	}
	return ShardSQL(key, strconv.Itoa(s.Set.Shards)) + " = " + strconv.Itoa(s.Index)
}

// ShardSQL is the index of the shard that a key belongs to, of so many.
func ShardSQL(key, shards string) string {
	return `(hashtext(coalesce((` + key + `)::text, '') COLLATE "C") & 2147483647) % ` + shards
}

// SlotsText is so many slots, in words.
func SlotsText(n int) string {
	if n == 1 {
		return "1 slot"
	}
	return strconv.Itoa(n) + " slots"
}

// DividedText is how a table's events are, in words: "divided among 4 slots", or "in one slot".
func DividedText(n int) string {
	if n == 1 {
		return "in one slot"
	}
	return "divided among " + SlotsText(n)
}

// ErrSetChanged is returned for a shard that is not of the table's set of slots any more.
var ErrSetChanged = errors.New("the table's set of slots has changed")
