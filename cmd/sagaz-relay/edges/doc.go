// Package edges tests what the rows of saga_outbox may be: each accepted type, encoding and odd
// value has to give the same bytes by the stream, the sweep, the poll and the ledger. It needs
// PostgreSQL and no broker. There is nothing in it but tests.
package edges
