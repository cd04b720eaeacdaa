// Package watch shows what the engine does: as metrics, as the status behind /status.json and
// /health/ready with its verdict, as a history and a list of changes for the status page, and in
// the log's lines about single events. The engine reports to it, afterwards and in batches
// (relay.Observer). It decides nothing, and the engine does not know it.
//
// What is not reported it finds out: a sampler for each slot (sample.go) asks for a relay.Snapshot
// every second, and the database now and then.
package watch
