package aws

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// admin makes queues and topics on moto, and reads queues.
type admin struct {
	sqs *sqs.Client
	sns *sns.Client
}

// newAdmin uses the connections of a sink, which ends them.
func newAdmin(t testing.TB, url string) *admin {
	t.Helper()
	s := newSink("admin", trouble{prefix: "RELAY_SQS", said: func(s string) string { return s }}, 4, patience, 0)
	cfg, err := s.load("eu-west-1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	cfg.BaseEndpoint = &url
	return &admin{sqs: sqs.NewFromConfig(cfg), sns: sns.NewFromConfig(cfg)}
}

func (a *admin) queue(t testing.TB, name string) (url string) {
	t.Helper()
	out, err := a.sqs.CreateQueue(soon(t), &sqs.CreateQueueInput{QueueName: &name, Attributes: map[string]string{"FifoQueue": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	return *out.QueueUrl
}

// drain takes all messages out of a queue, in their order.
func (a *admin) drain(t testing.TB, url string) (all []types.Message) {
	t.Helper()
	for {
		out, err := a.sqs.ReceiveMessage(soon(t), &sqs.ReceiveMessageInput{
			QueueUrl: &url, MaxNumberOfMessages: 10, MessageAttributeNames: []string{"All"}, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Messages) == 0 {
			return all
		}
		for _, m := range out.Messages {
			all = append(all, m)
			if _, err := a.sqs.DeleteMessage(soon(t), &sqs.DeleteMessageInput{QueueUrl: &url, ReceiptHandle: m.ReceiptHandle}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// manyHeaders are more than a message can have attributes, and some that none can be.
var manyHeaders = []relay.Header{
	{Key: "event_id", Value: "x"},
	{Key: "ünïcödé", Value: "Überweisung 注文 ✓"},
	{Key: "empty", Value: ""},
	{Key: "quoted", Value: "a \"b\" \\ \n\t\x01 😀"},
	{Key: "text", Value: "Grüße\n"},
	{Key: "a.b", Value: "1"},
	{Key: ".a", Value: "2"},
	{Key: "aws.x", Value: "3"},
	{Key: "relay-headers", Value: "4"},
	{Key: "n1", Value: "5"},
	{Key: "n2", Value: "6"},
	{Key: "n3", Value: "7"},
	{Key: "n4", Value: "8"},
	{Key: "n5", Value: "9"},
	{Key: "n6", Value: "10"},
	{Key: "n7", Value: "11"},
}

// headersOf puts a message's headers together again.
func headersOf(t testing.TB, attributes map[string]string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	if text, ok := attributes[headersAttribute]; ok {
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			t.Error(err)
		}
	}
	for name, value := range attributes {
		if name != headersAttribute && name != bodyAttribute {
			all[name] = value
		}
	}
	return all
}

func bodyOf(t testing.TB, text string, attributes map[string]string) string {
	t.Helper()
	if attributes[bodyAttribute] != "base64" {
		return text
	}
	body, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "="))
	if err != nil {
		t.Error(err)
	}
	return string(body)
}

// records are of every shape, each of a key of its own, but for the last two.
func records(topic string) []*relay.Record {
	var recs []*relay.Record
	for i, body := range []string{`{"name": "Jürgen 注文"}`, "", "\xff\x00\n\x80", "bell \a", "lines\r\n\t", strings.Repeat("x", 200_000), "a", "b"} {
		rec := sinktest.NewRecord(topic, []string{"k", "", "Grüße", strings.Repeat("k", 129), strings.Repeat("k", 128), "with space", "last", "last"}[i], i, 0)
		rec.Value = []byte(body)
		if i%2 == 0 {
			rec.Headers = manyHeaders
		}
		recs = append(recs, rec)
	}
	return recs
}

func checkRecords(t *testing.T, recs []*relay.Record, got []types.Message) {
	t.Helper()
	if len(got) != len(recs) {
		t.Errorf("%d messages, want %d", len(got), len(recs))
	}
	byID := make(map[string]types.Message)
	at := make(map[string]int)
	for i, m := range got {
		byID[m.Attributes["MessageDeduplicationId"]], at[m.Attributes["MessageDeduplicationId"]] = m, i
	}
	for i, rec := range recs {
		m, ok := byID[rec.EventID.String()]
		if !ok {
			t.Errorf("record %d did not arrive", i)
			continue
		}
		if n := len(m.MessageAttributes); n > mostAttributes { // moto takes more
			t.Errorf("record %d: %d attributes", i, n)
		}
		attributes := make(map[string]string)
		for name, value := range m.MessageAttributes {
			attributes[name] = aws.ToString(value.StringValue)
		}
		want := make(map[string]string)
		for _, h := range rec.Headers {
			want[h.Key] = h.Value
		}
		if headers := headersOf(t, attributes); !maps.Equal(headers, want) {
			t.Errorf("record %d: headers %q, want %q", i, headers, want)
		}
		if body := bodyOf(t, aws.ToString(m.Body), attributes); body != string(rec.Value) {
			t.Errorf("record %d: body %.60q, want %.60q", i, body, rec.Value)
		}
		if g := m.Attributes["MessageGroupId"]; g != group(rec.Key) {
			t.Errorf("record %d: group %q, want %q", i, g, group(rec.Key))
		}
	}
	if a, b := recs[len(recs)-2], recs[len(recs)-1]; at[a.EventID.String()] > at[b.EventID.String()] {
		t.Error("the order of a key is reversed")
	}
}

func TestSQS(t *testing.T) {
	url := motoURL(t)
	a := newAdmin(t, url)
	queue := a.queue(t, "sqs-order-created.fifo")
	cfg := DefaultSQSConfig()
	cfg.Queue, cfg.Region, cfg.Endpoint = "sqs-{topic}.fifo", "eu-west-1", url
	s := openSQS(t, cfg)
	if err := s.Check(soon(t)); err != nil {
		t.Errorf("check: %v", err)
	}
	recs := records("order.created")
	if _, err := sinktest.Offer(soon(t), s, recs); err != nil {
		t.Fatal(err)
	}
	// All again, and one that a person wants once more.
	again := *recs[0]
	again.Headers = append([]relay.Header{{Key: relay.ReplayedHeader, Value: "2026-11-30T22:00:00Z"}}, again.Headers...)
	if _, err := sinktest.Offer(soon(t), s, append(recs, &again)); err != nil {
		t.Fatal(err)
	}
	got := a.drain(t, queue)
	var first []types.Message
	replayed := 0
	for _, m := range got {
		if strings.HasPrefix(m.Attributes["MessageDeduplicationId"], again.EventID.String()+".") {
			replayed++
		} else {
			first = append(first, m)
		}
	}
	if replayed != 1 {
		t.Errorf("the replay came %d times, want once", replayed)
	}
	checkRecords(t, recs, first)

	// A queue that is not there holds up its own events, and is found when it is made.
	missing := []*relay.Record{sinktest.NewRecord("nobody", "m", 0, 0), sinktest.NewRecord("order.created", "m", 1, 0), sinktest.NewRecord("order.created", "n", 0, 0)}
	errs := outcomes(t, 3, s.Publish(soon(t), missing))
	if r, ok := relay.Refused(errs[0]); !ok || r.Reason != relay.ReasonUnknownTopic || !strings.Contains(errs[0].Error(), "sqs-nobody.fifo does not exist") || !errors.Is(errs[1], relay.ErrBehind) || errs[2] != nil {
		t.Errorf("%v", errs)
	}
	problems, err := s.CheckRoutes(soon(t), []relay.Route{{EventType: "order.created", Topic: "order.created"}, {EventType: "x", Topic: "nobody"}, {EventType: "y", Topic: strings.Repeat("y", 80)}})
	if err != nil || len(problems) != 2 || problems[0].Route.Topic != "nobody" || !strings.Contains(problems[0].Fix, "RELAY_SQS_QUEUE") {
		t.Errorf("routes: %+v, %v", problems, err)
	}
	a.queue(t, "sqs-nobody.fifo")
	if err := s.Publish(soon(t), missing[:2]); err != nil {
		t.Errorf("after the queue was made: %v", err)
	}
	// By URL, and one that is gone.
	cfg.Queue = queue
	direct := openSQS(t, cfg)
	if err := errors.Join(direct.Check(soon(t)), direct.Publish(soon(t), sinktest.Records("any", "u", 0, 2))); err != nil {
		t.Errorf("by URL: %v", err)
	}
	if _, err := a.sqs.DeleteQueue(context.WithoutCancel(soon(t)), &sqs.DeleteQueueInput{QueueUrl: &queue}); err != nil {
		t.Fatal(err)
	}
	for name, sink := range map[string]*Sink{"by URL": direct, "by name": s} {
		err := outcomes(t, 1, sink.Publish(soon(t), sinktest.Records("order.created", "v", 0, 1)))[0]
		if r, ok := relay.Refused(err); !ok || r.Reason != relay.ReasonUnknownTopic {
			t.Errorf("%s, deleted: %v, want it refused as unknown_topic", name, err)
		}
	}
	if err := direct.Check(soon(t)); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("check of a queue that is gone: %v", err)
	}
}

// A topic's messages reach a queue that is subscribed, in order, with attributes and group.
func TestSNS(t *testing.T) {
	url := motoURL(t)
	a := newAdmin(t, url)
	queue := a.queue(t, "from-sns.fifo")
	topic, err := a.sns.CreateTopic(soon(t), &sns.CreateTopicInput{Name: aws.String("sns-order-created.fifo"), Attributes: map[string]string{"FifoTopic": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.sns.Subscribe(soon(t), &sns.SubscribeInput{
		TopicArn: topic.TopicArn, Protocol: aws.String("sqs"), Endpoint: aws.String("arn:aws:sqs:eu-west-1:123456789012:from-sns.fifo"), Attributes: map[string]string{"RawMessageDelivery": "true"},
	}); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultSNSConfig()
	cfg.Topic, cfg.Endpoint = "arn:aws:sns:eu-west-1:123456789012:sns-{topic}.fifo", url
	s, err := NewSNS(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Check(soon(t)); err != nil {
		t.Errorf("check: %v", err)
	}
	recs := records("order.created")
	var more [][]*relay.Record
	for n := range 12 { // more than one request
		more = append(more, sinktest.Records("order.created", fmt.Sprint("key-", n), 0, 3))
	}
	if _, err := sinktest.Offer(soon(t), s, append(recs, sinktest.Interleave(more...)...)); err != nil {
		t.Fatal(err)
	}
	var own []types.Message
	var others []sinktest.Delivered
	for _, m := range a.drain(t, queue) {
		if strings.HasPrefix(m.Attributes["MessageGroupId"], "key-") {
			others = append(others, sinktest.Delivered{Value: []byte(*m.Body)})
		} else {
			own = append(own, m)
		}
	}
	checkRecords(t, recs, own)
	want := make(map[string]int)
	for n := range 12 {
		want[fmt.Sprint("key-", n)] = 3
	}
	sinktest.CheckOrder(t, others, want, false)

	missing := sinktest.Records("nobody", "m", 0, 2)
	errs := outcomes(t, 2, s.Publish(soon(t), missing))
	if r, ok := relay.Refused(errs[0]); !ok || r.Reason != relay.ReasonUnknownTopic || !errors.Is(errs[1], relay.ErrBehind) {
		t.Errorf("a topic that is not there: %v", errs)
	}
	problems, err := s.CheckRoutes(soon(t), []relay.Route{{EventType: "order.created", Topic: "order.created"}, {EventType: "x", Topic: "nobody"}})
	if err != nil || len(problems) != 1 || problems[0].Route.Topic != "nobody" || !strings.Contains(problems[0].Fix, "RELAY_SNS_TOPIC_ARN") {
		t.Errorf("routes: %+v, %v", problems, err)
	}
	large := sinktest.NewRecord("order.created", "l", 0, 300_000)
	if r, ok := relay.Refused(outcomes(t, 1, s.Publish(soon(t), []*relay.Record{large}))[0]); !ok || r.Reason != relay.ReasonTooLarge || r.Limit != 256<<10 {
		t.Errorf("300 kB: %v", r)
	}
}

// outcomes are the errors of a batch, record by record.
func outcomes(t testing.TB, n int, err error) []error {
	t.Helper()
	if err == nil {
		return make([]error, n)
	}
	var be *relay.BatchError
	if !errors.As(err, &be) || len(be.Errs) != n {
		t.Fatalf("got %v, want a BatchError with %d entries", err, n)
	}
	return be.Errs
}
