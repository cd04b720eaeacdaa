// Package cdc owns the replication connection: publication, slot, streaming, feedback. It hands events to
// a relay.Intake and reports the intake's watermark; what becomes of rows and brokers it does not know.
//
// One connection has two goroutines. The reader receives, decodes and hands on, and may block in the intake
// for as long as the in-flight budget is spent. Feedback is written by the other one on its own
// clock, until Close, so wal_sender_timeout is met however long every sink stands still or what is in flight takes to drain. Whether the
// publication still carries the table is looked at on an ordinary connection, every 10 s and before the first row that the server
// tells after any change (watch.go).
//
// What happens on each failure:
//
//	connection refused, reset, server restarting   Open or Run returns the error; it is tried again
//	server is a standby                             the same: it is promoted, or the name leads to the primary soon
//	silence (half-open TCP, a frozen server)        Run gives up after WALSenderTimeout: we ask for a sign of life every third of it
//	slot read by somebody else (55006)              relay.ErrSlotBusy, naming the reader; a relay's own zombie is ended
//	slot missing, lost, or moved by somebody        *relay.SlotGoneError: Create makes a new one, or keeps one that was only moved
//	publication dropped, younger than the slot,     *relay.SlotGoneError with GonePublication: what was committed meanwhile may have
//	  or changed since the slot's position          been left out, so Create makes the slot anew
//	wal_level, role, publication without the table, *relay.SetupError with the statement that mends it; Streaming tells that the table
//	  slot of another kind, pooler in between       could be polled all the same
//
// Protocol: PostgreSQL docs, "Streaming Replication Protocol" and "Logical Streaming Replication Protocol".
package cdc
