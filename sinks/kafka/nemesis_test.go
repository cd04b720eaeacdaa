package kafka

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/produce"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// producerState is Kafka's rule for batches with a producer id, for one partition:
// ProducerStateManager and ProducerAppendInfo, in short.
type producerState struct {
	id     producerID
	next   int32
	recent []batchSeen // the last five
}

// admit is what a broker would do: append, take as a copy, or refuse with a code.
func (s *producerState) admit(b batchSeen) (code kafkago.Error, known *batchSeen) {
	switch {
	case s.id.id == b.id.id && b.id.epoch < s.id.epoch:
		return kafkago.InvalidProducerEpoch, nil
	case s.id.id == b.id.id && b.id.epoch > s.id.epoch && b.seq != 0:
		return kafkago.OutOfOrderSequenceNumber, nil
	case s.id == b.id:
		for i := range s.recent {
			if r := &s.recent[i]; r.seq == b.seq && len(r.values) == len(b.values) {
				return 0, r
			}
		}
		if b.seq != s.next {
			return kafkago.OutOfOrderSequenceNumber, nil
		}
	}
	return 0, nil
}

func (s *producerState) append(b batchSeen) {
	if s.id != b.id {
		*s = producerState{id: b.id}
	}
	s.next = nextSequence(b.seq, len(b.values))
	s.recent = append(s.recent, b)
	s.recent = s.recent[max(0, len(s.recent)-5):]
}

// Lanes publish to a cluster that keeps Kafka's rules and otherwise does its worst: errors before
// and after appending, connections that break before and after, leaders that move, records that are
// refused. In the end each key must be there in order, without a gap, and only the culprits must be
// refused. Odd seeds go without producer ids, so that order depends on the sink alone.
func TestNemesis(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { nemesis(t, seed) })
	}
}

func nemesis(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1)) // used under the fake's mutex only
	f := newFake(t, 3)
	topics := []string{"t0", "t1"}
	states := map[string]*producerState{}
	calm, troubles := false, 0
	f.set(func() {
		for _, topic := range topics {
			f.parts[topic] = 2
		}
		trouble := func(percent int) bool {
			hit := !calm && rnd.IntN(100) < percent
			if hit {
				troubles++
			}
			return hit
		}
		code := func(c kafkago.Error) produce.ResponsePartition { return produce.ResponsePartition{ErrorCode: int16(c)} }
		f.produce = func(b batchSeen) produce.ResponsePartition {
			part := fmt.Sprintf("%s/%d", b.topic, b.partition)
			s := states[part]
			if s == nil {
				s = &producerState{id: noProducer}
				states[part] = s
			}
			switch {
			case trouble(2):
				f.leader[b.topic] = int32(rnd.IntN(3))
			case trouble(2):
				return code(hangUp)
			case trouble(3):
				return code([]kafkago.Error{kafkago.NotEnoughReplicas, kafkago.KafkaStorageError, kafkago.Unknown}[rnd.IntN(3)])
			}
			if b.broker != f.leader[b.topic] {
				return code(kafkago.NotLeaderForPartition)
			}
			if len(b.values) > 30 && trouble(20) {
				return code(kafkago.MessageSizeTooLarge)
			}
			if i := slices.IndexFunc(b.values, func(v string) bool { return strings.Contains(v, "culprit") }); i >= 0 {
				r := code(kafkago.InvalidRecord)
				if rnd.IntN(2) == 0 {
					r.RecordErrors = []produce.ResponseError{{BatchIndex: int32(i)}}
				}
				return r
			}
			c, known := s.admit(b)
			if b.id == noProducer {
				c, known = 0, nil
			}
			switch {
			case c != 0:
				return code(c)
			case known != nil:
				if !slices.Equal(known.values, b.values) {
					t.Errorf("%s: producer %v sequence %d was %d other records: they would be lost", part, b.id, b.seq, len(known.values))
				}
				return produce.ResponsePartition{BaseOffset: isCopy}
			}
			s.append(b)
			return produce.ResponsePartition{}
		}
		f.after = func(batchSeen) produce.ResponsePartition {
			switch {
			case trouble(2):
				return code(hangUp)
			case trouble(2):
				return code(kafkago.RequestTimedOut)
			}
			return produce.ResponsePartition{}
		}
	})

	s := newSink(t, f.addr(), func(c *Config) { c.BatchBytes, c.Idempotence = 4000, seed%2 == 0 })
	ctx := testContext(t)
	var mu sync.Mutex
	want := map[string]map[string]int{"t0": {}, "t1": {}} // guarded by mu
	lanes(6, func(lane int) {
		rnd := rand.New(rand.NewPCG(seed, uint64(lane)+10))
		seqs := map[string]int{}
		for range 40 {
			var batch []*relay.Record
			culprits := 0
			for range 1 + rnd.IntN(60) {
				topic := topics[rnd.IntN(2)]
				key := fmt.Sprintf("%d-%d", lane, rnd.IntN(3))
				rec := sinktest.NewRecord(topic, key, seqs[topic+key], rnd.IntN(60))
				if rnd.IntN(100) == 0 {
					rec.Value = []byte(`{"culprit": 1}`)
					culprits++
				} else {
					seqs[topic+key]++
				}
				batch = append(batch, rec)
			}
			for len(batch) > 0 && ctx.Err() == nil {
				again, refused := sinktest.Failed(batch, s.Publish(ctx, batch))
				for _, rec := range refused {
					if culprits--; !strings.Contains(string(rec.Value), "culprit") {
						t.Errorf("lane %d: refused: %s", lane, rec.Value)
					}
				}
				batch = again
			}
			if len(batch) > 0 || culprits != 0 {
				t.Errorf("lane %d: %d records left, %d culprits not refused", lane, len(batch), culprits)
				return
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for _, topic := range topics {
			for i := range 3 {
				key := fmt.Sprintf("%d-%d", lane, i)
				if n := seqs[topic+key]; n > 0 {
					want[topic][key] = n
				}
			}
		}
	})
	f.set(func() { calm = true })
	if troubles < 20 {
		t.Errorf("%d troubles, want at least 20", troubles)
	}
	for _, topic := range topics {
		var got []sinktest.Delivered
		for _, v := range f.appended(topic) {
			got = append(got, sinktest.Delivered{Value: []byte(v)})
		}
		sinktest.CheckOrder(t, got, want[topic], true)
	}
}
