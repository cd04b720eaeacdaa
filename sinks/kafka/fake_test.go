package kafka

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"
	"github.com/segmentio/kafka-go/protocol/initproducerid"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/produce"
)

// fake is a cluster in memory, for answers that a real broker gives only when it has a fault. It
// speaks with kafka-go's side of the protocol, and appends what it does not refuse.
type fake struct {
	t   testing.TB
	wg  sync.WaitGroup
	lns []net.Listener

	mu        sync.Mutex
	leader    map[string]int32 // by topic; -1 is none
	parts     map[string]int   // number of partitions; default 1
	unknown   map[string]kafkago.Error
	log       map[string][]string // values by topic, as appended
	produced  []batchSeen
	questions map[protocol.ApiKey]int
	conns     map[net.Conn]struct{}
	noID      kafkago.Error
	nextID    int64
	limit     string
	silent    protocol.ApiKey // from the first such request on nothing is answered; -1: all are
	// produce decides about a batch; nil appends.
	produce func(b batchSeen) produce.ResponsePartition
	// after may change the answer of a batch that was appended.
	after func(b batchSeen) produce.ResponsePartition
}

// batchSeen is a record batch as a broker of the fake got it.
type batchSeen struct {
	broker    int32
	topic     string
	partition int32
	values    []string
	id        producerID
	seq       int32
}

func newFake(t testing.TB, brokers int) *fake {
	f := &fake{
		t: t, leader: map[string]int32{}, parts: map[string]int{}, unknown: map[string]kafkago.Error{}, log: map[string][]string{},
		questions: map[protocol.ApiKey]int{}, conns: map[net.Conn]struct{}{}, nextID: 100, limit: "1048588", silent: -1,
	}
	for id := range brokers {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f.lns = append(f.lns, ln)
		f.wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				f.mu.Lock()
				f.conns[c] = struct{}{}
				f.mu.Unlock()
				f.wg.Go(func() { f.serve(c, int32(id)) })
			}
		})
	}
	t.Cleanup(func() {
		for _, ln := range f.lns {
			_ = ln.Close()
		}
		f.mu.Lock()
		for c := range f.conns {
			_ = c.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

func (f *fake) addr() string { return f.lns[0].Addr().String() }

// set changes the cluster.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) appended(topic string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.log[topic]...)
}

func (f *fake) serve(c net.Conn, id int32) {
	defer c.Close()
	rw := struct {
		*bufio.Reader
		io.Writer
	}{bufio.NewReader(c), c}
	for {
		version, correlation, _, req, err := protocol.ReadRequest(rw)
		if err != nil {
			return
		}
		f.mu.Lock()
		f.questions[req.ApiKey()]++
		if silent := f.silent == req.ApiKey(); silent {
			f.mu.Unlock()
			_, _ = io.Copy(io.Discard, c)
			return
		}
		res := f.answer(id, req)
		f.mu.Unlock()
		if res == nil {
			return
		}
		if err := protocol.WriteResponse(rw, version, correlation, res); err != nil {
			return
		}
	}
}

// answer returns nil to hang up. The caller holds mu.
func (f *fake) answer(id int32, req protocol.Message) protocol.Message {
	switch req := req.(type) {
	case *apiversions.Request:
		return &apiversions.Response{ApiKeys: []apiversions.ApiKeyResponse{
			{ApiKey: int16(protocol.Produce), MinVersion: 3, MaxVersion: 8},
			{ApiKey: int16(protocol.Metadata), MinVersion: 0, MaxVersion: 8},
			{ApiKey: int16(protocol.ApiVersions), MinVersion: 0, MaxVersion: 0},
			{ApiKey: int16(protocol.InitProducerId), MinVersion: 0, MaxVersion: 1},
			{ApiKey: int16(protocol.DescribeConfigs), MinVersion: 0, MaxVersion: 3},
		}}
	case *initproducerid.Request:
		if f.noID != 0 {
			return &initproducerid.Response{ErrorCode: int16(f.noID), ProducerID: -1, ProducerEpoch: -1}
		}
		f.nextID++
		return &initproducerid.Response{ProducerID: f.nextID}
	case *describeconfigs.Request:
		r := describeconfigs.ResponseResource{ResourceType: 2, ResourceName: req.Resources[0].ResourceName}
		if f.limit == "" {
			r.ErrorCode = int16(kafkago.TopicAuthorizationFailed)
		} else {
			r.ConfigEntries = []describeconfigs.ResponseConfigEntry{{ConfigName: "max.message.bytes", ConfigValue: f.limit}}
		}
		return &describeconfigs.Response{Resources: []describeconfigs.ResponseResource{r}}
	case *metadata.Request:
		return f.describe(req)
	case *produce.Request:
		res := &produce.Response{}
		for _, t := range req.Topics {
			out := produce.ResponseTopic{Topic: t.Topic}
			for _, p := range t.Partitions {
				b := f.read(id, t.Topic, &p)
				r := produce.ResponsePartition{}
				if f.produce != nil {
					r = f.produce(b)
				}
				f.produced = append(f.produced, b)
				if r.ErrorCode == 0 && r.BaseOffset != isCopy {
					f.log[t.Topic] = append(f.log[t.Topic], b.values...)
					if f.after != nil {
						r = f.after(b)
					}
				}
				if r.ErrorCode == hangUp {
					return nil
				}
				r.Partition = p.Partition
				out.Partitions = append(out.Partitions, r)
			}
			res.Topics = append(res.Topics, out)
		}
		return res
	}
	f.t.Errorf("fake broker: request %T not expected", req)
	return nil
}

// hangUp as an error code closes the connection instead of answering.
const hangUp = -99

// isCopy as a base offset means that the batch was appended before.
const isCopy = -99

func (f *fake) read(id int32, topic string, p *produce.RequestPartition) batchSeen {
	batch := p.RecordSet.Records.(*protocol.RecordStream).Records[0].(*protocol.RecordBatch)
	b := batchSeen{broker: id, topic: topic, partition: p.Partition, id: producerID{batch.ProducerID, batch.ProducerEpoch}, seq: batch.BaseSequence}
	for {
		r, err := batch.ReadRecord()
		if errors.Is(err, io.EOF) {
			return b
		}
		if err != nil {
			f.t.Errorf("fake broker: %v", err)
			return b
		}
		v, _ := protocol.ReadAll(r.Value)
		b.values = append(b.values, string(v))
	}
}

func (f *fake) describe(req *metadata.Request) *metadata.Response {
	res := &metadata.Response{ClusterID: "fake"}
	for id, ln := range f.lns {
		host, port, _ := net.SplitHostPort(ln.Addr().String())
		n, _ := strconv.Atoi(port)
		res.Brokers = append(res.Brokers, metadata.ResponseBroker{NodeID: int32(id), Host: host, Port: int32(n)})
	}
	for _, name := range req.TopicNames {
		t := metadata.ResponseTopic{Name: name, ErrorCode: int16(f.unknown[name])}
		for i := range max(1, f.parts[name]) {
			p := metadata.ResponsePartition{PartitionIndex: int32(i), LeaderID: f.leader[name]}
			if p.LeaderID < 0 {
				p.ErrorCode = int16(kafkago.LeaderNotAvailable)
			}
			if t.ErrorCode == 0 {
				t.Partitions = append(t.Partitions, p)
			}
		}
		res.Topics = append(res.Topics, t)
	}
	return res
}
