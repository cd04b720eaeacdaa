package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/sagaz-relay/relay/relay"
)

// Reading back what a relay that died had sent. It asks the leaders, all at once, each about all of
// its partitions in one request: where the records begin that are as young as that, where the
// partition ends, and for what is in between. It is an ordinary consumer without a group: it sees
// what all in-sync replicas have.
//
// Records have the time of their sending (encode.go: finish), by the clock of the relay that sent
// them, and since is by the same clock. So a topic that was made again, partitions that are new, a
// log that was truncated, and other clients' records in between need no care. Where the topic has the
// brokers' time of appending, or we may not ask, since is taken to be clockSkew earlier.
const (
	clockSkew = time.Second
	// tailFetch is about how much one answer has of all partitions, and tailPartition of one. The
	// buffer of such an answer is kept for the next (BenchmarkReadTail).
	tailFetch     = keepFrame - 64<<10
	tailPartition = 256 << 10
	// appendTime is the bit of a batch's attributes that is set where its times are the broker's.
	appendTime = 1 << 3
)

var _ relay.TailReader = (*Sink)(nil)

// ReadsTail implements relay.TailReader.
func (s *Sink) ReadsTail() bool { return s.cfg.ReadBack }

// tail is what is read of one partition: from at to before end.
type tail struct {
	topic     string
	partition int32
	since     int64 // Unix milliseconds
	at, end   int64
	short     bool // it began before at
	err       error
}

func (t *tail) place() string { return fmt.Sprintf("%s/%d", t.topic, t.partition) }

// ReadTail implements relay.TailReader.
func (s *Sink) ReadTail(ctx context.Context, q relay.TailQuery, f func(*relay.Record)) (relay.TailReport, error) {
	var report relay.TailReport
	if s.ctx.Err() != nil {
		return report, ErrClosed
	}
	ctx, cancel := s.whileOpen(ctx)
	defer cancel()
	names := slices.DeleteFunc(slices.Clone(q.Topics), func(name string) bool { return !legalTopic(name) })
	if len(names) == 0 {
		return report, nil
	}
	m, err := s.control.metadata(ctx, &metadata.Request{TopicNames: names})
	if err != nil {
		return report, err
	}
	s.setBrokers(m.Brokers)
	if err := s.isApart(ctx, m.ClusterID); err != nil {
		return report, err
	}
	leaders, unread := byLeader(m)
	report.Unread = unread
	known := s.control.keeps(ctx, names)
	for _, tails := range leaders {
		for _, t := range tails {
			if t.since = q.Since.UnixMilli(); !known[t.topic].ownTime {
				t.since -= clockSkew.Milliseconds()
			}
		}
	}
	var mu sync.Mutex // so that f is called by one at a time
	var reading sync.WaitGroup
	for leader, tails := range leaders {
		reading.Go(func() {
			r := &tailReader{sink: s, addr: s.broker(leader).address(), query: q, take: func(recs []relay.Record, n int) {
				mu.Lock()
				defer mu.Unlock()
				report.Records += n
				for i := range recs {
					f(&recs[i])
				}
			}}
			r.read(ctx, tails)
		})
	}
	reading.Wait()
	for _, tails := range leaders {
		for _, t := range tails {
			if t.err == nil && t.short {
				t.err = fmt.Errorf("more than %d records: the last ones were read", q.Most)
			}
			if t.err != nil {
				report.Unread = append(report.Unread, relay.UnreadTail{Place: t.place(), Err: t.err})
			}
		}
	}
	slices.SortFunc(report.Unread, func(a, b relay.UnreadTail) int { return strings.Compare(a.Place, b.Place) })
	return report, nil
}

// byLeader sorts the topics' partitions by who leads them. A topic that does not exist has no
// records; others whose leaders are not known are unread.
func byLeader(m *metadata.Response) (leaders map[int32][]*tail, unread []relay.UnreadTail) {
	leaders = make(map[int32][]*tail)
	for i := range m.Topics {
		topic := &m.Topics[i]
		switch code := kafkago.Error(topic.ErrorCode); code {
		case 0, kafkago.LeaderNotAvailable:
		case kafkago.UnknownTopicOrPartition:
			continue
		default:
			unread = append(unread, relay.UnreadTail{Place: topic.Name, Err: code})
			continue
		}
		slices.SortFunc(topic.Partitions, func(a, b metadata.ResponsePartition) int { return cmp.Compare(a.PartitionIndex, b.PartitionIndex) })
		for _, p := range topic.Partitions {
			t := &tail{topic: topic.Name, partition: p.PartitionIndex}
			if p.LeaderID < 0 {
				unread = append(unread, relay.UnreadTail{Place: t.place(), Err: kafkago.LeaderNotAvailable})
				continue
			}
			leaders[p.LeaderID] = append(leaders[p.LeaderID], t)
		}
	}
	return leaders, unread
}

// tailReader reads the tails that one broker leads, over a connection of its own.
type tailReader struct {
	sink  *Sink
	addr  string
	query relay.TailQuery
	conn  *wire
	// take gets records, and how many were read to find them.
	take func(recs []relay.Record, n int)
}

// read reads them, and notes with each why that is not possible.
func (r *tailReader) read(ctx context.Context, tails []*tail) {
	err := r.readAll(ctx, tails)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		for _, t := range tails {
			if t.err == nil && (t.at < t.end || t.end == 0) {
				t.err = err
			}
		}
	}
}

func (r *tailReader) readAll(ctx context.Context, tails []*tail) (err error) {
	if r.addr == "" {
		return errors.New("the cluster's metadata does not list the leader")
	}
	if r.conn, _, err = r.sink.dialer.dial(ctx, r.addr); err != nil {
		return err
	}
	defer func() { _ = r.conn.Close() }() // read only
	_ = r.conn.SetDeadline(time.Now().Add(r.sink.cfg.RequestTimeout))
	defer context.AfterFunc(ctx, func() { _ = r.conn.SetDeadline(time.Unix(1, 0)) })()
	err = r.offsets(tails, func(*tail) int64 { return atLast }, func(t *tail, offset int64) { t.end = offset })
	if err != nil {
		return err
	}
	err = r.offsets(tails, func(t *tail) int64 { return t.since }, func(t *tail, offset int64) {
		if offset < 0 { // nothing is so young
			offset = t.end
		}
		t.at = max(offset, t.end-int64(r.query.Most))
		t.short = t.at > offset
	})
	for err == nil {
		open := slices.DeleteFunc(slices.Clone(tails), func(t *tail) bool { return t.err != nil || t.at >= t.end })
		if len(open) == 0 {
			return nil
		}
		err = r.fetch(open)
	}
	return err
}

// offsets asks for the first offset from a timestamp on, of each partition that has no error yet.
func (r *tailReader) offsets(tails []*tail, timestamp func(*tail) int64, set func(*tail, int64)) error {
	req := &listoffsets.Request{ReplicaID: -1}
	for _, t := range tails {
		if t.err != nil {
			continue
		}
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != t.topic {
			req.Topics = append(req.Topics, listoffsets.RequestTopic{Topic: t.topic})
		}
		topic := &req.Topics[len(req.Topics)-1]
		topic.Partitions = append(topic.Partitions, listoffsets.RequestPartition{Partition: t.partition, CurrentLeaderEpoch: -1, Timestamp: timestamp(t)})
	}
	if len(req.Topics) == 0 {
		return nil
	}
	res, err := r.conn.RoundTrip(req)
	if err != nil {
		return err
	}
	answered := make(map[*tail]bool)
	for _, topic := range res.(*listoffsets.Response).Topics {
		for _, p := range topic.Partitions {
			t := find(tails, topic.Topic, p.Partition)
			if t == nil {
				continue
			}
			answered[t] = true
			if p.ErrorCode != 0 {
				t.err = kafkago.Error(p.ErrorCode)
			} else {
				set(t, p.Offset)
			}
		}
	}
	for _, t := range tails {
		if !answered[t] && t.err == nil {
			t.err = errors.New("the broker's answer leaves the partition out")
		}
	}
	return nil
}

func find(tails []*tail, topic string, partition int32) *tail {
	for _, t := range tails {
		if t.partition == partition && t.topic == topic {
			return t
		}
	}
	return nil
}

// fetch reads some more of the tails.
func (r *tailReader) fetch(tails []*tail) error {
	req := &fetch.Request{ReplicaID: -1, MaxWaitTime: 100, MinBytes: 1, MaxBytes: tailFetch, SessionID: -1, SessionEpoch: -1}
	for _, t := range tails {
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != t.topic {
			req.Topics = append(req.Topics, fetch.RequestTopic{Topic: t.topic})
		}
		topic := &req.Topics[len(req.Topics)-1]
		topic.Partitions = append(topic.Partitions, fetch.RequestPartition{
			Partition: t.partition, CurrentLeaderEpoch: -1, FetchOffset: t.at, LogStartOffset: -1, PartitionMaxBytes: tailPartition,
		})
	}
	res, err := r.conn.RoundTrip(req)
	if err != nil {
		return err
	}
	moved := false
	for i := range res.(*fetch.Response).Topics {
		topic := &res.(*fetch.Response).Topics[i]
		for j := range topic.Partitions {
			p := &topic.Partitions[j]
			t := find(tails, topic.Topic, p.Partition)
			if t == nil {
				continue
			}
			from := t.at
			if p.ErrorCode != 0 {
				t.err = kafkago.Error(p.ErrorCode)
			} else if err := r.records(t, &p.RecordSet); err != nil {
				t.err = fmt.Errorf("offset %d: %w", t.at, err)
			}
			moved = moved || t.err != nil || t.at > from
		}
	}
	if !moved { // a broker sends at least one batch of one partition
		return errors.New("the broker sends nothing of what is there")
	}
	return nil
}

// records takes what a partition's answer has, and moves the tail on.
func (r *tailReader) records(t *tail, set *protocol.RecordSet) error {
	stream, ok := set.Records.(*protocol.RecordStream)
	if !ok {
		return nil // there was no room for it in the answer
	}
	var recs []relay.Record
	n := 0
	defer func() { r.take(recs, n) }()
	for _, batch := range stream.Records {
		brokerTime := false
		switch b := batch.(type) {
		case *protocol.ControlBatch: // of other clients' transactions
			t.at = max(t.at, b.BaseOffset+1)
			continue
		case *protocol.RecordBatch:
			brokerTime = b.Attributes&appendTime != 0
			t.at = max(t.at, b.BaseOffset+1) // it may be empty, after compaction
		}
		for {
			rec, err := batch.ReadRecord()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			key, err := protocol.ReadAll(rec.Key)
			if err != nil {
				return err
			}
			value, err := protocol.ReadAll(rec.Value)
			if err != nil {
				return err
			}
			t.at = max(t.at, rec.Offset+1)
			n++
			if !brokerTime && rec.Time.Before(r.query.Since.Truncate(time.Millisecond)) {
				continue
			}
			out := relay.Record{Topic: t.topic, Key: string(key), Value: value}
			for _, h := range rec.Headers {
				out.Headers = append(out.Headers, relay.Header{Key: h.Key, Value: string(h.Value)})
			}
			if out.EventID, ok = eventID(out.Headers); ok {
				recs = append(recs, out)
			}
		}
	}
	return nil
}

// eventID is the event that a record is of, by the header of each envelope.
func eventID(headers []relay.Header) (id relay.UUID, ok bool) {
	for _, h := range headers {
		switch h.Key {
		case "event_id", "ce_id", "id":
			if id, err := relay.ParseUUID(h.Value); err == nil {
				return id, true
			}
		}
	}
	return id, false
}
