package aws

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// No request has two messages of one key, or more than ten, or more bytes than it may; and they are
// no more than that needs.
func TestRequests(t *testing.T) {
	server := newStandIn(t)
	s := openSQS(t, server.config())
	var keys [][]*relay.Record
	for n := range 25 {
		keys = append(keys, sinktest.Records("events", fmt.Sprint("k", n), 0, 2))
	}
	for n := range 3 { // two of them fit into one request
		keys = append(keys, []*relay.Record{sinktest.NewRecord("events", fmt.Sprint("large", n), 0, 400_000)})
	}
	large := sinktest.NewRecord("events", "too large", 0, 1<<20)
	batch := append(sinktest.Interleave(keys...), large, sinktest.NewRecord("events", "too large", 1, 0))
	errs := outcomes(t, len(batch), s.Publish(soon(t), batch))
	if r, ok := relay.Refused(errs[len(errs)-2]); !ok || r.Reason != relay.ReasonTooLarge || r.Limit != 1<<20 || r.Size <= 1<<20 || !errors.Is(errs[len(errs)-1], relay.ErrBehind) {
		t.Errorf("too large: %v", errs[len(errs)-2:])
	}
	for i, err := range errs[:len(errs)-2] {
		if err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
	for n, request := range server.requests {
		groups, size := make(map[string]bool), 0
		for _, m := range request {
			if groups[m.Group] {
				t.Errorf("request %d has two messages of %s", n, m.Group)
			}
			groups[m.Group] = true
			size += len(m.Body)
		}
		if len(request) > 10 || size > 1<<20 {
			t.Errorf("request %d has %d messages, %d bytes", n, len(request), size)
		}
	}
	if n := len(server.requests); n != 3+1+3 { // 25 and two large ones, one large, 25
		t.Errorf("%d requests, want 7", n)
	}
}

// Entries of a request fail by themselves: each has its own outcome, what is behind it of its key is
// not sent, and the order of every key is kept when it is offered again.
func TestEntriesFail(t *testing.T) {
	for name, tc := range map[string]struct {
		fault  fault
		reason relay.Reason // empty: transient
	}{
		"sender":    {fault{"InvalidMessageContents", true}, relay.ReasonRejected},
		"receiver":  {fault{"InternalError", false}, ""},
		"throttled": {fault{"RequestThrottled", true}, ""},
		"throttle":  {fault{"Throttling", true}, ""},
		"denied":    {fault{"KMS.AccessDeniedException", true}, relay.ReasonUnroutable},
		"gone":      {fault{"AWS.SimpleQueueService.NonExistentQueue", true}, relay.ReasonUnknownTopic},
	} {
		t.Run(name, func(t *testing.T) {
			server := newStandIn(t)
			s := openSQS(t, server.config())
			server.fail = func(m stored) *fault {
				if m.Group == "bad" && strings.Contains(m.Body, `"seq":1`) {
					return &tc.fault
				}
				return nil
			}
			batch := sinktest.Interleave(sinktest.Records("events", "good", 0, 3), sinktest.Records("events", "bad", 0, 3))
			errs := outcomes(t, 6, s.Publish(soon(t), batch))
			r, refused := relay.Refused(errs[3])
			if errs[3] == nil || refused != (tc.reason != "") || refused && r.Reason != tc.reason || strings.Contains(errs[3].Error(), "hush") {
				t.Errorf("the record that failed: %v, want %q", errs[3], tc.reason)
			}
			if errs[5] == nil || errors.Is(errs[5], relay.ErrBehind) != refused {
				t.Errorf("the one behind it: %v", errs[5])
			}
			if err := errors.Join(errs[0], errs[1], errs[2], errs[4]); err != nil {
				t.Errorf("the others: %v", err)
			}
			server.mu.Lock()
			server.fail = nil
			server.mu.Unlock()
			if err := s.Publish(soon(t), []*relay.Record{batch[3], batch[5]}); err != nil {
				t.Fatal(err)
			}
			var got []sinktest.Delivered
			for _, m := range server.got() {
				got = append(got, sinktest.Delivered{Value: []byte(m.Body)})
			}
			sinktest.CheckOrder(t, got, map[string]int{"good": 3, "bad": 3}, false)
		})
	}
}

// A whole request fails. What may be one message's fault is looked for; the rest is everybody's.
func TestRequestsFail(t *testing.T) {
	for code, reason := range map[string]relay.Reason{
		"InvalidMessageContents": relay.ReasonRejected, "BatchRequestTooLong": relay.ReasonRejected, "InvalidParameterValue": relay.ReasonRejected,
		"QueueDoesNotExist": relay.ReasonUnknownTopic, "AccessDeniedException": relay.ReasonUnroutable,
		"InvalidClientTokenId": "", "ExpiredTokenException": "", "ThrottlingException": "", "ServiceUnavailable": "", "SomethingNew": "",
	} {
		t.Run(code, func(t *testing.T) {
			server := newStandIn(t)
			s := openSQS(t, server.config())
			server.whole = func(request []stored) (int, string) {
				for _, m := range request {
					if m.Group == "bad" {
						return 400, code
					}
				}
				return 0, ""
			}
			batch := []*relay.Record{sinktest.NewRecord("events", "a", 0, 0), sinktest.NewRecord("events", "bad", 0, 0), sinktest.NewRecord("events", "b", 0, 0)}
			errs := outcomes(t, 3, s.Publish(soon(t), batch))
			alone := reason == relay.ReasonRejected
			for i, err := range errs {
				r, refused := relay.Refused(err)
				switch {
				case alone && i != 1:
					if err != nil {
						t.Errorf("record %d: %v, want it acknowledged", i, err)
					}
				case err == nil || refused != (reason != "") || refused && r.Reason != reason:
					t.Errorf("record %d: %v, want %q", i, err, reason)
				case !strings.Contains(err.Error(), code) || strings.Contains(err.Error(), "hush"):
					t.Errorf("record %d: %v, want the code and nothing of AWS's text", i, err)
				}
			}
			var setup *relay.SetupError
			if login := strings.Contains(code, "Token"); login != errors.As(errs[1], &setup) {
				t.Errorf("%v: to be fixed by a person: %t, want %t", errs[1], !login, login)
			}
			if want := map[bool]int{true: 4, false: 1}[alone]; len(server.requests) != want {
				t.Errorf("%d requests, want %d: nothing is tried again here", len(server.requests), want)
			}
		})
	}
}

// The fence is asked right before the request goes out, when credentials are there and it is signed.
func TestFence(t *testing.T) {
	server := newStandIn(t)
	s := openSQS(t, server.config())
	if err := s.Publish(soon(t), sinktest.Records("events", "a", 0, 1)); err != nil {
		t.Fatal(err)
	}
	asked := 0
	ctx := relay.WithFence(soon(t), func() bool { asked++; return asked < 2 })
	err := outcomes(t, 1, s.Publish(ctx, sinktest.Records("events", "a", 1, 1)))[0]
	if !errors.Is(err, relay.ErrFence) || asked != 2 || len(server.requests) != 1 {
		t.Errorf("%v after %d questions, %d requests, want ErrFence after 2 and 1", err, asked, len(server.requests))
	}
}

// A batch that takes long comes back in part.
func TestLater(t *testing.T) {
	server := newStandIn(t)
	cfg := server.config()
	cfg.slice = time.Nanosecond
	s := openSQS(t, cfg)
	errs := outcomes(t, 4, s.Publish(soon(t), sinktest.Interleave(sinktest.Records("events", "a", 0, 3), sinktest.Records("events", "b", 0, 1))))
	if errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], relay.ErrLater) || !errors.Is(errs[3], relay.ErrLater) {
		t.Errorf("%v, want the first of each key acknowledged and the rest later", errs)
	}
}

// What is missing to reach AWS is said before anything is sent, or with what to do.
func TestNoRegionNoCredentials(t *testing.T) {
	cfg := DefaultSQSConfig()
	if _, err := NewSQS(cfg, nil); err == nil || !strings.Contains(err.Error(), "RELAY_SQS_REGION: not set, nor is AWS_REGION") {
		t.Errorf("without a region: %v", err)
	}
	server := newStandIn(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	err := openSQS(t, server.config()).Check(soon(t))
	var setup *relay.SetupError
	if !errors.As(err, &setup) || !strings.Contains(setup.Fix, "AWS_ACCESS_KEY_ID") {
		t.Errorf("without credentials: %v, want what to do", err)
	}
}

// Nobody listens, or the timeout passes: transient, with the address and the setting.
func TestUnreachable(t *testing.T) {
	cfg := DefaultSQSConfig()
	cfg.Region, cfg.Endpoint = "eu-west-1", "http://127.0.0.1:1"
	err := outcomes(t, 2, openSQS(t, cfg).Publish(soon(t), sinktest.Records("events", "a", 0, 2)))[0]
	var setup *relay.SetupError
	if !errors.As(err, &setup) || !strings.Contains(setup.Fix, "RELAY_SQS_ENDPOINT") || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("nobody listens: %v", err)
	}
	server := newStandIn(t)
	server.mu.Lock() // it never answers a batch
	cfg = server.config()
	cfg.Timeout = 200 * time.Millisecond
	s := openSQS(t, cfg)
	err = outcomes(t, 1, s.Publish(soon(t), sinktest.Records("events", "a", 0, 1)))[0]
	server.mu.Unlock()
	if err == nil || !strings.Contains(err.Error(), "no answer within 200ms (RELAY_SQS_TIMEOUT)") {
		t.Errorf("no answer: %v", err)
	}
}

func TestValidate(t *testing.T) {
	sqs := func(change func(*SQSConfig)) error {
		cfg := DefaultSQSConfig()
		change(&cfg)
		return cfg.Validate()
	}
	sns := func(change func(*SNSConfig)) error {
		cfg := DefaultSNSConfig()
		cfg.Topic = "arn:aws:sns:eu-west-1:123456789012:events.fifo"
		change(&cfg)
		return cfg.Validate()
	}
	for want, err := range map[string]error{
		"":                             errors.Join(sqs(func(*SQSConfig) {}), sns(func(*SNSConfig) {}), sqs(func(c *SQSConfig) { c.Queue = "https://sqs.eu-west-1.amazonaws.com/123456789012/{topic}.fifo" }), sns(func(c *SNSConfig) { c.Topic = "arn:aws-cn:sns:cn-north-1:123456789012:a-{topic}.fifo" })),
		"RELAY_SQS_QUEUE: want the":    sqs(func(c *SQSConfig) { c.Queue = "events" }),
		"RELAY_SQS_QUEUE: want no":     sqs(func(c *SQSConfig) { c.Queue = "https://u:hush@host/1/a.fifo" }),
		"RELAY_SQS_REGION=x y":         sqs(func(c *SQSConfig) { c.Region = "x y" }),
		"RELAY_SQS_ENDPOINT":           sqs(func(c *SQSConfig) { c.Endpoint = "localhost:4566" }),
		"RELAY_SQS_CONCURRENCY=0":      sqs(func(c *SQSConfig) { c.Concurrency = 0 }),
		"RELAY_SQS_TIMEOUT=1ms":        sqs(func(c *SQSConfig) { c.Timeout = time.Millisecond }),
		"RELAY_SNS_TOPIC_ARN: not set": DefaultSNSConfig().Validate(),
		"RELAY_SNS_TOPIC_ARN: want":    sns(func(c *SNSConfig) { c.Topic = "arn:aws:sns:{topic}:123456789012:events.fifo" }),
		"RELAY_SNS_CONCURRENCY=1001":   sns(func(c *SNSConfig) { c.Concurrency = 1001 }),
	} {
		switch {
		case want == "" && err != nil:
			t.Errorf("got %v, want none", err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush")):
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if region := (&SNSConfig{Topic: "arn:aws:sns:eu-west-1:123456789012:{topic}.fifo"}).region(); region != "eu-west-1" {
		t.Errorf("region %q", region)
	}
	if _, err := NewSNS(SNSConfig{}, hclog.NewNullLogger()); err == nil {
		t.Error("New takes it")
	}
}

// A rule's topic is looked at when the settings are read.
func TestCheckRoute(t *testing.T) {
	queues, topics := SQSConfig{Queue: "q-{topic}.fifo"}, SNSConfig{Topic: "arn:aws:sns:eu-west-1:123456789012:{topic}.fifo"}
	for topic, fine := range map[string]bool{"order.created": true, "注文": true, strings.Repeat("x", 300): false} {
		if err := queues.CheckRoute(relay.Route{Topic: topic}); (err == nil) != fine {
			t.Errorf("SQS, %.20q: %v", topic, err)
		}
		if err := topics.CheckRoute(relay.Route{Topic: topic}); (err == nil) != fine {
			t.Errorf("SNS, %.20q: %v", topic, err)
		}
	}
	if err := topics.CheckRoute(relay.Route{}); err == nil {
		t.Error("an empty topic has a topic of SNS")
	}
}

func TestGroup(t *testing.T) {
	for key, want := range map[string]string{
		"": noKey, "order-42": "order-42", "a/b:c@d!~": "a/b:c@d!~", strings.Repeat("k", 128): strings.Repeat("k", 128),
		"ü": "sha256-", "a b": "sha256-", strings.Repeat("k", 129): "sha256-",
	} {
		got := group(key)
		if !strings.HasPrefix(got, want) || len(got) > longest || (want == hashed) != (len(got) == len(hashed)+64) {
			t.Errorf("%.10q: got %q, want %q", key, got, want)
		}
	}
	if group("a b") == group("a c") {
		t.Error("two keys have one group")
	}
}
