// Package redis is the sink for Redis Streams: XADD to the stream that is called as the record's
// topic.
//
// An entry has the fields event_id, key, headers (a JSON object) and value. A record counts as
// acknowledged when Redis has answered with the entry's id, and, with RELAY_REDIS_REPLICAS, when so
// many replicas have it.
//
// # Order
//
// Each Publish has a connection of its own. Of each key one record is under way: a wave has the next
// record of each key, as one pipeline, and the next wave goes out when all of this one is answered. A
// pipeline alone would not do: Redis goes on with the commands behind one that has failed, so what
// found no memory would be added behind what did.
//
// Redis has no memory of what it was sent, so a record whose outcome is not known is added again. Its
// first copy may still be in the connection that was given up, and must not be added behind newer
// ones. So such a connection is finished before anything else is sent: its writing half is closed,
// and the sink waits until Redis, having worked off what it carried, has closed the other. That may
// fail, in a network that swallows everything; after three timeouts the connection is dropped with
// what has not left this machine.
//
// # On failure
//
//   - Connection lost, Redis gone, frozen, or still loading: a transient error; the next Publish
//     connects. The client's own retries are off.
//   - Out of memory (OOM), disk trouble (MISCONF), too few replicas (NOREPLICAS, WAIT), a replica
//     that is asked to write (READONLY): transient.
//   - The key is of another type, or not this user's: refused as rejected.
//   - No such stream, with RELAY_REDIS_MAKE_STREAMS=false: refused as unknown_topic.
//   - Above proto-max-bulk-len: refused as too_large.
//   - Redis Cluster (MOVED): not supported, a transient error with what to do.
package redis
