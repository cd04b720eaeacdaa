package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go/protocol/metadata"
)

// A record does not name its sink. Where two sinks of a process write to one cluster, what is read
// back for one (tail.go) may be what the other had sent, and would be taken for its own, which would
// then never be sent. So a sink reads back only if its cluster is known to be none of the others':
// addresses do not show that, the clusters' ids do.

// Apart lets sinks of one process know of each other, before they are used: each reads back what an
// owner that died had sent only while its cluster's id is unlike those of all others. An id is asked
// for when it is first needed. Without an answer, nothing is read back.
func Apart(sinks ...*Sink) {
	for i, s := range sinks {
		s.others = append(append([]*Sink(nil), sinks[:i]...), sinks[i+1:]...)
	}
}

// isApart returns nil if the sink's cluster, which has this id, is none of the other sinks'.
func (s *Sink) isApart(ctx context.Context, id string) error {
	if len(s.others) == 0 {
		return nil
	}
	if id == "" {
		return errors.New("there are several Kafka sinks, and this one's cluster has no id to tell it from theirs")
	}
	for _, other := range s.others {
		switch theirs, err := other.control.clusterID(ctx); {
		case err != nil:
			return fmt.Errorf("whether sink %s is of the same cluster is not known: %w", other.Name(), err)
		case theirs == "" || theirs == id:
			return fmt.Errorf("sink %s may be of the same cluster, and a record does not name its sink", other.Name())
		}
	}
	return nil
}

// clusterID is the id that the cluster has in its last answer about metadata; it is asked if there
// was none yet. Empty: it has none.
func (c *control) clusterID(ctx context.Context) (string, error) {
	if id := c.cluster.Load(); id != nil {
		return *id, nil
	}
	m, err := c.metadata(ctx, &metadata.Request{TopicNames: []string{}}) // null would mean all
	if err != nil {
		return "", err
	}
	return m.ClusterID, nil
}
