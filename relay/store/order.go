package store

import "strings"

// Order in the ledger is defined here, once. A line is what has to reach one sink in order: the
// entries of one key that are not detached, by position. Of two entries of a line the one with the
// lower position is in front, whichever was written first. An entry is held while something in
// front of it blocks, and for no other reason; the entries in front of the first that blocks are
// ready.

// blocking is true for the entries that later ones of their line wait for, and for those that wait.
// Its form is the index's.
const blocking = `NOT detached AND (state <> 'retry' OR next_attempt_at IS NOT NULL)`

// ready is true for the entries that are not blocked; in the same way.
const ready = `NOT detached AND state = 'retry' AND next_attempt_at IS NULL`

// How a line is found is said so that only the indexes which begin with slot, sink, key_hash and
// position serve it: by ranges of key_hash, in the order of (key_hash, position). With "key_hash =
// …" and "ORDER BY position" the planner takes the index of what is ready by position when the
// statistics say that one key has most of the ledger, and then looks for each other key through all
// of it.

// inLine is true for entries a and b of one line. A relation has a line when it has these four
// columns.
func inLine(a, b string) string {
	return strings.NewReplacer("a.", a+".", "b.", b+".").Replace(
		`a.slot = b.slot AND a.sink = b.sink AND a.key_hash >= b.key_hash AND a.key_hash <= b.key_hash AND a.partition_key = b.partition_key`)
}

// behind is true for entries a of the table that are behind b. A scan of the index can begin at
// such a bound, but not end at one.
func behind(a, b string) string {
	return strings.NewReplacer("a.", a+".", "b.", b+".").Replace(
		`a.slot = b.slot AND a.sink = b.sink AND (a.key_hash, a.position) > (b.key_hash, b.position) AND a.key_hash <= b.key_hash AND a.partition_key = b.partition_key`)
}

// byPlace is the order within a line. It is part of how a line is found.
const byPlace = ` ORDER BY key_hash, position`

// anyInFront is true when an entry of a kind (blocking or ready) is in front of entry of: when the
// first of the kind is. It is one index probe, and by its form cannot be planned as a hash over the
// whole ledger.
func anyInFront(kind, of string) string {
	return `coalesce((SELECT f.position FROM saga_outbox_delivery f WHERE ` + inLine("f", of) + ` AND ` + kind + byPlace + ` LIMIT 1) < ` + of + `.position, false)`
}
