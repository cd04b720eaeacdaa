package aws

import (
	"context"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sns/types"
	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// NewSNS makes a sink for topics. It asks AWS nothing until it is first needed.
func NewSNS(cfg SNSConfig, _ hclog.Logger) (*Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	t := trouble{system: "aws_sns", prefix: "RELAY_SNS", template: cfg.Topic, templated: strings.Contains(cfg.Topic, topicField), said: cfg.Said}
	s := newSink(cfg.Called("sns"), t, cfg.Concurrency, cfg.Timeout, cfg.slice)
	sdk, err := s.load(cfg.region())
	if err != nil {
		return nil, err
	}
	client := sns.NewFromConfig(sdk, func(o *sns.Options) {
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
	})
	s.service = &topics{cfg: cfg, client: client, trouble: &s.trouble}
	return s, nil
}

// topics is the service SNS.
type topics struct {
	cfg     SNSConfig
	client  *sns.Client
	trouble *trouble
}

// most is SNS's limit of a message and of a batch.
func (s *topics) most() int { return 256 << 10 }

func (s *topics) place(_ context.Context, topic string) (string, error) {
	arn, err := s.cfg.arn(topic)
	if err != nil {
		return "", relay.Refuse(relay.ReasonUnknownTopic, err)
	}
	return arn, nil
}

func (s *topics) forget(string) {}

func (s *topics) look(ctx context.Context, place string) error {
	if _, err := s.client.GetTopicAttributes(ctx, &sns.GetTopicAttributesInput{TopicArn: &place}); err != nil {
		return s.trouble.outcome(place, causeOf(ctx, err))
	}
	return nil
}

func (s *topics) send(ctx context.Context, place string, entries []*entry) (map[int]error, error) {
	in := &sns.PublishBatchInput{TopicArn: &place}
	for n, e := range entries {
		out := types.PublishBatchRequestEntry{
			Id: aws.String(strconv.Itoa(n)), Message: &e.body, MessageGroupId: &e.group, MessageDeduplicationId: &e.dedup,
			MessageAttributes: make(map[string]types.MessageAttributeValue, len(e.attributes)),
		}
		for name, value := range e.attributes {
			out.MessageAttributes[name] = types.MessageAttributeValue{DataType: aws.String(stringType), StringValue: aws.String(value)}
		}
		in.PublishBatchRequestEntries = append(in.PublishBatchRequestEntries, out)
	}
	out, err := s.client.PublishBatch(ctx, in)
	if err != nil {
		return nil, err
	}
	taken := newTaken(len(entries))
	for i := range out.Successful {
		taken.acknowledge(out.Successful[i].Id)
	}
	for i := range out.Failed {
		f := &out.Failed[i]
		taken.fail(f.Id, s.trouble.entryOutcome(place, aws.ToString(f.Code), f.SenderFault))
	}
	return taken.failed, nil
}
