package store

import "strings"

// Order in the ledger is defined here, once. A line is what has to reach one sink in order: the
// entries of one key that are not detached, by position. Of two entries of a line the one with the
// lower position is in front, whichever was written first. An entry is held while something in
// front of it blocks, and for no other reason. The entries in front of the first that blocks are to
// retry now.

// blocking is true for the entries that later ones of their line wait for (dead, or with a next
// attempt), and for those that wait (held). Its form is the index's.
const blocking = `NOT detached AND (state <> 'retry' OR next_attempt_at IS NOT NULL)`

// retryNow is true for the other entries of a line, in the same form: they may be offered at once.
const retryNow = `NOT detached AND state = 'retry' AND next_attempt_at IS NULL`

// The conditions below are written so that only the indexes which begin with slot, sink, key_hash
// and position fit them: by ranges of key_hash, in the order of (key_hash, position). With
// "key_hash = …" and "ORDER BY position", and one key that has most of the ledger by the
// statistics, the planner takes the index by position of the entries to retry now. It then reads
// all of that index for each other key.

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

// anyInFront is true when an entry of a kind (blocking or retryNow) is in front of the entry named
// by of. It looks at the first entry of the kind only, which is one index probe, and by its form
// cannot be planned as a hash over the whole ledger.
func anyInFront(kind, of string) string {
	return `coalesce((SELECT f.position FROM saga_outbox_delivery f WHERE ` + inLine("f", of) + ` AND ` + kind + byPlace + ` LIMIT 1) < ` + of + `.position, false)`
}
