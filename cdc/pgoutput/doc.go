// Package pgoutput turns the messages of PostgreSQL's pgoutput plugin into events: bytes in, events
// out, with no I/O, no goroutine and no clock.
//
// The messages that occur once per transaction or per row (Begin, Commit, Insert) are decoded here,
// without reflection and with one allocation per event. So is Truncate, since pglogrepl trusts its
// length. The rest goes through pglogrepl. A row of 500 bytes, own against pglogrepl's parsers
// (BenchmarkDecodeInsert, median and fastest of 40 runs on one busy core of an AMD EPYC, Go
// 1.26.8):
//
//	binary  0.32 µs (0.23), 1 alloc of  512 bytes  1.67 µs (1.31), 32 allocs of 1,696 bytes
//	text    0.78 µs (0.57), 4 allocs of 616 bytes  2.16 µs (1.74), 35 allocs of 1,856 bytes
//
// To run it: go test -run '^$' -bench DecodeInsert -cpu 1 -count 10 ./cdc/pgoutput
//
// Formats: PostgreSQL docs, "Logical Replication Message Formats" and "Logical Streaming
// Replication Parameters". Both tuple formats are read: text, and the types' binary send format
// (option binary 'true', PostgreSQL 14 and later), which spares the server the rendering of UUIDs
// and times.
package pgoutput
