// Package store is all SQL over ordinary connections: who owns a slot, marks, look-ups, counts.
//
// Which slots a process is to have is the roster's affair (roster.go, share.go), and no more than
// advice: it may be wrong for a moment, and two may run for one slot.
//
// Who owns a slot is decided by three things, each for one kind of accident:
//
//   - a session advisory lock, on a connection of its own: an owner that dies or stops loses it at
//     once, because PostgreSQL drops it with the connection;
//   - renewed_at in saga_outbox_relay, for an owner that is frozen or cut off, whose connection
//     seems alive: another relay that has seen it unchanged for LeaseTTL ends the owner's connections
//     and takes the lock;
//   - epoch in the same row, for the frozen owner that wakes up: each owner adds one, and every
//     mark transaction first updates the row of its own epoch. No such row means that it is a
//     zombie.
//
// The sequence that the epoch is for: A owns, epoch 7. A is frozen (SIGSTOP, a paused VM) with a
// batch half published. B sees no renewal for LeaseTTL, ends A's backends, takes the lock, epoch 8,
// publishes what is not marked. A wakes up: before it offers anything else it asks Valid, which
// looks at the clock, and stops. A mark that was already in A's socket finds no row with epoch 7
// and changes nothing.
package store
