// Package repair is what a person does to events on the command line. They look at those that did
// not work, have them tried again, or give them up. They may also have events delivered once more.
//
// It never removes a ledger entry and never publishes: it changes entries, and the slot's owner
// does the rest. So the order of delivery stays in one place, and all of it may be done while
// relays run, or while no relay runs.
//
// The owner writes entries and rows only in transactions that update the slot's row in
// saga_outbox_relay first. Every transaction of this package locks that row first too, so the two
// never meet half-way, and the rows' status agrees with their entries. The owner also renews its
// lease on that row: transactions here are short, and wait for no other lock longer than
// lockTimeout.
//
// Rows that failed without an entry (the Python library's worker wrote them, or a relay from before
// the ledger) are shown with the sink "-". What becomes of them is in their status alone, and a
// relay finds them by sweeping the table.
package repair
