package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/sagaz-relay/relay/relay"
)

// Stored is a record as a consumer of the topic sees it.
type Stored struct {
	Topic     string
	Partition int
	Offset    int64
	Key       string
	NoKey     bool // the key is null
	Value     []byte
	Headers   []relay.Header
	Time      time.Time // of sending, or of appending where the topic wants that
}

// fetchBytes is about how much one question brings, and so what reading back keeps in memory.
const fetchBytes = 4 << 20

// ReadBack gives f every record of the topics from since on (zero: from the beginning) up to their
// present end. It goes partition by partition, and in order in each. A record's value and headers
// are f's to keep. It changes nothing in Kafka: no consumer group, no topic made. A topic that does
// not exist is empty. It stops at f's first error.
func ReadBack(ctx context.Context, cfg Config, topics []string, since time.Time, f func(Stored) error) error {
	cfg.Idempotence = false // nothing is written
	s, err := New(cfg, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // read only
	r := &reader{sink: s, conns: map[string]*wire{}, leaders: map[int32]string{}}
	defer r.close()
	for _, name := range topics {
		if !legalTopic(name) {
			continue
		}
		if err := r.topic(ctx, name, since, f); err != nil {
			return fmt.Errorf("read back topic %s: %w", name, err)
		}
	}
	return nil
}

// reader asks the partitions' leaders, over one connection each.
type reader struct {
	sink    *Sink
	conns   map[string]*wire // by address
	leaders map[int32]string // by partition of the topic that is being read
}

func (r *reader) close() {
	for _, conn := range r.conns {
		_ = conn.Close()
	}
}

func (r *reader) topic(ctx context.Context, name string, since time.Time, f func(Stored) error) error {
	m, err := r.metadata(ctx, name)
	if err != nil {
		return err
	}
	switch code := kafkago.Error(m.ErrorCode); code {
	case 0, kafkago.LeaderNotAvailable:
	case kafkago.UnknownTopicOrPartition, kafkago.InvalidTopic: // nothing can be there
		return nil
	default:
		return code
	}
	clear(r.leaders)
	slices.SortFunc(m.Partitions, func(a, b metadata.ResponsePartition) int { return int(a.PartitionIndex - b.PartitionIndex) })
	for _, p := range m.Partitions {
		if err := r.partition(ctx, name, p.PartitionIndex, since, f); err != nil {
			return fmt.Errorf("partition %d: %w", p.PartitionIndex, err)
		}
	}
	return nil
}

func (r *reader) metadata(ctx context.Context, name string) (*metadata.ResponseTopic, error) {
	m, err := r.sink.control.metadata(ctx, &metadata.Request{TopicNames: []string{name}})
	if err != nil {
		return nil, err
	}
	r.sink.setBrokers(m.Brokers)
	if len(m.Topics) != 1 {
		return nil, fmt.Errorf("asked for one topic, the answer has %d", len(m.Topics))
	}
	return &m.Topics[0], nil
}

// ask sends a request to the leader of a partition. A leader that has moved, or has just started,
// is asked again.
func (r *reader) ask(ctx context.Context, topic string, partition int32, req protocol.Message, code func(protocol.Message) (kafkago.Error, error)) (protocol.Message, error) {
	var res protocol.Message
	var last error
	refused, end := false, time.Now().Add(electionPatience)
	err := relay.Retry(ctx, relay.Backoff{Min: 50 * time.Millisecond, Max: time.Second}, func() (err error) {
		var c kafkago.Error
		if res, err = r.askOnce(ctx, topic, partition, req); err == nil {
			c, err = code(res)
		}
		if err == nil && c != 0 {
			v, _ := classify(c)
			refused, err = v != moved, c
		}
		return err
	}, func(err error, _ time.Duration) bool {
		delete(r.leaders, partition)
		last = err
		return !refused && time.Now().Before(end)
	})
	switch {
	case err == nil:
		return res, nil
	case ctx.Err() != nil && !refused:
		return nil, fmt.Errorf("%w, last: %w", context.Cause(ctx), cmp.Or(last, err))
	}
	return nil, err
}

// electionPatience is more than the election of a leader takes.
const electionPatience = 2500 * time.Millisecond

func (r *reader) askOnce(ctx context.Context, topic string, partition int32, req protocol.Message) (protocol.Message, error) {
	addr, err := r.leader(ctx, topic, partition)
	if err != nil {
		return nil, err
	}
	conn := r.conns[addr]
	if conn == nil {
		if conn, _, err = r.sink.dialer.dial(ctx, addr); err != nil {
			return nil, err
		}
		r.conns[addr] = conn
	}
	_ = conn.SetDeadline(time.Now().Add(r.sink.cfg.RequestTimeout))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	res, err := conn.RoundTrip(req)
	if !stop() || err != nil {
		_ = conn.Close()
		delete(r.conns, addr)
	}
	if err != nil && ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = context.Cause(ctx)
	}
	return res, err
}

// leader returns the address of the partition's leader.
func (r *reader) leader(ctx context.Context, topic string, partition int32) (string, error) {
	if addr := r.leaders[partition]; addr != "" {
		return addr, nil
	}
	m, err := r.metadata(ctx, topic)
	if err != nil {
		return "", err
	}
	for _, p := range m.Partitions {
		if p.PartitionIndex == partition && p.LeaderID >= 0 {
			r.leaders[partition] = r.sink.broker(p.LeaderID).address()
			return r.leaders[partition], nil
		}
	}
	return "", kafkago.LeaderNotAvailable
}

// Timestamps that mean the ends of a partition.
const (
	atFirst = -2
	atLast  = -1
)

// offset asks for the first offset from a timestamp on, negative when no record is that late.
func (r *reader) offset(ctx context.Context, topic string, partition int32, timestamp int64) (offset int64, err error) {
	_, err = r.ask(ctx, topic, partition, &listoffsets.Request{ReplicaID: -1, Topics: []listoffsets.RequestTopic{{
		Topic: topic, Partitions: []listoffsets.RequestPartition{{Partition: partition, CurrentLeaderEpoch: -1, Timestamp: timestamp}},
	}}}, func(res protocol.Message) (kafkago.Error, error) {
		for _, t := range res.(*listoffsets.Response).Topics {
			for _, p := range t.Partitions {
				offset = p.Offset
				return kafkago.Error(p.ErrorCode), nil
			}
		}
		return 0, errors.New("no offset in the answer")
	})
	return offset, err
}

func (r *reader) partition(ctx context.Context, topic string, partition int32, since time.Time, f func(Stored) error) error {
	// The end first, because what comes later is not asked for.
	end, err := r.offset(ctx, topic, partition, atLast)
	if err != nil {
		return err
	}
	from := int64(atFirst)
	if !since.IsZero() {
		from = since.UnixMilli()
	}
	at, err := r.offset(ctx, topic, partition, from)
	if err != nil || at < 0 {
		return err
	}
	for at < end {
		next, err := r.fetch(ctx, topic, partition, at, end, f)
		if err != nil {
			return err
		}
		at = next
	}
	return nil
}

// fetch reads some records from at on, below end, and returns where to go on.
func (r *reader) fetch(ctx context.Context, topic string, partition int32, at, end int64, f func(Stored) error) (next int64, err error) {
	var records protocol.RecordReader
	_, err = r.ask(ctx, topic, partition, &fetch.Request{
		ReplicaID: -1, MaxWaitTime: 500, MinBytes: 1, MaxBytes: fetchBytes, SessionID: -1, SessionEpoch: -1,
		Topics: []fetch.RequestTopic{{Topic: topic, Partitions: []fetch.RequestPartition{{
			Partition: partition, CurrentLeaderEpoch: -1, FetchOffset: at, LogStartOffset: -1, PartitionMaxBytes: fetchBytes,
		}}}},
	}, func(res protocol.Message) (kafkago.Error, error) {
		for _, t := range res.(*fetch.Response).Topics {
			for i := range t.Partitions {
				records = t.Partitions[i].RecordSet.Records
				return kafkago.Error(t.Partitions[i].ErrorCode), nil
			}
		}
		return 0, errors.New("no partition in the answer")
	})
	if err != nil || records == nil {
		return at + 1, err
	}
	next = at
	for {
		rec, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			// It may be only the markers of other clients' transactions: go past them one by one.
			return max(next, at+1), nil
		}
		if err != nil {
			return 0, fmt.Errorf("offset %d: %w", next, err)
		}
		stored := Stored{Topic: topic, Partition: int(partition), Offset: rec.Offset, Time: rec.Time, NoKey: rec.Key == nil}
		var key []byte
		key, err = protocol.ReadAll(rec.Key)
		if err == nil {
			stored.Value, err = protocol.ReadAll(rec.Value)
		}
		if err != nil {
			return 0, fmt.Errorf("offset %d: %w", rec.Offset, err)
		}
		if rec.Offset < at || rec.Offset >= end { // a batch is fetched whole
			continue
		}
		next = rec.Offset + 1
		stored.Key = string(key)
		for _, h := range rec.Headers {
			stored.Headers = append(stored.Headers, relay.Header{Key: h.Key, Value: string(h.Value)})
		}
		if err := f(stored); err != nil {
			return 0, err
		}
	}
}
