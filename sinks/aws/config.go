package aws

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/relay"
)

// SQSConfig is which queues events go to, and how.
type SQSConfig struct {
	relay.Named

	// Queue is the queue's name, or its URL (for a queue of another account). {topic} in it becomes
	// the event's topic (RELAY_TOPIC), with a hyphen for each character that no queue's name has. It
	// must be a FIFO queue, whose name ends in .fifo. No queue is made here.
	//
	// Default "saga-events.fifo". RELAY_SQS_QUEUE.
	Queue string `env:"RELAY_SQS_QUEUE" secret:"address"`

	// Region is where the queues are.
	//
	// Default: AWS_REGION, or what the SDK's configuration files have. RELAY_SQS_REGION.
	Region string `env:"RELAY_SQS_REGION"`

	// Endpoint is the URL of a server that speaks SQS's protocol, in place of AWS's own: an
	// interface endpoint of a VPC, or a local server for tests.
	//
	// Default: AWS's. RELAY_SQS_ENDPOINT.
	Endpoint string `env:"RELAY_SQS_ENDPOINT" secret:"address"`

	// Concurrency is how many requests are under way at most, of all lanes together. A request has
	// up to ten messages, of ten different keys.
	//
	// Default 16. RELAY_SQS_CONCURRENCY.
	Concurrency int `env:"RELAY_SQS_CONCURRENCY"`

	// Timeout is how long one request may take. Then its messages are offered again; SQS drops what
	// it has already. Keep it below RELAY_SINK_ISOLATION.
	//
	// Default 10s. RELAY_SQS_TIMEOUT.
	Timeout time.Duration `env:"RELAY_SQS_TIMEOUT"`

	slice time.Duration // tests have another; 0 is the default
}

// SNSConfig is which topics events go to, and how.
type SNSConfig struct {
	relay.Named

	// Topic is the topic's ARN. {topic} in its name becomes the event's topic (RELAY_TOPIC), with a
	// hyphen for each character that no name has. It must be a FIFO topic, whose name ends in .fifo.
	// No topic is made here.
	//
	// No default. RELAY_SNS_TOPIC_ARN.
	Topic string `env:"RELAY_SNS_TOPIC_ARN"`

	// Region is where the topics are.
	//
	// Default: that of RELAY_SNS_TOPIC_ARN. RELAY_SNS_REGION.
	Region string `env:"RELAY_SNS_REGION"`

	// Endpoint is the URL of a server that speaks SNS's protocol, in place of AWS's own: an
	// interface endpoint of a VPC, or a local server for tests.
	//
	// Default: AWS's. RELAY_SNS_ENDPOINT.
	Endpoint string `env:"RELAY_SNS_ENDPOINT" secret:"address"`

	// Concurrency is how many requests are under way at most, of all lanes together. A request has
	// up to ten messages, of ten different keys.
	//
	// Default 16. RELAY_SNS_CONCURRENCY.
	Concurrency int `env:"RELAY_SNS_CONCURRENCY"`

	// Timeout is how long one request may take. Then its messages are offered again; SNS drops what
	// it has already. Keep it below RELAY_SINK_ISOLATION.
	//
	// Default 10s. RELAY_SNS_TIMEOUT.
	Timeout time.Duration `env:"RELAY_SNS_TIMEOUT"`

	slice time.Duration // tests have another; 0 is the default
}

// DefaultSQSConfig returns the defaults.
func DefaultSQSConfig() SQSConfig {
	return SQSConfig{Queue: "saga-events" + fifo, Concurrency: 16, Timeout: 10 * time.Second}
}

// DefaultSNSConfig returns the defaults. Topic must be set.
func DefaultSNSConfig() SNSConfig {
	return SNSConfig{Concurrency: 16, Timeout: 10 * time.Second}
}

const (
	// fifo ends the name of every FIFO queue and topic.
	fifo = ".fifo"
	// topicField is what names may have for the event's topic.
	topicField = "{topic}"

	mostConcurrency = 1000
)

var (
	regionForm = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)
	arnForm    = regexp.MustCompile(`^arn:aws[a-z-]*:sns:([a-z0-9-]+):\d{12}:[A-Za-z0-9_-]+\.fifo$`)
	queueForm  = regexp.MustCompile(`^[A-Za-z0-9_-]{1,75}\.fifo$`)
)

// Validate reports every problem at once, by the name of its variable.
func (c SQSConfig) Validate() error {
	errs := common("RELAY_SQS", c.Region, c.Endpoint, c.Concurrency, c.Timeout)
	name := strings.ReplaceAll(c.Queue, topicField, "topic")
	if isURL(name) {
		if err := address.HTTP(name); err != nil {
			errs = append(errs, fmt.Errorf("RELAY_SQS_QUEUE: %w", err))
		}
		name = name[strings.LastIndexByte(name, '/')+1:]
	}
	if !queueForm.MatchString(name) {
		errs = append(errs, errors.New("RELAY_SQS_QUEUE: want the name of a FIFO queue, or its URL: letters, digits, hyphens and underscores, at most 80 with .fifo at the end, and {topic}"))
	}
	return errors.Join(errs...)
}

// Validate reports every problem at once, by the name of its variable.
func (c SNSConfig) Validate() error {
	errs := common("RELAY_SNS", c.Region, c.Endpoint, c.Concurrency, c.Timeout)
	switch {
	case c.Topic == "":
		errs = append(errs, errors.New("RELAY_SNS_TOPIC_ARN: not set: want the ARN of a FIFO topic, such as arn:aws:sns:eu-west-1:123456789012:saga-events.fifo"))
	case !arnForm.MatchString(strings.ReplaceAll(c.Topic, topicField, "topic")), strings.Contains(c.Topic[:strings.LastIndexByte(c.Topic, ':')+1], topicField):
		errs = append(errs, errors.New("RELAY_SNS_TOPIC_ARN: want the ARN of a FIFO topic, such as arn:aws:sns:eu-west-1:123456789012:saga-events.fifo, with {topic} in the name only"))
	}
	return errors.Join(errs...)
}

// queue is the queue of a topic, a name or a URL, and an error where there can be none.
func (c *SQSConfig) queue(topic string) (string, error) {
	queue := named(c.Queue, topic)
	if name := queue[strings.LastIndexByte(queue, '/')+1:]; !queueForm.MatchString(name) {
		return "", fmt.Errorf("no queue can be called %.100s, of %d bytes: the topic is too long, or empty", name, len(name))
	}
	return queue, nil
}

// arn is the topic of SNS for an event's topic, and an error where there can be none.
func (c *SNSConfig) arn(topic string) (string, error) {
	arn := named(c.Topic, topic)
	if name := arn[strings.LastIndexByte(arn, ':')+1:]; len(name) > 256 || !arnForm.MatchString(arn) {
		return "", fmt.Errorf("no topic of SNS can be called %.100s, of %d bytes: the event's topic is too long, or empty", name, len(name))
	}
	return arn, nil
}

// CheckRoute reports a topic that no queue can be called after.
func (c *SQSConfig) CheckRoute(r relay.Route) error {
	_, err := c.queue(r.Topic)
	return err
}

// CheckRoute reports a topic that no topic of SNS can be called after.
func (c *SNSConfig) CheckRoute(r relay.Route) error {
	_, err := c.arn(r.Topic)
	return err
}

func common(prefix, region, endpoint string, concurrency int, timeout time.Duration) (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(prefix+format, args...)) }
	if region != "" && !regionForm.MatchString(region) {
		bad("_REGION=%s: want a name such as eu-west-1", address.Argument(region))
	}
	if endpoint != "" {
		if err := address.HTTP(endpoint); err != nil {
			bad("_ENDPOINT: %w", err)
		}
	}
	if concurrency < 1 || concurrency > mostConcurrency {
		bad("_CONCURRENCY=%d: want 1 to %d", concurrency, mostConcurrency)
	}
	if timeout < 10*time.Millisecond {
		bad("_TIMEOUT=%s: want at least 10ms", timeout)
	}
	return errs
}

func isURL(queue string) bool { return strings.Contains(queue, "://") }

// region is that of the ARN, unless another is set.
func (c *SNSConfig) region() string {
	if c.Region != "" {
		return c.Region
	}
	if m := arnForm.FindStringSubmatch(strings.ReplaceAll(c.Topic, topicField, "topic")); m != nil {
		return m[1]
	}
	return ""
}

// named puts a topic into a name.
func named(template, topic string) string {
	if !strings.Contains(template, topicField) {
		return template
	}
	legal := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-' {
			return r
		}
		return '-'
	}, topic)
	return strings.ReplaceAll(template, topicField, legal)
}
