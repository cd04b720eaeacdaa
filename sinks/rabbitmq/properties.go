package rabbitmq

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/relay"
)

// property is a property of messages that RELAY_RABBITMQ_PROPERTIES sets: to a text, or to the value
// of a header, and to the text where the event has none.
type property struct {
	name   string
	header string // empty for none
	text   string // empty: without the header the property is not set
}

// propertyNames are the properties that can be set. message_id, timestamp, content_type and
// delivery_mode are the relay's. RabbitMQ takes no user_id but the login's, which tells a consumer no
// more than who the relay is, and closes the channel for any other.
var propertyNames = []string{"correlation_id", "reply_to", "expiration", "priority", "type", "app_id"}

// parseProperties reads the setting, one item a property.
func parseProperties(items []string) ([]property, error) {
	var all []property
	for _, item := range items {
		name, value, _ := strings.Cut(item, "=")
		p := property{name: strings.TrimSpace(name), text: strings.TrimSpace(value)}
		if of, is := strings.CutPrefix(p.text, "{header:"); is {
			of, closed := strings.CutSuffix(of, "}")
			p.header, p.text, is = strings.Cut(of, "|")
			if !closed || p.header == "" || is && p.text == "" {
				return nil, fmt.Errorf("%s: want {header:NAME} or {header:NAME|FALLBACK}", item)
			}
		} else if p.text == "" {
			return nil, fmt.Errorf("%s: want PROPERTY={header:NAME}, PROPERTY={header:NAME|FALLBACK} or PROPERTY=TEXT", item)
		}
		switch {
		case !slices.Contains(propertyNames, p.name):
			return nil, fmt.Errorf("%s: the properties that can be set are %s", item, strings.Join(propertyNames, ", "))
		case strings.ContainsAny(p.header+p.text, "{}"):
			return nil, fmt.Errorf("%s: want one {header:NAME} and no text next to it", item)
		case slices.ContainsFunc(all, func(o property) bool { return o.name == p.name }):
			return nil, fmt.Errorf("%s: %s is there twice", item, p.name)
		}
		if p.text != "" {
			if err := p.put(new(amqp.Publishing), p.text); err != nil {
				return nil, fmt.Errorf("%s: %w", item, err)
			}
		}
		all = append(all, p)
	}
	return all, nil
}

// setProperties sets the properties of a record's message. What AMQP or RabbitMQ would close the
// channel for is the record's own fault.
func setProperties(msg *amqp.Publishing, rec *relay.Record, properties []property) error {
	for i := range properties {
		p := &properties[i]
		value := p.text
		if p.header != "" {
			for j := range rec.Headers {
				if h := &rec.Headers[j]; h.Key == p.header && h.Value != "" && !h.Null() {
					value = h.Value
				}
			}
		}
		if value == "" {
			continue
		}
		if err := p.put(msg, value); err != nil {
			return relay.Refuse(relay.ReasonEncode, fmt.Errorf("header %s, for the property %s: %w", p.header, p.name, err))
		}
	}
	return nil
}

// maxExpiration is the longest time to live that RabbitMQ takes, in milliseconds: ten years of 365
// days (TestLongestExpiration). A broker that takes less closes the channel, and the record is found
// as any other for which it does that.
const maxExpiration = 10 * 365 * 24 * 60 * 60 * 1000

// directReplyTo is a name that only the connection with the consumer may use.
const directReplyTo = "amq.rabbitmq.reply-to"

// put sets the property. The errors do not quote the value, which may be a customer's.
func (p *property) put(msg *amqp.Publishing, value string) error {
	if len(value) > maxShortString {
		return fmt.Errorf("it has %d bytes, AMQP allows %d", len(value), maxShortString)
	}
	switch p.name {
	case "correlation_id":
		msg.CorrelationId = value
	case "reply_to":
		if value == directReplyTo {
			return fmt.Errorf("%s is for those who consume on the same connection: want the name of a queue", directReplyTo)
		}
		msg.ReplyTo = value
	case "expiration":
		ms, err := strconv.ParseUint(value, 10, 64)
		if err != nil || ms > maxExpiration {
			return fmt.Errorf("want a whole number of milliseconds, at most %d", int64(maxExpiration))
		}
		msg.Expiration = strconv.FormatUint(ms, 10)
	case "priority":
		n, err := strconv.ParseUint(value, 10, 8)
		if err != nil {
			return fmt.Errorf("want a whole number from 0 to 255")
		}
		msg.Priority = uint8(n)
	case "type":
		msg.Type = value
	case "app_id":
		msg.AppId = value
	}
	return nil
}

// propertiesSize is about what the properties add to a message's header frame.
func propertiesSize(msg *amqp.Publishing) int {
	return 4 + len(msg.CorrelationId) + len(msg.ReplyTo) + len(msg.Expiration) + len(msg.AppId) + len(msg.Type) + 2
}
