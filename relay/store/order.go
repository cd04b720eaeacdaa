package store

import "strings"

// Order in the ledger is defined here, once. A line is what has to reach one sink in order: the entries of one key that are not
// detached, by position. Of two entries of a line the one with the lower position is in front, whichever was written first. An
// entry is held while something in front of it blocks, and for no other reason; the entries in front of the first that blocks are ready.

// blocking is true for the entries that later ones of their line wait for, and for those that wait. Its form is the index's.
const blocking = `NOT detached AND (state <> 'retry' OR next_attempt_at IS NOT NULL)`

// ready is true for the entries that are not blocked; in the same way.
const ready = `NOT detached AND state = 'retry' AND next_attempt_at IS NULL`

// inLine is true for entries a and b of one line. A relation has a line when it has these four columns.
func inLine(a, b string) string {
	return strings.NewReplacer("a.", a+".", "b.", b+".").Replace(
		`a.slot = b.slot AND a.sink = b.sink AND a.key_hash = b.key_hash AND a.partition_key = b.partition_key`)
}

// inFront is true for entries a that are in front of b.
func inFront(a, b string) string {
	return inLine(a, b) + ` AND ` + a + `.position < ` + b + `.position`
}

// anyInFront is true when an entry of a kind (blocking or ready) is in front of entry of. It is one index probe, and by its form cannot be
// planned as a hash over the whole ledger.
func anyInFront(kind, of string) string {
	return `coalesce((SELECT true FROM saga_outbox_delivery f WHERE ` + inFront("f", of) + ` AND ` + kind + ` ORDER BY f.position LIMIT 1), false)`
}
