// Package cdc owns the replication connection: publication, slot, streaming, feedback. It hands
// events to a relay.Intake and reports the intake's watermark. It does not know what becomes of
// rows, and no brokers.
//
// One connection has two goroutines. The reader receives, decodes and hands on, and may block in
// the intake for as long as the in-flight budget is spent. The other one writes feedback on its own
// clock, until Close. So wal_sender_timeout is met however long every sink is stuck, or what is in
// flight takes to drain. Whether the publication still carries the table is looked at on an
// ordinary connection, every 10 s and before the first row that the server sends after any change
// (watch.go).
//
// What happens on each failure:
//
//	connection refused, reset,            Open or Run returns the error; it is tried again
//	  server restarting
//	server is a standby                   the same: it is promoted, or the name leads to the
//	                                      primary soon
//	silence (half-open TCP, a frozen      Run gives up after WALSenderTimeout; the server is
//	  server)                             asked for a sign of life well before that
//	slot read by somebody else (55006)    relay.ErrSlotBusy, naming the reader; the connection
//	                                      of a former owner is ended
//	slot missing, lost, or moved by       *relay.SlotGoneError: Create makes a new one, or keeps
//	  somebody                            one that was only moved
//	publication dropped, younger than     *relay.SlotGoneError with GonePublication: what was
//	  the slot, or changed since the      committed meanwhile may have been left out, so Create
//	  slot's position                     makes the slot again
//	wal_level, role, publication          *relay.SetupError with the statement that fixes it;
//	  without the table or with another   Streaming is set where the table could still be polled
//	  filter, slot of another kind,
//	  pooler in between
//
// Protocol: PostgreSQL docs, "Streaming Replication Protocol" and "Logical Streaming Replication
// Protocol".
package cdc
