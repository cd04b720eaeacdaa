// Package file is the sink that needs no broker: one JSON object per record and line, appended to a
// file. It is what `sagaz-relay demo` runs on, and a way to look at what a broker would get.
//
//	{"topic":"OrderCreated","key":"order-7","event_id":"…","event_type":"OrderCreated",
//	 "timestamp":"…","headers":{…},"value":{…}}
//
// A record is acknowledged when its line is on disk: written whole and synced. Lanes that wait at
// the same time share one write and one sync (group commit), so more lanes cost no more syncs.
//
// On failure:
//   - A write or sync that fails (disk full) is a transient error for every batch of its group. The
//     file is cut back to where it was, so no line is half there for long.
//   - A crash may leave a torn last line. It was never acknowledged, so it is cut off when the file
//     is next opened, and its record comes again.
//   - A file that was renamed or removed is left, and the path opened again. Lines that were
//     written while it was being removed are not acknowledged.
//   - After a failed sync it is unknown what is on disk, so the file is opened again before the
//     next write.
//
// One process at a time may write a file.
package file
