package aws

import (
	"context"
	"strconv"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// NewSQS makes a sink for queues. It asks AWS nothing until it is first needed.
func NewSQS(cfg SQSConfig, _ hclog.Logger) (*Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	t := trouble{system: "aws_sqs", prefix: "RELAY_SQS", template: cfg.Queue, templated: strings.Contains(cfg.Queue, topicField), said: cfg.Said}
	s := newSink(cfg.Called("sqs"), t, cfg.Concurrency, cfg.Timeout, cfg.slice)
	sdk, err := s.load(cfg.Region)
	if err != nil {
		return nil, err
	}
	client := sqs.NewFromConfig(sdk, func(o *sqs.Options) {
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
	})
	s.service = &queues{cfg: cfg, client: client, trouble: &s.trouble}
	return s, nil
}

// queues is the service SQS.
type queues struct {
	cfg     SQSConfig
	client  *sqs.Client
	trouble *trouble

	mu   sync.Mutex
	urls map[string]string // guarded by mu; of each name
}

// most is SQS's limit of a message and of a batch (since August 2025; 256 KiB before).
func (q *queues) most() int { return 1 << 20 }

func (q *queues) place(ctx context.Context, topic string) (string, error) {
	name, err := q.cfg.queue(topic)
	if err != nil {
		return "", relay.Refuse(relay.ReasonUnknownTopic, err)
	}
	if isURL(name) {
		return name, nil
	}
	q.mu.Lock()
	url := q.urls[name]
	q.mu.Unlock()
	if url != "" {
		return url, nil
	}
	out, err := q.client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	if err != nil {
		return "", q.trouble.outcome("queue "+name, causeOf(ctx, err))
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.urls == nil {
		q.urls = make(map[string]string)
	}
	q.urls[name] = aws.ToString(out.QueueUrl)
	return q.urls[name], nil
}

func (q *queues) forget(place string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, url := range q.urls {
		if url == place {
			delete(q.urls, name)
		}
	}
}

func (q *queues) look(ctx context.Context, place string) error {
	_, err := q.client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &place, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameFifoQueue}})
	if err != nil {
		q.forget(place)
		return q.trouble.outcome(place, causeOf(ctx, err))
	}
	return nil
}

func (q *queues) send(ctx context.Context, place string, entries []*entry) (map[int]error, error) {
	in := &sqs.SendMessageBatchInput{QueueUrl: &place}
	for n, e := range entries {
		out := types.SendMessageBatchRequestEntry{
			Id: aws.String(strconv.Itoa(n)), MessageBody: &e.body, MessageGroupId: &e.group, MessageDeduplicationId: &e.dedup,
			MessageAttributes: make(map[string]types.MessageAttributeValue, len(e.attributes)),
		}
		for name, value := range e.attributes {
			out.MessageAttributes[name] = types.MessageAttributeValue{DataType: aws.String(stringType), StringValue: aws.String(value)}
		}
		in.Entries = append(in.Entries, out)
	}
	out, err := q.client.SendMessageBatch(ctx, in)
	if err != nil {
		return nil, err
	}
	taken := newTaken(len(entries))
	for i := range out.Successful {
		taken.acknowledge(out.Successful[i].Id)
	}
	for i := range out.Failed {
		f := &out.Failed[i]
		taken.fail(f.Id, q.trouble.entryOutcome(place, aws.ToString(f.Code), f.SenderFault))
	}
	return taken.failed, nil
}
