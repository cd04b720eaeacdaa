package kafka

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// values makes records for one key with the values a0, a1, …
func values(topic, key string, n int) []*relay.Record {
	recs := make([]*relay.Record, n)
	for i := range recs {
		recs[i] = sinktest.NewRecord(topic, key, i, 0)
		recs[i].Value = fmt.Appendf(nil, "%s%d", key, i)
	}
	return recs
}

// outcome is what Publish returned, record by record: ok, again, behind or the reason of the
// refusal.
func outcome(batch []*relay.Record, err error) []string {
	out := make([]string, len(batch))
	var be *relay.BatchError
	for i := range batch {
		switch {
		case err == nil:
			out[i] = "ok"
		case !errors.As(err, &be):
			out[i] = "again"
		case be.Errs[i] == nil:
			out[i] = "ok"
		default:
			out[i] = "again"
			if r, ok := relay.Refused(be.Errs[i]); ok {
				out[i] = string(r.Reason)
			} else if errors.Is(be.Errs[i], relay.ErrBehind) {
				out[i] = "behind"
			}
		}
	}
	return out
}

func repeat(s string, n int) []string { return slices.Repeat([]string{s}, n) }

// What a broker's answer means for the records. Each batch has 5 records of one key; the code comes
// for the first batch or for every batch with the culprit.
func TestAnswers(t *testing.T) {
	const culprit = "a2"
	just := func(code kafkago.Error) func(int, batchSeen) produce.ResponsePartition {
		return func(n int, _ batchSeen) produce.ResponsePartition {
			if n > 0 {
				code = 0
			}
			return produce.ResponsePartition{ErrorCode: int16(code)}
		}
	}
	always := func(code kafkago.Error) func(int, batchSeen) produce.ResponsePartition {
		return func(int, batchSeen) produce.ResponsePartition {
			return produce.ResponsePartition{ErrorCode: int16(code), ErrorMessage: "as the broker says"}
		}
	}
	because := func(code kafkago.Error, named bool) func(int, batchSeen) produce.ResponsePartition {
		return func(_ int, b batchSeen) produce.ResponsePartition {
			i := slices.Index(b.values, culprit)
			if i < 0 {
				return produce.ResponsePartition{}
			}
			r := produce.ResponsePartition{ErrorCode: int16(code)}
			if named {
				r.RecordErrors = []produce.ResponseError{{BatchIndex: int32(i), BatchIndexErrorMessage: "no"}}
			}
			return r
		}
	}
	one := func(fate string) []string { return []string{"ok", "ok", fate, "behind", "behind"} }
	first := func(fate string) []string { return append([]string{fate}, repeat("behind", 4)...) }
	all := []string{"a0", "a1", "a2", "a3", "a4"}
	others := []string{"a0", "a1"}
	for _, tc := range []struct {
		name   string
		answer func(int, batchSeen) produce.ResponsePartition
		want   []string
		log    []string
		sent   int // batches, at most
	}{
		{"taken", just(0), repeat("ok", 5), all, 1},
		{"too large", because(kafkago.MessageSizeTooLarge, false), one("too_large"), others, 7},
		{"record list too large", because(kafkago.RecordListTooLarge, false), one("too_large"), others, 7},
		{"invalid record, named", because(kafkago.InvalidRecord, true), one("rejected"), others, 5},
		{"invalid record, not named", because(kafkago.InvalidRecord, false), one("rejected"), others, 7},
		{"corrupt", because(kafkago.InvalidMessage, false), one("rejected"), others, 7},
		{"policy", because(kafkago.PolicyViolation, false), one("rejected"), others, 7},
		{"invalid topic", always(kafkago.InvalidTopic), first("unknown_topic"), nil, 1},
		{"not authorized", always(kafkago.TopicAuthorizationFailed), first("rejected"), nil, 1},
		{"leader moved", just(kafkago.NotLeaderForPartition), repeat("ok", 5), all, 2},
		{"leader does not settle", always(kafkago.NotLeaderForPartition), repeat("again", 5), nil, maxMoves + 1},
		{"leader elected", just(kafkago.LeaderNotAvailable), repeat("ok", 5), all, 2},
		{"topic not there yet", just(kafkago.UnknownTopicOrPartition), repeat("ok", 5), all, 2},
		{"disk", just(kafkago.KafkaStorageError), repeat("ok", 5), all, 2},
		{"not enough replicas", just(kafkago.NotEnoughReplicas), repeat("again", 5), nil, 1},
		{"not enough replicas after append", just(kafkago.NotEnoughReplicasAfterAppend), repeat("again", 5), nil, 1},
		{"replicas too slow", just(kafkago.RequestTimedOut), repeat("again", 5), nil, 1},
		{"clock", just(kafkago.InvalidTimestamp), repeat("again", 5), nil, 1},
		{"quota", just(kafkago.ThrottlingQuotaExceeded), repeat("again", 5), nil, 1},
		{"no such error", just(999), repeat("again", 5), nil, 1},
		{"server", just(kafkago.Unknown), repeat("again", 5), nil, 1},
		{"out of sequence", just(kafkago.OutOfOrderSequenceNumber), repeat("again", 5), nil, 1},
		{"producer not known", just(kafkago.UnknownProducerId), repeat("again", 5), nil, 1},
		{"copy that is none", just(kafkago.DuplicateSequenceNumber), repeat("again", 5), nil, 1},
		{"no producer id allowed", just(kafkago.ClusterAuthorizationFailed), repeat("ok", 5), all, 2},
		{"hangs up once", just(hangUp), repeat("ok", 5), all, 2},
		{"hangs up", always(hangUp), repeat("again", 5), nil, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t, 1)
			n := 0
			f.set(func() {
				f.produce = func(b batchSeen) produce.ResponsePartition {
					r := tc.answer(n, b)
					n++
					return r
				}
			})
			s := newSink(t, f.addr())
			batch := values("t", "a", 5)
			err := s.Publish(testContext(t), batch)
			if got := outcome(batch, err); !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v (%v)", got, tc.want, err)
			}
			if got := f.appended("t"); !slices.Equal(got, tc.log) {
				t.Errorf("appended %v, want %v", got, tc.log)
			}
			if got := len(f.produced); got > tc.sent {
				t.Errorf("%d batches sent, want at most %d", got, tc.sent)
			}
			// Whatever it was, the next Publish is as good as the first.
			f.set(func() { f.produce, f.log = nil, map[string][]string{} })
			if err := s.Publish(testContext(t), batch); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if got := f.appended("t"); !slices.Equal(got, all) {
				t.Errorf("afterwards appended %v, want %v", got, all)
			}
			checkSequences(t, f.produced)
		})
	}
}

// checkSequences fails when two different batches carry the same numbers: a broker would drop the
// second.
func checkSequences(t *testing.T, seen []batchSeen) {
	t.Helper()
	type number struct {
		partition string
		id        producerID
		seq       int32
	}
	first := map[number]string{}
	for _, b := range seen {
		if b.id == noProducer {
			continue
		}
		n := number{fmt.Sprintf("%s/%d", b.topic, b.partition), b.id, b.seq}
		values := strings.Join(b.values, " ")
		if before, ok := first[n]; ok && before != values && len(strings.Fields(before)) == len(b.values) {
			t.Errorf("%s: producer %v sequence %d used for %q and again for %q", n.partition, n.id, n.seq, before, values)
		}
		first[n] = values
	}
}

// A failure in one partition leaves the others alone, except for later records of the same key.
func TestFailureOfOneTopic(t *testing.T) {
	f := newFake(t, 1)
	f.set(func() {
		f.produce = func(b batchSeen) produce.ResponsePartition {
			if b.topic == "bad" {
				return produce.ResponsePartition{ErrorCode: int16(kafkago.NotEnoughReplicas)}
			}
			return produce.ResponsePartition{}
		}
	})
	s := newSink(t, f.addr())
	batch := slices.Concat(values("good", "a", 1), values("bad", "a", 2), values("good", "a", 1), values("good", "b", 2))
	err := s.Publish(testContext(t), batch)
	if got, want := outcome(batch, err), []string{"ok", "again", "again", "again", "ok", "ok"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A refused record stops its key, in every topic, and nothing else.
func TestRefusalOfOneTopic(t *testing.T) {
	f := newFake(t, 1)
	f.set(func() {
		f.unknown["secret"] = kafkago.TopicAuthorizationFailed
		f.unknown["invalid"] = kafkago.InvalidTopic
	})
	s := newSink(t, f.addr())
	batch := slices.Concat(values("secret", "a", 1), values("good", "a", 2), values("no/topic", "b", 1), values("invalid", "c", 1), values("good", "c", 1), values("good", "d", 1), values("secret", "d", 2), values("good", "d", 1))
	err := s.Publish(testContext(t), batch)
	if got, want := outcome(batch, err), []string{"rejected", "behind", "behind", "unknown_topic", "unknown_topic", "behind", "ok", "rejected", "behind", "behind"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := f.appended("good"); !slices.Equal(got, []string{"d0"}) {
		t.Errorf("appended %v, want d0 alone", got)
	}
	for _, part := range []string{"secret", "WRITE", `"no/topic"`, "RELAY_TOPIC"} {
		if !slices.ContainsFunc(err.(*relay.BatchError).Errs, func(err error) bool { return err != nil && strings.Contains(err.Error(), part) }) {
			t.Errorf("no error has %q", part)
		}
	}
}

// What only the broker finds. From then on, for a while, records of the same key for other topics
// wait for those to that topic. The first time they are offered again behind it.
func TestRefusalByBroker(t *testing.T) {
	f := newFake(t, 1)
	f.set(func() {
		f.produce = func(b batchSeen) produce.ResponsePartition {
			if b.topic == "strict" && slices.ContainsFunc(b.values, func(v string) bool { return v != "b0" }) {
				return produce.ResponsePartition{ErrorCode: int16(kafkago.InvalidRecord)}
			}
			return produce.ResponsePartition{}
		}
	})
	s := newSink(t, f.addr())
	warm := slices.Concat(values("strict", "b", 1), values("good", "b", 1))
	if err := s.Publish(testContext(t), warm); err != nil {
		t.Fatal(err)
	}
	batch := slices.Concat(values("strict", "a", 2), values("good", "a", 1), values("strict", "a", 1), values("strict", "b", 1), values("good", "b", 1), values("good", "c", 1))
	want := []string{"rejected", "behind", "behind", "behind", "ok", "ok", "ok"}
	for round := range 3 {
		before := len(f.appended("good"))
		if got := outcome(batch, s.Publish(testContext(t), batch)); !slices.Equal(got, want) {
			t.Errorf("round %d: got %v, want %v", round, got, want)
		}
		got := f.appended("good")[before:]
		slices.Sort(got)
		if round > 0 && !slices.Equal(got, []string{"b0", "c0"}) {
			t.Errorf("round %d: appended %v, want b0 and c0: what is behind a refused record is not sent", round, got)
		}
	}
	if got := f.appended("strict"); !slices.Equal(got, repeat("b0", 4)) {
		t.Errorf("appended %v, want b0 only", got)
	}
	// While a topic is awaited, a transient error delays the same key's records for other topics,
	// too.
	f.set(func() {
		f.produce = func(b batchSeen) produce.ResponsePartition {
			if b.topic == "strict" {
				return produce.ResponsePartition{ErrorCode: int16(kafkago.NotEnoughReplicas)}
			}
			return produce.ResponsePartition{}
		}
	})
	before := len(f.appended("good"))
	if got, want := outcome(warm, s.Publish(testContext(t), warm)), repeat("again", 2); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if sent := len(f.appended("good")) - before; sent > 0 {
		t.Errorf("%d records sent behind one that failed", sent)
	}
	now := time.Now()
	strict, _ := s.topics.live.Load("strict")
	if !strict.(*topic).refusedLately(now) || strict.(*topic).refusedLately(now.Add(awaitedFor)) {
		t.Error("awaited for another time than awaitedFor")
	}
}

// A topic that is not there is waited for once, while the other topics' records are sent; then it
// is refused, and the next time at once. When it is made it works.
func TestUnknownTopic(t *testing.T) {
	f := newFake(t, 1)
	f.set(func() { f.unknown["later"] = kafkago.UnknownTopicOrPartition })
	const wait = 300 * time.Millisecond
	s := newSink(t, f.addr(), func(c *Config) { c.TopicWait = wait })
	good, later := values("good", "a", 2), values("later", "b", 2)
	batch := []*relay.Record{later[0], good[0], later[1], good[1]}

	start := time.Now()
	result := make(chan error, 1)
	go func() { result <- s.Publish(testContext(t), batch) }()
	for len(f.appended("good")) < 2 {
		select {
		case err := <-result:
			t.Fatalf("the good topic's records were not sent before the wait was over: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	err := <-result
	if got := time.Since(start); got < wait {
		t.Errorf("refused after %s, want a wait of %s", got, wait)
	}
	if got, want := outcome(batch, err), []string{"unknown_topic", "ok", "behind", "ok"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if !strings.Contains(err.Error(), "later") || !strings.Contains(err.Error(), "auto.create.topics.enable") {
		t.Errorf("%q does not name the topic and what to do", err)
	}

	before := f.questions[protocol.Metadata]
	err = s.Publish(testContext(t), later)
	if got, want := outcome(later, err), []string{"unknown_topic", "behind"}; !slices.Equal(got, want) {
		t.Errorf("second time: got %v, want %v", got, want)
	}
	if got := f.questions[protocol.Metadata] - before; got != 1 {
		t.Errorf("second time: asked %d times, want once", got)
	}

	f.set(func() { delete(f.unknown, "later") })
	if err := s.Publish(testContext(t), later); err != nil {
		t.Errorf("after the topic was made: %v", err)
	}
}

// A topic that exists but has no leader is a transient error, whatever the wait.
func TestNoLeader(t *testing.T) {
	f := newFake(t, 1)
	f.set(func() { f.leader["t"] = -1 })
	s := newSink(t, f.addr(), func(c *Config) { c.TopicWait = 50 * time.Millisecond })
	batch := values("t", "a", 2)
	if got, want := outcome(batch, s.Publish(testContext(t), batch)), repeat("again", 2); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	f.set(func() { f.leader["t"] = 0 })
	if err := s.Publish(testContext(t), batch); err != nil {
		t.Errorf("with a leader: %v", err)
	}
	f.set(func() { // the leader goes away while the topic is known
		f.leader["t"] = -1
		f.produce = func(batchSeen) produce.ResponsePartition {
			return produce.ResponsePartition{ErrorCode: int16(kafkago.NotLeaderForPartition)}
		}
	})
	if got, want := outcome(batch, s.Publish(testContext(t), batch)), repeat("again", 2); !slices.Equal(got, want) {
		t.Errorf("leader gone: got %v, want %v", got, want)
	}
	f.set(func() { f.leader["t"], f.produce = 0, nil })
	if err := s.Publish(testContext(t), batch); err != nil {
		t.Errorf("with a leader again: %v", err)
	}
}

// When the leader moves to another broker, records follow it in the same Publish, and each record
// once.
func TestLeaderMoves(t *testing.T) {
	f := newFake(t, 3)
	f.set(func() {
		f.produce = func(b batchSeen) produce.ResponsePartition {
			if b.broker != f.leader[b.topic] {
				return produce.ResponsePartition{ErrorCode: int16(kafkago.NotLeaderForPartition)}
			}
			return produce.ResponsePartition{}
		}
	})
	s := newSink(t, f.addr())
	var want []string
	for _, leader := range []int32{0, 1, 2, 0} {
		f.set(func() { f.leader["t"] = leader })
		if err := s.Publish(testContext(t), values("t", fmt.Sprint("k", leader), 3)); err != nil {
			t.Fatalf("leader %d: %v", leader, err)
		}
		for i := range 3 {
			want = append(want, fmt.Sprintf("k%d%d", leader, i))
		}
	}
	if got := f.appended("t"); !slices.Equal(got, want) {
		t.Errorf("appended %v, want %v", got, want)
	}
}

// A leader that dies is found elsewhere: a connection that breaks makes the sink ask.
func TestLeaderDies(t *testing.T) {
	f := newFake(t, 2)
	f.set(func() { f.leader["t"] = 1 })
	s := newSink(t, f.addr())
	if err := s.Publish(testContext(t), values("t", "a", 1)); err != nil {
		t.Fatal(err)
	}
	f.set(func() {
		f.produce = func(b batchSeen) produce.ResponsePartition {
			if b.broker == 1 { // takes its last breath
				_ = f.lns[1].Close()
				f.leader["t"] = 0
				return produce.ResponsePartition{ErrorCode: hangUp}
			}
			return produce.ResponsePartition{}
		}
	})
	if err := s.Publish(testContext(t), values("t", "b", 3)); err != nil {
		t.Fatalf("leader died: %v", err)
	}
	if got, want := f.appended("t"), []string{"a0", "b0", "b1", "b2"}; !slices.Equal(got, want) {
		t.Errorf("appended %v, want %v", got, want)
	}
	last := f.produced[len(f.produced)-2:]
	if last[0].id != last[1].id || last[0].seq != last[1].seq {
		t.Errorf("sent as %v %d, then as %v %d: want the same, so that a broker takes it once", last[0].id, last[0].seq, last[1].id, last[1].seq)
	}
}

// Without permission for a producer id the sink goes on without.
func TestNoProducerID(t *testing.T) {
	for _, code := range []kafkago.Error{kafkago.ClusterAuthorizationFailed, kafkago.UnsupportedVersion} {
		f := newFake(t, 1)
		f.set(func() { f.noID = code })
		s := newSink(t, f.addr())
		if err := s.Publish(testContext(t), values("t", "a", 3)); err != nil {
			t.Errorf("%v: %v", code, err)
		}
		if b := f.produced[0]; b.id != noProducer || b.seq != -1 {
			t.Errorf("%v: producer %v sequence %d, want -1 everywhere", code, b.id, b.seq)
		}
	}
	f := newFake(t, 1)
	f.set(func() { f.noID = kafkago.GroupLoadInProgress })
	s := newSink(t, f.addr(), func(c *Config) { c.DialTimeout = 50 * time.Millisecond })
	batch := values("t", "a", 3)
	if got, want := outcome(batch, s.Publish(testContext(t), batch)), repeat("again", 3); !slices.Equal(got, want) {
		t.Errorf("still loading: got %v, want %v", got, want)
	}
	f.set(func() { f.noID = 0 })
	if err := s.Publish(testContext(t), batch); err != nil {
		t.Errorf("loaded: %v", err)
	}
}

// After a batch whose sequence number the broker does not take, everything starts over under a new
// id.
func TestNewProducerAfterMisplacement(t *testing.T) {
	f := newFake(t, 1)
	s := newSink(t, f.addr())
	if err := s.Publish(testContext(t), values("t", "a", 3)); err != nil {
		t.Fatal(err)
	}
	f.set(func() {
		f.produce = func(b batchSeen) produce.ResponsePartition {
			if b.id.id == 101 {
				return produce.ResponsePartition{ErrorCode: int16(kafkago.UnknownProducerId)}
			}
			return produce.ResponsePartition{}
		}
	})
	batch := values("t", "b", 3)
	for range 2 {
		if s.Publish(testContext(t), batch) == nil {
			break
		}
	}
	if last := f.produced[len(f.produced)-1]; last.id != (producerID{102, 0}) || last.seq != 0 {
		t.Errorf("producer %v sequence %d, want 102 at epoch 0 and sequence 0", last.id, last.seq)
	}
	if got, want := f.appended("t"), []string{"a0", "a1", "a2", "b0", "b1", "b2"}; !slices.Equal(got, want) {
		t.Errorf("appended %v, want %v", got, want)
	}
}

// The limit of a refused record is reported when the broker reports it, and left open when not.
func TestTooLargeLimit(t *testing.T) {
	for limit, want := range map[string]int64{"1234": 1234, "": 0} {
		f := newFake(t, 1)
		f.set(func() {
			f.limit = limit
			f.produce = func(batchSeen) produce.ResponsePartition {
				return produce.ResponsePartition{ErrorCode: int16(kafkago.MessageSizeTooLarge)}
			}
		})
		s := newSink(t, f.addr())
		batch := []*relay.Record{record("t", "a", 3000)}
		r, ok := relay.Refused(s.Publish(testContext(t), batch))
		if !ok || r.Reason != relay.ReasonTooLarge || r.Limit != want || r.Size != int64(recordSize(batch[0])) {
			t.Errorf("limit %q: got %+v, want size %d and limit %d", limit, r, recordSize(batch[0]), want)
		}
	}
}

func TestLegalTopic(t *testing.T) {
	for name, want := range map[string]bool{
		"OrderCreated": true, "a.b_c-9": true, strings.Repeat("x", 249): true, "...": true,
		"": false, ".": false, "..": false, "a b": false, "a/b": false, "ü": false, "a:b": false, "a\n": false, strings.Repeat("x", 250): false,
	} {
		if got := legalTopic(name); got != want {
			t.Errorf("legalTopic(%q) = %v, want %v", name, got, want)
		}
	}
}
