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

// How things are found must not depend on the planner's statistics. The ledger is empty most of the
// time, and fills and empties within minutes: its statistics are those of another time, most often
// of an empty table, where every plan seems to cost the same. Then one that reads the whole ledger
// for each entry is as likely as the right one. So each look is written so that there is one way
// to do it:
//
//   - A line, and what is due, are found in the order of the one index that has it, with a LIMIT.
//     The settings in fence.go rule out a sort and a scan of the whole table. A line is found by
//     ranges of key_hash, in the order of (key_hash, position): with "key_hash = …" and "ORDER BY
//     position" the index by position of the entries to retry now would do as well.
//   - Entries are changed by "event_id = ANY(ARRAY(SELECT …)) AND sink = …", which only the primary
//     key serves, and not by a join, which could begin at either side. A condition that a partial
//     index has is behind an OFFSET 0, or that index would do as well. Where each entry gets values
//     of its own, the join is by ctid, which has no index (entryAt).
//   - Rows of saga_outbox are found by their ids only: see statusIs.
//   - Whether an event has entries is asked behind an OFFSET 0, too: as a subplan for each row. An
//     anti join could read all entries.

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

// statusIs is a row's status in a form that no index serves, for rows that are found by their ids,
// their age or their place. An index on the status, which a table may have, is right for other
// statements.
const statusIs = `(status || '')`

// hasEntries is true when an event has entries e for which a condition holds.
func hasEntries(id, and string) string {
	return `EXISTS (SELECT FROM saga_outbox_delivery e WHERE e.event_id = ` + id + and + ` OFFSET 0)`
}

// entryAt finds one entry and its place. Every writer of a slot's entries has the lock of the
// slot's row, so it stays there for the statement. One that a person's SQL changes in that moment
// is at another place then, and not changed by us: it is offered again. So this is for what comes
// back, and not for what is done once (moveSQL).
func entryAt(id, sink string) string {
	return `SELECT e.*, e.ctid AS place FROM saga_outbox_delivery e WHERE e.event_id = ` + id + ` AND e.sink = ` + sink + ` OFFSET 0`
}

// anyInFront is true when an entry of a kind (blocking or retryNow) is in front of the entry named
// by of. It looks at the first entry of the kind only, which is one index probe.
func anyInFront(kind, of string) string {
	return `coalesce((SELECT f.position FROM saga_outbox_delivery f WHERE ` + inLine("f", of) + ` AND ` + kind + byPlace + ` LIMIT 1) < ` + of + `.position, false)`
}
