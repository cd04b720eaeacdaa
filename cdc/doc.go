// Package cdc owns the replication connection: publication, slot, streaming, feedback. It hands events to
// a relay.Intake and reports the intake's watermark; what becomes of rows and brokers it does not know.
//
// One connection has two goroutines. The reader receives, decodes and hands on, and may block in the intake
// for as long as the in-flight budget is spent. Feedback is written by the other one on its own
// clock, so wal_sender_timeout is met however long every sink stands still.
//
// What happens on each failure:
//
//	connection refused, reset, server restarting   Open or Run returns the error; the pipeline tries again
//	silence (half-open TCP, a frozen server)        Run gives up after WALSenderTimeout: we ask for a sign of life every third of it
//	slot read by somebody else (55006)              relay.ErrSlotBusy, naming the reader; a relay's own zombie is ended
//	wal_level, role, slot or publication wrong      *relay.SetupError with the statement that mends it
//
// Protocol: PostgreSQL docs, "Streaming Replication Protocol" and "Logical Streaming Replication Protocol".
package cdc
