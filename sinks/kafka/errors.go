package kafka

import (
	"errors"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/relay"
)

// ErrClosed is what Publish returns once Close was called.
var ErrClosed = errors.New("kafka sink is closed")

// meaning is what a broker's answer means for the records of one batch.
type meaning int

const (
	// delivered: in the log of all in-sync replicas.
	delivered meaning = iota
	// moved: not appended, because another broker leads the partition now, or none does yet. The
	// leader is asked for again and the batch sent there, a few times; after that it is transient.
	moved
	// transient: not appended, or that is not known; the lane offers it again.
	transient
	// oversized: the batch is larger than the topic allows. Its records are sent in smaller
	// batches, down to one, which is then refused.
	oversized
	// suspect: a record of the batch is at fault; found in the same way.
	suspect
	// refused: every record of the batch is refused.
	refused
	// misplaced: the sequence number is not the one that the broker waits for, so nothing was
	// appended.
	misplaced
	// unfenced: the broker takes no producer id from this user.
	unfenced
)

// classify alone sorts produce errors. The reason is for oversized, suspect and refused.
func classify(code kafkago.Error) (meaning, relay.Reason) {
	switch code {
	case 0:
		return delivered, ""

	case kafkago.MessageSizeTooLarge:
		// The batch exceeds the topic's max.message.bytes.
		return oversized, relay.ReasonTooLarge
	case kafkago.RecordListTooLarge:
		// The batch exceeds the topic's segment.bytes.
		return oversized, relay.ReasonTooLarge

	case kafkago.InvalidRecord:
		// A record has no key though the topic is compacted, or the broker's own validation refuses
		// it. Brokers name the record (record_errors, from version 8 of the request).
		return suspect, relay.ReasonRejected
	case kafkago.InvalidMessage:
		// CORRUPT_MESSAGE: the checksum or the form of a record is wrong on arrival. Between a
		// correct client and broker that means damage on the way, or a broker that validates more
		// than Kafka does.
		return suspect, relay.ReasonRejected
	case kafkago.PolicyViolation, kafkago.UnsupportedForMessageFormat:
		// A policy class of the broker refuses it; or the topic's log format is older than headers
		// (0.10).
		return suspect, relay.ReasonRejected

	case kafkago.InvalidTopic:
		// The name is not legal, or it is an internal topic of Kafka's.
		return refused, relay.ReasonUnknownTopic
	case kafkago.TopicAuthorizationFailed:
		// The user has no WRITE on the topic.
		return refused, relay.ReasonRejected

	case kafkago.NotLeaderForPartition, kafkago.LeaderNotAvailable, kafkago.UnknownTopicOrPartition,
		kafkago.ReplicaNotAvailable, kafkago.FencedLeaderEpoch, kafkago.UnknownLeaderEpoch, kafkago.KafkaStorageError:
		// The leader moved, is being elected, lost its disk, or the topic was deleted or has just
		// been made.
		return moved, ""

	case kafkago.OutOfOrderSequenceNumber, kafkago.DuplicateSequenceNumber, kafkago.InvalidProducerEpoch, kafkago.UnknownProducerId,
		kafkago.ProducerFenced, kafkago.InvalidProducerIDMapping:
		// A batch before this one failed, or the broker has forgotten the id (an old broker after
		// retention, a log truncated by an unclean election).
		return misplaced, ""
	case kafkago.ClusterAuthorizationFailed:
		// Brokers before 2.8 want IDEMPOTENT_WRITE on the cluster for batches with a producer id.
		return unfenced, ""

	case kafkago.InvalidTimestamp:
		// Records carry the time of sending, so it is this host's clock, or limits of the topic
		// (message.timestamp.*.max.ms) that no record could keep: never the record's own fault.
		return transient, ""
	case kafkago.RequestTimedOut, kafkago.NotEnoughReplicasAfterAppend:
		// Appended by the leader, but not by enough replicas in time: it may survive or not.
		return transient, ""
	}
	// NOT_ENOUGH_REPLICAS, THROTTLING_QUOTA_EXCEEDED, UNSUPPORTED_COMPRESSION_TYPE (an old broker
	// and zstd), BROKER_NOT_AVAILABLE, UNKNOWN_SERVER_ERROR and codes that are not known here: no
	// record is at fault.
	return transient, ""
}

// unsupported reports whether there will be no producer id: the user may not have one, or the
// broker knows none.
func unsupported(err error) bool {
	return errors.Is(err, kafkago.ClusterAuthorizationFailed) || errors.Is(err, kafkago.TransactionalIDAuthorizationFailed) ||
		errors.Is(err, kafkago.UnsupportedVersion)
}

// loading reports whether a broker will have a producer id in a moment.
func loading(err error) bool {
	return errors.Is(err, kafkago.GroupLoadInProgress) || errors.Is(err, kafkago.GroupCoordinatorNotAvailable) || errors.Is(err, kafkago.NotCoordinatorForGroup)
}

// withText is a broker's error with the text that it adds. Brokers name topics, partitions and
// limits there, never a record's content. Even so it is cut, since validators may be somebody
// else's code.
func withText(code kafkago.Error, text string) error {
	if text == "" {
		return code
	}
	if len(text) > 200 {
		text = text[:200] + "…"
	}
	return fmt.Errorf("%w: %s", code, text)
}

func tooLarge(size int, limit int64, err error) error {
	return &relay.RefusedError{Reason: relay.ReasonTooLarge, Size: int64(size), Limit: limit, Err: err}
}

// legalTopic is Kafka's rule for names.
func legalTopic(name string) bool {
	if name == "" || len(name) > 249 || name == "." || name == ".." {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
