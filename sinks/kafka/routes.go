package kafka

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/sagaz-relay/relay/relay"
)

var _ relay.RouteChecker = (*Sink)(nil)

// Bits of the sets of operations in a metadata answer (Kafka's AclOperation).
const (
	mayRead   = 1 << 3
	mayWrite  = 1 << 4
	mayCreate = 1 << 5
	// unanswered is the value for a set that the broker does not answer: versions before 2.3.
	unanswered = math.MinInt32
)

// CheckRoutes looks up the routes' topics, and creates none. It finds topics that are missing where
// the brokers do not create them by themselves, or where the user may not have them do it. It finds
// partitions without a leader, and topics to which the user may not write. A topic that is missing
// and will be created with its first record is no problem. Kafka 2.3 and newer answer which rights
// the user has; with an older one it is only known that the user may see the topic.
func (s *Sink) CheckRoutes(ctx context.Context, routes []relay.Route) ([]relay.RouteProblem, error) {
	if s.ctx.Err() != nil {
		return nil, ErrClosed
	}
	ctx, cancel := s.whileOpen(ctx)
	defer cancel()
	var problems []relay.RouteProblem
	byTopic := map[string][]relay.Route{}
	var names []string
	for _, r := range routes {
		if !legalTopic(r.Topic) {
			problems = append(problems, relay.RouteProblem{
				Route: r, Problem: fmt.Sprintf("%q is no legal topic name: 1 to 249 of a-z A-Z 0-9 . _ - and not . or ..", r.Topic),
				Fix: "change event_type, or set RELAY_TOPIC to a template that makes legal names",
			})
			continue
		}
		if byTopic[r.Topic] == nil {
			names = append(names, r.Topic)
		}
		byTopic[r.Topic] = append(byTopic[r.Topic], r)
	}
	if len(names) == 0 {
		return problems, nil
	}
	m, err := s.control.metadata(ctx, &metadata.Request{TopicNames: names, IncludeClusterAuthorizedOperations: true, IncludeTopicAuthorizedOperations: true})
	if err != nil {
		return nil, err
	}
	s.setBrokers(m.Brokers)
	c := cluster{sink: s, answer: m}
	if s.cfg.ReadBack {
		c.keeps = s.control.keeps(ctx, names)
	}
	for i := range m.Topics {
		problem, fix := c.problem(ctx, &m.Topics[i])
		note := ""
		if problem == "" {
			problem, fix = c.unreadable(&m.Topics[i])
			note = sentAgain
		}
		if problem == "" {
			continue
		}
		for _, r := range byTopic[m.Topics[i].Name] {
			problems = append(problems, relay.RouteProblem{Route: r, Problem: problem, Fix: fix, Note: note})
		}
	}
	slices.SortStableFunc(problems, func(a, b relay.RouteProblem) int {
		return cmp.Or(strings.Compare(a.Route.Topic, b.Route.Topic), strings.Compare(a.Route.EventType, b.Route.EventType))
	})
	return problems, nil
}

// cluster is what one check knows of it.
type cluster struct {
	sink   *Sink
	answer *metadata.Response
	keeps  map[string]keeping // by topic, as far as it is known

	asked      bool
	auto       string // auto.create.topics.enable; empty when not known
	partitions string // num.partitions
	unknown    error  // why these are not known
}

// problem returns what is wrong with a topic, and what fixes it. Empty means nothing.
func (c *cluster) problem(ctx context.Context, t *metadata.ResponseTopic) (problem, fix string) {
	switch code := kafkago.Error(t.ErrorCode); code {
	case 0, kafkago.LeaderNotAvailable:
	case kafkago.UnknownTopicOrPartition:
		return c.missing(ctx, t.Name)
	case kafkago.TopicAuthorizationFailed:
		return "the user may not see topic " + t.Name + ", which exists or not", c.acl(t.Name, "Write", "Describe")
	case kafkago.InvalidTopic:
		if why := c.sink.control.notCreated(ctx, t.Name); why != "" {
			return fmt.Sprintf("topic %s does not exist: %s", t.Name, why), "change event_type or RELAY_TOPIC, or delete the other topic"
		}
		return fmt.Sprintf("%q is no legal topic name, or one of Kafka's own", t.Name), "change event_type, or RELAY_TOPIC"
	default:
		return fmt.Sprintf("topic %s: %v", t.Name, code), c.tool("kafka-topics.sh") + " --describe --topic " + t.Name
	}
	var leaderless []string
	for _, p := range t.Partitions {
		if p.LeaderID < 0 {
			leaderless = append(leaderless, fmt.Sprint(p.PartitionIndex))
		}
	}
	switch ops := t.TopicAuthorizedOperations; {
	case ops != unanswered && ops != 0 && ops&mayWrite == 0:
		return "the user may see topic " + t.Name + " and not write to it", c.acl(t.Name, "Write")
	case len(t.Partitions) == 0:
		return "topic " + t.Name + " is just being made", "wait a moment and look again"
	case len(leaderless) > 0:
		slices.Sort(leaderless)
		return fmt.Sprintf("%d of the %d partitions of topic %s have no leader (%s): records for them wait", len(leaderless), len(t.Partitions), t.Name, strings.Join(leaderless[:min(len(leaderless), 10)], ", ")),
			"start the brokers that hold them: " + c.tool("kafka-topics.sh") + " --describe --topic " + t.Name + " names these"
	}
	return "", ""
}

// sentAgain is what it means that a topic cannot be read back.
const sentAgain = "After a relay has died, its successor reads back what that one had sent last, and sends only what is not there. Where it cannot, it sends it again."

// shortlyKept is less than a takeover may take, with a wait for the database.
const shortlyKept = 5 * time.Minute

// unreadable returns why what a relay has sent to a topic may not be found there by its successor.
func (c *cluster) unreadable(t *metadata.ResponseTopic) (problem, fix string) {
	off := c.sink.cfg.Said(", or RELAY_KAFKA_READ_BACK=false")
	ops, keeps := t.TopicAuthorizedOperations, c.keeps[t.Name]
	switch {
	case !c.sink.cfg.ReadBack || kafkago.Error(t.ErrorCode) == kafkago.UnknownTopicOrPartition:
	case ops != unanswered && ops != 0 && ops&mayRead == 0:
		return "the user may not read topic " + t.Name, c.acl(t.Name, "Read") + off
	case strings.Contains(keeps.policy, "compact"):
		return "topic " + t.Name + " is compacted, so of several records of a key the earlier ones may be gone", "nothing, if consumers want it compacted"
	case keeps.retention > 0 && keeps.retention < shortlyKept:
		return fmt.Sprintf("topic %s keeps records for %s only", t.Name, keeps.retention), "a larger retention.ms" + off
	}
	return "", ""
}

// missing is about a topic that does not exist.
func (c *cluster) missing(ctx context.Context, name string) (problem, fix string) {
	if why := c.sink.control.notCreated(ctx, name); why != "" {
		return fmt.Sprintf("topic %s does not exist: %s", name, why), "see the text: kafka-topics.sh --create is refused for the same reason"
	}
	c.askBroker(ctx)
	partitions := 0
	for i := range c.answer.Topics { // as the others have
		partitions = max(partitions, len(c.answer.Topics[i].Partitions))
	}
	count := fmt.Sprint(partitions)
	if partitions == 0 {
		count = cmp.Or(c.partitions, "3")
	}
	fix = fmt.Sprintf("%s --create --topic %s --partitions %s --replication-factor %d", c.tool("kafka-topics.sh"), name, count, min(3, max(1, len(c.answer.Brokers))))
	ops := c.answer.ClusterAuthorizedOperations
	switch {
	case c.auto == "false":
		return "topic " + name + " does not exist, and the brokers create none (auto.create.topics.enable=false)", fix
	case ops != unanswered && ops != 0 && ops&mayCreate == 0:
		return "topic " + name + " does not exist, and the user may not have the brokers create it, unless a right on that topic itself allows it", fix
	case c.auto == "":
		return fmt.Sprintf("topic %s does not exist, and whether the brokers create it cannot be found out: %v", name, c.unknown), fix
	}
	return "", ""
}

// askBroker asks one broker for what it does about missing topics. Only the broker itself answers
// that, and the user needs the right to describe the cluster's settings.
func (c *cluster) askBroker(ctx context.Context) {
	if c.asked {
		return
	}
	c.asked = true
	if len(c.answer.Brokers) == 0 {
		c.unknown = fmt.Errorf("the cluster names no broker")
		return
	}
	b := c.answer.Brokers[0]
	addr := c.sink.broker(b.NodeID).address()
	conn, _, err := c.sink.dialer.dial(ctx, addr)
	if err != nil {
		c.unknown = err
		return
	}
	defer func() { _ = conn.Close() }() // read only
	_ = conn.SetDeadline(time.Now().Add(c.sink.cfg.RequestTimeout))
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	res, err := conn.RoundTrip(&describeconfigs.Request{Resources: []describeconfigs.RequestResource{{
		ResourceType: int8(kafkago.ResourceTypeBroker), ResourceName: fmt.Sprint(b.NodeID),
		ConfigNames: []string{"auto.create.topics.enable", "num.partitions"},
	}}})
	if err != nil {
		c.unknown = fmt.Errorf("ask %s for its settings: %w", addr, err)
		return
	}
	for _, r := range res.(*describeconfigs.Response).Resources {
		if r.ErrorCode != 0 {
			c.unknown = withText(kafkago.Error(r.ErrorCode), r.ErrorMessage)
		}
		for _, e := range r.ConfigEntries {
			switch e.ConfigName {
			case "auto.create.topics.enable":
				c.auto = e.ConfigValue
			case "num.partitions":
				c.partitions = e.ConfigValue
			}
		}
	}
	if c.auto == "" && c.unknown == nil {
		c.unknown = fmt.Errorf("%s does not answer for auto.create.topics.enable", addr)
	}
}

func (c *cluster) tool(name string) string {
	return name + " --bootstrap-server " + strings.Join(c.sink.addrs, ",")
}

func (c *cluster) acl(topic string, operations ...string) string {
	user := c.sink.cfg.SASLUsername
	if user == "" {
		user = "USER"
	}
	fix := c.tool("kafka-acls.sh") + " --add --allow-principal User:" + user
	for _, op := range operations {
		fix += " --operation " + op
	}
	return fix + " --topic " + topic
}
