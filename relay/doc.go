// Package relay is the contract of sagaz-relay: events, records, sinks, sources, the lease of a
// slot, and who observes. Nothing in it runs, and it knows no other room.
//
// The way of an event from a committed row of saga_outbox to the brokers' acknowledgements and back
// to the row's mark is package engine. It knows no SQL (that is store), no broker (sinks), no HTTP
// (admin) and no metrics (watch). What it has done it reports to watch afterwards, through
// Observer. DESIGN.md follows one event through all of it and has a map of what to change where.
//
// Every limit, time and size is a field of its package's Config, with its default:
// engine/config.go, store/config.go, cdc/config.go, sinks/kafka/config.go and so on.
//
// Other packages here: encode makes records of rows. columns has the types that a column may have.
// repair is what the commands dead-letter and replay do and print. doctor shows what a start
// refuses (store/demands.go, store/needs.go, cdc/setup.go), and more. traces exports the spans of
// what the engine hands to Tracer (trace.go). The stream (cdc), the sinks and the migrations are at
// the root; sinks/sinktest is the test of every sink, and has one in memory for tests (Script).
//
// # Promises
//
//  1. Every committed row reaches every sink at least once, or ends as a dead letter.
//  2. First deliveries of a key to a sink are in commit order. Rows found in the table come in
//     the order of created_at among themselves.
//  3. A clean stop repeats nothing. A crash repeats what was in flight, as a suffix, in order; of
//     that, only what had not arrived where the sink can be read back (engine/doubt.go).
//  4. The slot never moves past an event that is not delivered and marked, or in the ledger.
//  5. Memory stays within the in-flight budget, whatever the size of a transaction or of the
//     ledger.
//  6. One bad row, one bad key, one dead sink or one dead relay stops only itself.
//
// Package verify checks them.
//
// # States
//
// Of a relay, for its slot (snapshot.go, Role):
//
//	starting ──▶ standby ──lease──▶ owner ──stop──▶ draining ──▶ (ended)
//	                ▲                 │                 │
//	                └── lease lost ───┴── given back ───┘
//
// Of an owner, how it finds events (engine/feed.go): it recovers (sweeps the table) when the slot
// is new or cannot be trusted, then streams; where streaming is impossible it polls.
//
// Of an event (engine/tracker.go, and ledger.go of this package):
//
//	pending ─▶ in flight ── all sinks have it ─────────────────▶ marked
//	               │                                               ▲
//	               └─ a sink does not ─▶ ledger: retry ─ delivered ┘
//	                                              │ ▲
//	                       MAX_RETRIES are used up ▼ │ by hand
//	                                              dead
//
// An entry behind another of its key is held until that one is gone. The row's status is sent when
// it is marked, failed with an entry in retry, dead_letter with a dead one, and pending else.
//
// # What happens on each failure
//
//	a sink fails, transient     the lane offers the same again, in order  engine/lane.go
//	a sink refuses a record     it and what follows of its key are parked engine/triage.go: refusal
//	it is refused again         later and later, then a dead letter       engine/retry.go: givesUp
//	a sink fails for long       isolated: all its events go to the ledger engine/control.go: leaving
//	a ledger entry is due       offered in rounds, in the key's order     engine/drainer.go
//	too much WAL is retained    the sinks that are behind are isolated    engine/control.go: mindWAL
//	a row cannot be marked      it is parked in the ledger, tried again   store/unmarked.go
//	a mark's transaction fails  written again, as it is                   engine/marker.go
//	the slot's connection ends  a new one; what it repeats is dropped     engine/intake.go: fresh
//	the slot is gone, or moved  the table is swept, then streamed         engine/feed.go
//	rows that are not streamed  found by looking: which                   store/sweep.go: wanted
//	                            … and when                                engine/sweep.go
//	streaming is impossible     the table is polled, in mode auto         engine/sweep.go: poll
//	the lease is not renewed    it is lost after its time                 store/lease.go: renew
//	the lease is lost           lanes stop; new lease, new pipeline       engine/keeper.go: keep
//	the process was frozen      Fence forbids each write to a broker      store/lease.go: Valid
//	an owner dies               what it had sent is read back, if it can   engine/doubt.go
//	an owner moves nothing      it leaves the lease to another relay      engine/control.go: giveUp
//	another has too few slots   one is given back: drained, released      engine/pipeline.go: run
//	the set of slots changes    keepers end and begin                     engine/keepers.go: keepSet
//	the relay has to stop       drains, marks, releases the lease         engine/pipeline.go: drain
//	sent rows get old           removed after RELAY_RETENTION             engine/retain.go
//
// # To read first
//
// Before a first change to delivery, in this order; the rest when it is about that:
//
//	event.go flight.go sink.go encoder.go source.go lease.go ledger.go
//	engine/pipeline.go engine/feed.go engine/intake.go engine/window.go
//	engine/tracker.go engine/confirm.go engine/lane.go engine/triage.go
//	engine/shelf.go engine/outcome.go engine/retry.go engine/marker.go
//	engine/control.go
//
// Not among them: who owns the slot (engine/keeper.go, engine/keepers.go), sweeps, the drainer, settings, and what is
// reported (observer.go, watch).
//
// # Words
//
//   - event: a row of saga_outbox, as it was inserted. Record: what a broker gets for it.
//   - key: aggregate_id. What has one key is delivered in order.
//   - sink: a broker, or a file, that every event goes to.
//   - lane: an ordered queue of a sink; a key has one lane per sink.
//   - in flight: read, and not yet marked. The budget bounds it. In doubt: what an owner that is gone
//     had in flight.
//   - refused: a sink will not take this record. All other errors are transient: it is offered
//     again.
//   - ledger: the table saga_outbox_delivery, an entry for each event that a sink did not get at
//     once. To park is to write one.
//   - retry, held, dead: the states of an entry: to be offered, behind another of its key, given
//     up.
//   - dead letter: an event with a dead entry, for a person.
//   - isolated: a sink whose events all go to the ledger for now.
//   - mark: to write what became of an event to its row.
//   - slot: the replication slot that the events are read from. A table has a set of one or more.
//   - shard: the part of the keys that one slot of the set delivers. Member: a process that shares
//     the slots with others.
//   - watermark: the position in the WAL up to which everything is marked. The slot may move
//     there.
//   - lease: the right to read the slot and to mark. One relay has it, the owner; the others
//     are standbys.
//   - epoch: how many owners a slot has had. A statement of an old owner finds another one, and
//     fails.
//   - sweep: a look through the table for rows that the stream does not deliver.
package relay
