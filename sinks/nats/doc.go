// Package nats is the sink for NATS JetStream: one connection, which all lanes share.
//
// A record's topic is the subject it is published to. It counts as acknowledged when the stream that
// listens on that subject has answered with a PubAck: it is stored, on a majority of the stream's
// replicas. No stream is made here.
//
//	     connect                register           one of each key under way
//	(none) ──────▶ link ──────▶ batch ──────▶ sent ──────────────────────────▶ fates
//	   ▲             │                         │  acknowledged: the key's next one goes out
//	   └─────────────┘                         │  refused: what is behind it waits (relay.ErrBehind)
//	   connection lost: the next Publish       └─ no answer, error: what is behind it of its key
//	   connects                                   counts as failed, and was not sent
//
// # Order
//
// Of each key only one record is under way: the next is sent when it is acknowledged. Records of
// other keys go out meanwhile, up to the window. JetStream has no sequence numbers for producers as
// Kafka has. Were ten records of a key sent at once and the first of them lost (a leader that moves,
// a stream that is full for a moment, too many requests), then the other nine would be stored, and
// the first would be stored behind them. Repeating all ten does not help, because the stream
// recognises the nine as duplicates and drops them. So order would be wrong for good.
//
// The price is a round trip to the stream for each record of one key. Records of different keys do
// not wait for each other.
//
// # Duplicates
//
// Nats-Msg-Id is the event's id. A stream drops a message whose id it has seen within its duplicate
// window (2 minutes unless configured), and acknowledges it. So an event that is offered again after
// a lost acknowledgement, or by a relay's successor, arrives once. An event that a person replays
// has another id, and so has a sink that is not called as its kind is: two sinks may write into one
// stream.
//
// # On failure
//
//   - Connection lost, server gone: what is not acknowledged has a transient error; the next Publish
//     connects. Nothing is kept to be sent later: the client's own reconnecting is switched off.
//   - Nobody listens on the subject: JetStream is asked whether a stream has it. If none has, the
//     record is refused as unroutable. If one has, it has no leader at the moment: a transient error.
//   - No acknowledgement in time: likewise, since a plain subscriber may listen where no stream does.
//   - The stream or the account is full: a transient error, until there is room.
//   - Larger than max_payload of the server or max_msg_size of the stream: refused as too_large.
//   - The user may not publish to the subject: refused as rejected.
//   - A subject that is not legal, or that NATS would take for a request to itself: refused as
//     unknown_topic.
//
// # Not obvious
//
//   - The client gathers messages in a buffer, and writes it from another goroutine. So the fences
//     of all batches are asked in the connection's Write (conn.go), below the buffer.
//   - A write into a full socket holds the client's lock. Only the socket itself can be closed then.
//   - A row's header that begins with Nats- is a command to JetStream: Nats-Rollup deletes what is
//     in the stream. Such a record is refused.
package nats
