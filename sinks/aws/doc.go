// Package aws is the sink for FIFO queues of Amazon SQS and FIFO topics of Amazon SNS, by AWS's own
// SDK: credentials, regions and proxies are found as in its other programs.
//
// A record's key is the message group, so a group's order is a key's order, and its event_id is the
// deduplication id: a repeat within five minutes is dropped by AWS (a replay that a person asks for
// is not: its id has the time of the replay, too). A group may have 128 characters of printable
// ASCII; another key is replaced by its hash, an empty one by noKey.
//
// # One message of a key in a request
//
// A batch request has up to ten messages, and AWS takes or refuses each by itself. If two messages
// of a key were in one request, and the first failed, the second would be in the queue already. The
// repeat of both would then put the first behind it, since the repeat of the second is dropped. The
// consumer would see a key's order reversed. So a request has one message of each key, and the next
// one of a key is sent when the one before it is acknowledged. Publish works in rounds: the next
// record of every key, in requests of ten that run side by side. That is as fast as AWS answers for
// one key, and as RELAY_SQS_CONCURRENCY allows for many.
//
// For the same reason a request without an answer does no harm: what it has brought is dropped when
// it comes again.
//
// # On failure
//
//   - A message fails by the sender's fault: it is refused as rejected, and what is behind it of its
//     key waits. With another fault it has a transient error.
//   - A whole request fails for something that may be one message's fault: each is sent alone.
//   - The queue or topic does not exist: refused as unknown_topic. It may not be sent to: refused as
//     unroutable. Both have patience, since a person can change that.
//   - No credentials, wrong or expired ones, throttling, no answer: transient.
//
// The SDK's own retries are off: the lane retries, so that backoff and metrics are right.
package aws
