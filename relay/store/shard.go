package store

import "github.com/sagaz-relay/relay/relay"

// Who owns a shard's slot handles the shard's rows altogether. So a statement that finds rows by
// looking at the table has the shard's condition: two owners never find the same row. Statements
// about rows that are named (marks, look-ups, claims) need none, nor do those about the ledger,
// whose entries have the slot.

// andOf is the condition, to be added to others; nothing for a table that is not divided.
func andOf(shard relay.Shard) string {
	if shard.Whole() {
		return ""
	}
	return ` AND ` + shard.SQL(relay.RowKey)
}
