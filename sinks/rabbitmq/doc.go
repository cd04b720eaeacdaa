// Package rabbitmq is the sink for RabbitMQ: one connection, one exchange, a confirming channel for
// each lane that publishes at the moment.
//
// Every message is persistent, mandatory and confirmed. A record counts as acknowledged when the
// broker has sent basic.ack for it and no basic.return before that: it is in every queue it was
// routed to, at least one. No queue and no binding is made here; the exchange is, unless
// RELAY_RABBITMQ_DECLARE is false.
//
//	        connect, declare             take a channel          window of unconfirmed messages
//	(none) ────────────────▶ link, ready ──────────────▶ attempt ────────────────────────────▶ fates
//	   ▲                       │   ▲                        │
//	   │     connection lost   │   └─ unblocked, discarded ◀┤ timeout, cancel: the channel is
//	   └───────────────────────┘                            │ closed before anything is published
//	                                                        └ refused size or topic: again without
//
// On failure:
//   - Connection lost, broker gone: what is not confirmed has a transient error; the next Publish
//     connects, to whichever node of the cluster takes it (nodes.go).
//   - basic.return: that record is refused as unroutable, and what is behind it of its key waits.
//   - basic.nack: that record has a transient error, and so do those of its key behind it. When it
//     was nacked at 5 offers in a row and for 5 s, it is refused, and so are others that its route
//     nacks from then on, until it takes one again. Its channel is closed and not used again: it may
//     be the channel that the broker serves badly (link.go: put).
//   - No confirm in time, or the context ended: the fate is unknown. The channel is closed, and
//     nothing is published on this connection until the broker has answered the close. From then on
//     all that the channel carried is in its queues, so what is offered again cannot be overtaken
//     by what was offered before. When the broker does not answer, the connection is dropped. Only
//     then may a repeat arrive late, behind newer records of its key, if the broker still works off
//     what it had read. First deliveries are in order even so, since both connections carry the
//     same records in the same order.
//   - Connection blocked (memory or disk alarm): nothing is sent until it is unblocked. Publish
//     gives up after a short wait when nothing is under way, and after the confirm timeout when
//     something is.
//   - Channel exception: the channel is gone with all that was under way on it. Where the broker's
//     text blames a message (too large, topic not allowed), that record is refused and the rest is
//     published on a new channel. Where the exchange is gone, it is declared again.
//   - Channel or connection closed for one message that the broker does not name: the batch is
//     halved until the message is alone, and that record is refused. blame.go sorts the codes,
//     search.go does the search, on a connection of its own where the whole connection was closed.
//     When the broker refuses a bare message too, no record is at fault.
//
// # Order behind a record that comes back
//
// Returns and nacks arrive when what was sent behind is in its queue already. So a record is sent
// behind another of its key only when that one is confirmed, or on its way to a routing key that is
// known to be good. A good one took a message within the last 30 s and gave none back in that time,
// and nothing was nacked on any (trouble.go has why a nack counts against all). All that is sent to
// good routes is pipelined; where one is not known to be good, only records of the same key wait
// for each other. What is left: a route that was good a moment ago. When its last binding goes, or
// its queue is full, up to one window of each lane was sent before we know. Those records are then
// offered again in order behind the one that came back.
//
// # Not obvious
//
//   - A channel that comes back to the pool is done: no confirm is outstanding and every return was
//     read. So a return can only belong to the batch that is under way.
//   - basic.return comes before its basic.ack on the same channel, and amqp091 hands both over from
//     one goroutine, in order. So when a confirmation is there its return, if any, is in the
//     returns channel.
//   - That channel must never be full, or amqp091's reader waits for us (amqp091-go#10) and after 5
//     s drops what it could not deliver. It has room for the whole window, and never more than the
//     window is outstanding.
//   - amqp091 breaks the connection for a string of more than 255 bytes in a short string field,
//     and the broker does so for a header frame above frame_max. Such records must be refused
//     before they get there.
//   - When a channel closes, amqp091 completes all its confirmations as if they were nacked. A nack
//     counts only while the channel is open.
package rabbitmq
