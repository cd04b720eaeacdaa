//go:build !noaws

package main

import (
	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/sinks/aws"
)

// awsKinds are the sinks for Amazon SQS and SNS.
var awsKinds = func() []sinkKind {
	queues := kind("sqs", aws.DefaultSQSConfig, aws.NewSQS)
	queues.variable = "RELAY_SQS_QUEUE"
	queues.address = func(config any) string { return address.Show(config.(*aws.SQSConfig).Queue) }
	topics := kind("sns", aws.DefaultSNSConfig, aws.NewSNS)
	topics.variable = "RELAY_SNS_TOPIC_ARN"
	topics.address = func(config any) string { return config.(*aws.SNSConfig).Topic }
	return []sinkKind{queues, topics}
}()
