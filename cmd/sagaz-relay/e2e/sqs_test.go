package e2e

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/sagaz-relay/relay/internal/testbed/awstest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// A relay sends to a FIFO queue that is made only later: its events wait, and then come once, in the
// order of their keys.
func TestSQS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	starting, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	server, err := awstest.Start(starting)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	client := sqs.New(sqs.Options{Region: "eu-west-1", BaseEndpoint: &server.URL, Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "hush", "")})

	p := w.relay("sqs", settings{
		"BROKER_TYPE": "sqs", "RELAY_SQS_QUEUE": "{topic}.fifo", "RELAY_SQS_REGION": "eu-west-1", "RELAY_SQS_ENDPOINT": server.URL,
		"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_CA_BUNDLE": "",
		"INITIAL_RETRY_DELAY_SECONDS": "0.1", "MAX_RETRY_DELAY_SECONDS": "0.3",
	})
	p.waitStreaming()
	rows := w.randomKeys(newRand(t), 80, "order.placed")
	ids := w.insert(rows...)
	w.waitLedger(p, "sqs", len(rows))
	if refused := p.waitLog("event refused"); refused.text("error_type") != "unknown_topic" {
		t.Errorf("refused: %v", refused)
	}
	queue, err := client.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("order-placed.fifo"), Attributes: map[string]string{"FifoQueue": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	w.waitNonePending(p)
	p.stop()

	check := verify.New(verify.Options{}, "sqs")
	for i, id := range ids {
		check.Commit(verify.Event{ID: id, Key: rows[i].key})
	}
	for {
		out, err := client.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: queue.QueueUrl, MaxNumberOfMessages: 10, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"}})
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Messages) == 0 {
			break
		}
		for _, m := range out.Messages {
			var body struct {
				EventID     string `json:"event_id"`
				AggregateID string `json:"aggregate_id"`
			}
			if err := json.Unmarshal([]byte(*m.Body), &body); err != nil || body.EventID != m.Attributes["MessageDeduplicationId"] || body.AggregateID != m.Attributes["MessageGroupId"] {
				t.Errorf("body %s, attributes %v: %v", *m.Body, m.Attributes, err)
			}
			id, err := relay.ParseUUID(body.EventID)
			if err != nil {
				t.Fatal(err)
			}
			check.Deliver("sqs", verify.Event{ID: id, Key: body.AggregateID})
			if _, err := client.DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: queue.QueueUrl, ReceiptHandle: m.ReceiptHandle}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := check.Report().Err(); err != nil {
		t.Error(err)
	}
}
