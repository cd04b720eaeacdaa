package aws

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/internal/testbed/awstest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// moto is the server of all tests here that want one.
var moto struct {
	once   sync.Once
	server *awstest.Server
	err    error
}

func motoURL(t testing.TB) string {
	t.Helper()
	moto.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		moto.server, moto.err = awstest.Start(ctx)
	})
	if moto.err != nil {
		t.Fatal(moto.err)
	}
	return moto.server.URL
}

func TestMain(m *testing.M) {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_EC2_METADATA_DISABLED": "true",
		// Nothing of the machine's own.
		"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_REGION": "", "AWS_CA_BUNDLE": "", "AWS_PROFILE": "",
	} {
		_ = os.Setenv(name, value)
	}
	code := m.Run()
	if moto.server != nil {
		if err := moto.server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

const patience = time.Minute

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// standIn answers as SQS does (its JSON protocol) and SNS, for one FIFO queue or topic, fast and as
// the test wants: moto takes milliseconds for each request, and never fails an entry.
type standIn struct {
	*httptest.Server

	mu       sync.Mutex
	messages []stored            // guarded by mu
	seen     map[string]bool     // guarded by mu; deduplication ids
	requests [][]stored          // guarded by mu
	fail     func(stored) *fault // guarded by mu; nil: none fails
	whole    func([]stored) (status int, code string)
}

type stored struct{ ID, Body, Group, Dedup string }

type fault struct {
	Code        string
	SenderFault bool
}

func newStandIn(t testing.TB) *standIn {
	t.Helper()
	s := &standIn{seen: make(map[string]bool)}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Server.Close)
	return s
}

const standInQueue = "events.fifo"

func (s *standIn) serve(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Amz-Target") == "" {
		s.serveSNS(w, r)
		return
	}
	var in struct {
		QueueName string
		QueueUrl  string
		Entries   []struct{ Id, MessageBody, MessageGroupId, MessageDeduplicationId string }
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return // the connection was cut
	}
	answer := func(status int, body any) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
	failed := func(status int, code string) {
		answer(status, map[string]string{"__type": "com.amazonaws.sqs#" + code, "message": "hush: " + code})
	}
	switch action := r.Header.Get("X-Amz-Target"); action {
	case "AmazonSQS.GetQueueUrl":
		if in.QueueName != standInQueue {
			failed(400, "QueueDoesNotExist")
			return
		}
		answer(200, map[string]string{"QueueUrl": "http://" + r.Host + "/123456789012/" + in.QueueName})
	case "AmazonSQS.GetQueueAttributes":
		answer(200, map[string]any{"Attributes": map[string]string{"FifoQueue": "true"}})
	case "AmazonSQS.SendMessageBatch":
		s.mu.Lock()
		defer s.mu.Unlock()
		var request []stored
		for _, e := range in.Entries {
			request = append(request, stored{e.Id, e.MessageBody, e.MessageGroupId, e.MessageDeduplicationId})
		}
		s.requests = append(s.requests, request)
		if s.whole != nil {
			if status, code := s.whole(request); status != 0 {
				failed(status, code)
				return
			}
		}
		var taken, refused []map[string]any
		for _, m := range request {
			if s.fail != nil {
				if f := s.fail(m); f != nil {
					refused = append(refused, map[string]any{"Id": m.ID, "Code": f.Code, "SenderFault": f.SenderFault, "Message": "hush"})
					continue
				}
			}
			s.take(m)
			sum := md5.Sum([]byte(m.Body))
			taken = append(taken, map[string]any{"Id": m.ID, "MessageId": m.Dedup, "MD5OfMessageBody": hex.EncodeToString(sum[:])})
		}
		answer(200, map[string]any{"Successful": taken, "Failed": refused})
	default:
		failed(400, "InvalidAction")
	}
}

// take keeps a message that is new. It needs mu locked.
func (s *standIn) take(m stored) {
	if !s.seen[m.Dedup] {
		s.seen[m.Dedup] = true
		s.messages = append(s.messages, m)
	}
}

// serveSNS answers as SNS does, by its query protocol, for one FIFO topic.
func (s *standIn) serveSNS(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		return // the connection was cut
	}
	w.Header().Set("Content-Type", "text/xml")
	action := r.Form.Get("Action")
	if !strings.HasSuffix(r.Form.Get("TopicArn"), ":"+standInQueue) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `<ErrorResponse><Error><Type>Sender</Type><Code>NotFound</Code><Message>hush</Message></Error></ErrorResponse>`)
		return
	}
	var taken, failed strings.Builder
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := 1; ; n++ {
		value := func(name string) string {
			return r.Form.Get(fmt.Sprintf("PublishBatchRequestEntries.member.%d.%s", n, name))
		}
		m := stored{value("Id"), value("Message"), value("MessageGroupId"), value("MessageDeduplicationId")}
		if m.ID == "" {
			break
		}
		if s.fail != nil {
			if f := s.fail(m); f != nil {
				fmt.Fprintf(&failed, "<member><Id>%s</Id><Code>%s</Code><SenderFault>%t</SenderFault><Message>hush</Message></member>", m.ID, f.Code, f.SenderFault)
				continue
			}
		}
		s.take(m)
		fmt.Fprintf(&taken, "<member><Id>%s</Id><MessageId>%s</MessageId></member>", m.ID, m.Dedup)
	}
	fmt.Fprintf(w, "<%[1]sResponse><%[1]sResult><Successful>%[2]s</Successful><Failed>%[3]s</Failed></%[1]sResult></%[1]sResponse>", action, taken.String(), failed.String())
}

func (s *standIn) got() []stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]stored(nil), s.messages...)
}

// config is for a sink that has all the time.
func (s *standIn) config() SQSConfig {
	cfg := DefaultSQSConfig()
	cfg.Queue, cfg.Region, cfg.Endpoint, cfg.slice = "{topic}.fifo", "eu-west-1", s.URL, time.Hour
	return cfg
}

func openSQS(t testing.TB, cfg SQSConfig) *Sink {
	t.Helper()
	s, err := NewSQS(cfg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// The contract, but for what attributes carry, which TestSQS and TestSNS look at with moto.
func TestContractSQS(t *testing.T) {
	contract(t, func(server *standIn, endpoint string) (*Sink, error) {
		cfg := server.config()
		cfg.Endpoint = endpoint
		return NewSQS(cfg, hclog.NewNullLogger())
	})
}

func TestContractSNS(t *testing.T) {
	contract(t, func(_ *standIn, endpoint string) (*Sink, error) {
		cfg := DefaultSNSConfig()
		cfg.Topic, cfg.Endpoint, cfg.slice = "arn:aws:sns:eu-west-1:123456789012:{topic}.fifo", endpoint, time.Hour
		return NewSNS(cfg, hclog.NewNullLogger())
	})
}

func contract(t *testing.T, open func(server *standIn, endpoint string) (*Sink, error)) {
	sinktest.Run(t, sinktest.Harness{NoKey: true, Deduplicates: true, New: func(t testing.TB) *sinktest.Target {
		server := newStandIn(t)
		proxy := pgtest.NewProxy(t, server.URL)
		sink, err := open(server, proxy.DSN)
		if err != nil {
			t.Fatal(err)
		}
		return &sinktest.Target{
			Sink: &headersToo{Sink: sink}, Topic: "events",
			Consume: func(t testing.TB) []sinktest.Delivered { return delivered(server.got()) },
			Refused: func(key string) (*relay.Record, relay.Reason) {
				return sinktest.NewRecord("nobody", key, 0, 0), relay.ReasonUnknownTopic
			},
			Stall: func(testing.TB) func() {
				proxy.Freeze()
				return proxy.Thaw
			},
			Faults: map[string]func(testing.TB){
				"connections cut":             func(testing.TB) { proxy.Cut() },
				"connections cut three times": func(testing.TB) { proxy.Cut(); proxy.Cut(); proxy.Cut() },
				"throttled for a moment": func(testing.TB) {
					server.mu.Lock()
					server.fail = func(stored) *fault { return &fault{"ThrottlingException", true} }
					server.mu.Unlock()
					time.Sleep(20 * time.Millisecond) // any time will do
					server.mu.Lock()
					server.fail = nil
					server.mu.Unlock()
				},
			},
		}
	}})
}

// headersToo remembers the headers of what it is offered, which the stand-in does not keep.
type headersToo struct{ *Sink }

func (h *headersToo) Publish(ctx context.Context, batch []*relay.Record) error {
	for _, rec := range batch {
		sentHeaders.Store(rec.EventID.String(), rec.Headers)
	}
	return h.Sink.Publish(ctx, batch)
}

var sentHeaders sync.Map // by event_id

func delivered(messages []stored) []sinktest.Delivered {
	var all []sinktest.Delivered
	for _, m := range messages {
		d := sinktest.Delivered{Topic: "events", Value: []byte(m.Body)}
		if headers, ok := sentHeaders.Load(m.Dedup); ok {
			d.Headers = headers.([]relay.Header)
		}
		// What is no text comes as base64; bodies of the suite that are text have a brace.
		if value, err := base64.StdEncoding.DecodeString(m.Body); err == nil && !strings.Contains(m.Body, "{") && m.Body != "7" {
			d.Value = value
		}
		all = append(all, d)
	}
	return all
}
