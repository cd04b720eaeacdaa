// Package kafka is the sink for Apache Kafka.
//
// It owns the connections to the cluster and keeps the contract of relay.Sink: a record counts as
// acknowledged when all in-sync replicas have it (acks=all, always), records of a key reach their
// topic in the order given, and a failure names its records. Key and partition are those of the
// Java client and of aiokafka (murmur2). Topics have no order among themselves in Kafka, so order
// per key is order per key and topic.
//
// # One record's way
//
//	Publish ─ group by partition ─▶ partition ─ ready ─▶ broker ─ one request ─▶ link ═▶ Kafka
//	   ▲                              queue                sender    for all its      │
//	   └────────── fates ◀── decide ◀───────────────────────────── partitions ◀── read
//
// Publish (sink.go) groups its batch by partition and waits. A partition (partition.go) queues the
// groups of all lanes. Each broker has one sender goroutine (broker.go) that puts what its
// partitions have into one request, at most 2 unanswered at a time. What arrives meanwhile gathers
// into the next, so batches grow with the load and nothing lingers. One goroutine per connection
// reads the answers and gives the records their fates. The refresher (topics.go) asks the cluster
// in the background for the partitions' leaders. errors.go alone decides what an answer means.
//
// # Order, and what happens on each failure
//
// A key is in one Publish at a time, and of one Publish at most one batch per partition is in
// flight, so a failed batch never has later records of its keys behind it. The danger left is the
// late copy. A request times out here, is repeated, and newer records follow; then the first copy,
// which was only slow, arrives. kafka-go's writers have no defence against that. Therefore batches
// are written here (encode.go) with a producer id, an epoch and a sequence number, as idempotent
// producers do, in this way:
//
//   - The connection breaks under a request: the same batch with the same numbers goes out once
//     more, on a new connection, to whoever leads by then. Brokers append it once. If that fails
//     too, its fate is unknown and the lane offers the records again.
//   - An answer does not come in time, or a batch fails in any way: when nothing of the partition
//     is in flight any more its epoch goes up by one. From the first batch of the new epoch on,
//     brokers refuse (with INVALID_PRODUCER_EPOCH) anything of ours from before. So what the lane
//     repeats is a suffix, in order, and stays one.
//   - The leader moved: ask who it is and send there, up to four times; then the lane.
//   - A batch is too large, or one record in it is refused: halve it until the culprit is alone in
//     one. The others are delivered in order in the same Publish; those of its key behind it are
//     not sent.
//   - Publish's context ends: its records count as failed. A request in flight is left to end by
//     itself; what the lane offers again is queued behind it.
//
// Behind a refused record nothing of its key is sent, in no topic. Between topics, where Kafka
// gives no order anyway, that takes a wait in three cases: when a record's topic is not known yet;
// when its partition has taken nothing yet from us under its present leader (brokers answer for a
// while that nobody leads a topic they have just made); and when the topic has refused a record
// within the last 30 s. Then what its key has for other topics goes out in a further round of the
// same Publish, when the record's fate is known. All other records of a batch go out at once. What
// is left is the first refusal of a topic that took everything until then. The key's records for
// other topics were sent with it, and are offered again behind it.
//
// A producer id is one process's. What a killed process had on the way may arrive after its
// successor has started, for as long as packets live; nothing here can stop that. Where the cluster
// gives no producer id (IDEMPOTENT_WRITE before Kafka 2.8, or RELAY_KAFKA_IDEMPOTENCE=false) the
// late copy is possible. The broker gives up after two thirds of the time that we wait
// (RELAY_KAFKA_REQUEST_TIMEOUT), which makes it rare, not impossible.
//
// What a killed process had sent and not marked, its successor reads back (tail.go), so that only
// what arrives after that comes twice.
//
// Partitions added to a topic move keys, as with every Kafka client. For a key that moves,
// consumers may see a later record in its new partition before an earlier one in the old.
//
// # Bytes from strangers
//
// What answers at the address may be another server, or a faulty broker. Frames are read in
// wire.go, with a limit, and every length and count in them is checked against what is there
// (shape.go) before kafka-go's decoder, which allocates by them, sees any. plausible (control.go)
// then refuses what no cluster is like.
//
// # Why not kafka-go's Transport or Writer
//
// Requests, answers, codecs and SASL come from kafka-go. Its Writer mixes the batches of callers,
// and cannot say which record failed. Its Transport asks for the metadata of all topics of the
// cluster every few seconds, sends to the leader of its last answer until the next, hands out idle
// connections that are dead, and takes one request per partition and connection at a time. One
// request for all partitions of a broker is what keeps many topics cheap.
//
// # Why not another client, and what that costs
//
// A client with an idempotent producer of its own would take epochs and sequence numbers off our
// hands. But it retries by itself. When it gives a record up, later ones of the partition may have
// gone out already, and what is offered again is no suffix of its key. Order across topics and
// halving a refused batch would still be ours. Also, the library was given, and a relay that marks
// rows needs the fate of each record more than a client's convenience.
//
// The price is in this package: batching, leaders, retries and sequence numbers are about 2,500
// lines here that a client would have had, with tests against a broker that cuts, delays and
// answers wrongly. A new version of the produce request is ours to follow: it speaks 3 to 8, which
// brokers take from 0.11 to 4.x.
package kafka
