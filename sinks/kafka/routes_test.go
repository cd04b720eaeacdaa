package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// problemsOf asks about topics and returns the problems by topic; a topic may have one only.
func problemsOf(t *testing.T, s *Sink, topics ...string) map[string]relay.RouteProblem {
	t.Helper()
	var routes []relay.Route
	for _, topic := range topics {
		routes = append(routes, relay.Route{EventType: "E-" + topic, Topic: topic})
	}
	problems, err := s.CheckRoutes(testContext(t), routes)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]relay.RouteProblem{}
	for _, p := range problems {
		if _, twice := out[p.Route.Topic]; twice || p.Route.EventType != "E-"+p.Route.Topic {
			t.Errorf("problem of another route, or one more: %+v", p)
		}
		out[p.Route.Topic] = p
	}
	return out
}

func wantProblem(t *testing.T, problems map[string]relay.RouteProblem, topic, problem string, fix ...string) {
	t.Helper()
	p, ok := problems[topic]
	if !ok || !strings.Contains(p.Problem, problem) {
		t.Errorf("topic %s: got problem %q, want %q", topic, p.Problem, problem)
	}
	for _, part := range fix {
		if !strings.Contains(p.Fix, part) {
			t.Errorf("topic %s: fix %q does not have %q", topic, p.Fix, part)
		}
	}
}

// Where brokers create topics, doctor does not report a missing one, and asking does not make it.
func TestRoutesWithAutoCreation(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	topic, missing := createTopic(t, addr, 2), topicName()
	s := newSink(t, addr)
	for range 2 {
		problems := problemsOf(t, s, topic, missing, "no/topic")
		if len(problems) != 1 {
			t.Errorf("got %+v, want one problem", problems)
		}
		wantProblem(t, problems, "no/topic", "no legal topic name", "RELAY_TOPIC")
	}
	m, err := newClient(t, addr).Metadata(testContext(t), &kafkago.MetadataRequest{Topics: []string{missing}})
	if err != nil {
		t.Fatal(err)
	}
	if m.Topics[0].Error == nil {
		t.Error("the topic exists now: the question created it")
	}
}

// A broker that creates no topic and asks for rights.
func TestRoutesWithRights(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	k, err := brokertest.StartKafka(ctx, brokertest.KafkaOptions{Config: []string{
		"auto.create.topics.enable=false",
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:ANONYMOUS",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	fine, readable, hidden, missing := createTopic(t, k.Plaintext, 6), createTopic(t, k.Plaintext, 1), createTopic(t, k.Plaintext, 1), "orders"
	grant := func(kind kafkago.ResourceType, name string, operations ...kafkago.ACLOperationType) {
		t.Helper()
		for _, op := range operations {
			res, err := newClient(t, k.Plaintext).CreateACLs(ctx, &kafkago.CreateACLsRequest{ACLs: []kafkago.ACLEntry{{
				ResourceType: kind, ResourceName: name, ResourcePatternType: kafkago.PatternTypeLiteral,
				Principal: "User:" + k.User, Host: "*", Operation: op, PermissionType: kafkago.ACLPermissionTypeAllow,
			}}})
			if err == nil {
				err = res.Errors[0]
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	const describe, write, read = kafkago.ACLOperationTypeDescribe, kafkago.ACLOperationTypeWrite, kafkago.ACLOperationTypeRead
	grant(kafkago.ResourceTypeTopic, fine, describe, write, read)
	grant(kafkago.ResourceTypeTopic, readable, describe)
	grant(kafkago.ResourceTypeTopic, missing, describe, write)

	all := newSink(t, k.Plaintext) // may do everything
	problems := problemsOf(t, all, fine, readable, hidden, missing)
	if len(problems) != 1 {
		t.Errorf("got %+v, want one problem", problems)
	}
	wantProblem(t, problems, missing, "auto.create.topics.enable=false",
		"kafka-topics.sh --bootstrap-server "+k.Plaintext+" --create --topic orders --partitions 6 --replication-factor 1")
	// num.partitions, where no other topic shows it
	wantProblem(t, problemsOf(t, all, missing), missing, "does not exist", "--partitions 4")

	s := newSink(t, k.SASLPlaintext, func(c *Config) {
		c.SecurityProtocol, c.SASLMechanism, c.SASLUsername, c.SASLPassword = "SASL_PLAINTEXT", "PLAIN", k.User, k.Password
	})
	var took error
	for ctx.Err() == nil { // rights take a moment to be known
		if took = s.Publish(ctx, sinktest.Records(fine, "a", 0, 1)); took == nil && len(problemsOf(t, s, readable, fine, missing)) == 2 {
			break
		}
	}
	if took != nil {
		t.Fatal(took)
	}
	problems = problemsOf(t, s, fine, readable, hidden, missing)
	if len(problems) != 3 {
		t.Errorf("got %+v, want three problems", problems)
	}
	wantProblem(t, problems, readable, "not write", "kafka-acls.sh", "--allow-principal User:"+k.User+" --operation Write --topic "+readable)
	wantProblem(t, problems, hidden, "may not see", "--operation Write --operation Describe --topic "+hidden)
	wantProblem(t, problems, missing, "cannot be found out", "--create --topic orders")
	for _, p := range problems {
		if text := fmt.Sprint(p); strings.Contains(text, k.Password) {
			t.Errorf("a password shows in %q", text)
		}
	}

	testUnreadable(t, k, s, fine, func(topic string) { grant(kafkago.ResourceTypeTopic, topic, describe, write) })

	grant(kafkago.ResourceTypeCluster, "kafka-cluster", describe)
	for ctx.Err() == nil {
		if p := problemsOf(t, s, missing)[missing]; strings.Contains(p.Problem, "may not have the brokers create it") {
			return
		}
	}
	t.Errorf("with the right to describe the cluster and none to create: got %+v", problemsOf(t, s, missing))
}

// testUnreadable is about a topic that the user may write to and not read. What the user may read is
// read, and it is known what to grant.
func testUnreadable(t *testing.T, k *brokertest.KafkaServer, s *Sink, readable string, grant func(topic string)) {
	t.Helper()
	closed := createTopic(t, k.Plaintext, 2)
	grant(closed)
	since := time.Now()
	recs, others := sinktest.Records(readable, "b", 0, 5), sinktest.Records(closed, "b", 0, 5)
	for _, batch := range [][]*relay.Record{recs, others} { // rights take a moment to be known
		var err error
		for ctx := testContext(t); ctx.Err() == nil; pause(t, 20*time.Millisecond) {
			if err = s.Publish(ctx, batch); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ids, report := readTail(t, s, since, readable, closed)
	wantFound(t, ids, recs...)
	if len(report.Unread) != 1 {
		t.Fatalf("unread: %v, want the one partition with records", report.Unread)
	}
	if u := report.Unread[0]; !strings.HasPrefix(u.Place, closed+"/") || !errors.Is(u.Err, kafkago.TopicAuthorizationFailed) {
		t.Errorf("%s is unread: %v", u.Place, u.Err)
	}
	problems := problemsOf(t, s, closed)
	wantProblem(t, problems, closed, "may not read", "--operation Read --topic "+closed, "RELAY_KAFKA_READ_BACK=false")
	if problems[closed].Note == "" {
		t.Error("that events are sent again counts as that they do not arrive")
	}
}

// Topics that keep little are named, where it matters.
func TestRoutesThatKeepLittle(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	compacted := createTopic(t, addr, 1, kafkago.ConfigEntry{ConfigName: "cleanup.policy", ConfigValue: "compact"})
	short := createTopic(t, addr, 1, kafkago.ConfigEntry{ConfigName: "retention.ms", ConfigValue: "60000"})
	forever := createTopic(t, addr, 1, kafkago.ConfigEntry{ConfigName: "retention.ms", ConfigValue: "-1"})
	problems := problemsOf(t, newSink(t, addr), compacted, short, forever)
	wantProblem(t, problems, compacted, "is compacted", "")
	wantProblem(t, problems, short, "for 1m0s only", "retention.ms")
	if len(problems) != 2 || problems[compacted].Note == "" || problems[short].Note == "" {
		t.Errorf("got %+v, want two notes", problems)
	}
	if p := problemsOf(t, newSink(t, addr, func(c *Config) { c.ReadBack = false }), compacted, short); len(p) != 0 {
		t.Errorf("got %+v though nothing is read back", p)
	}
}

func TestRoutesWithoutLeader(t *testing.T) {
	f := newFake(t, 1)
	f.set(func() { f.leader["t"], f.parts["t"] = -1, 3 })
	problems := problemsOf(t, newSink(t, f.addr()), "t", "good")
	if len(problems) != 1 {
		t.Errorf("got %+v, want one problem", problems)
	}
	wantProblem(t, problems, "t", "3 of the 3 partitions of topic t have no leader (0, 1, 2)", "--describe --topic t")

	if _, err := newSink(t, "127.0.0.1:1").CheckRoutes(testContext(t), []relay.Route{{Topic: "t"}}); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("without a broker: got %v, want an error with its address", err)
	}
}

// For Kafka a.b and a_b collide, so it creates no second one: neither a refusal nor doctor advises
// to create it.
func TestTopicThatCollides(t *testing.T) {
	addr := brokertest.Kafka(t).Plaintext
	base := topicName()
	dots, lines := base+".events.x", base+"_events_x"
	s := newSink(t, addr, func(c *Config) { c.TopicWait = 300 * time.Millisecond })
	if _, err := sinktest.Offer(testContext(t), s, values(dots, "a", 1)); err != nil {
		t.Fatal(err)
	}
	deleteAfter(t, addr, dots)
	for range 2 { // the second time from memory
		err := s.Publish(testContext(t), values(lines, "a", 1))
		r, refused := relay.Refused(err)
		if !refused || r.Reason != relay.ReasonUnknownTopic || !strings.Contains(err.Error(), "collides") || strings.Contains(err.Error(), "auto.create.topics.enable") {
			t.Errorf("got %v, want it refused for the collision", err)
		}
	}
	problems, err := s.CheckRoutes(testContext(t), []relay.Route{{EventType: "x", Topic: lines}})
	if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Problem, "collides") || strings.Contains(problems[0].Fix, "--create --topic") {
		t.Errorf("doctor: %+v, %v", problems, err)
	}
}
