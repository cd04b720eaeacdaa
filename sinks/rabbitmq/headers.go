package rabbitmq

import (
	"encoding/json"
	"fmt"

	"github.com/sagaz-relay/relay/relay"
)

// RabbitMQ takes the headers CC and BCC for more routing keys (Sender-Selected Distribution) and
// closes the channel when they are no array. A row's header has text; of a JSON array it is the
// array's text. So an array of strings is sent as one, and any other text as an array of that one
// routing key, which is what RabbitMQ means by it.
func isRoutes(name string) bool { return name == "CC" || name == "BCC" }

// moreRoutes returns the array to send.
func moreRoutes(name, value string) ([]any, error) {
	var list []any
	if len(value) == 0 || value[0] != '[' || json.Unmarshal([]byte(value), &list) != nil {
		list = []any{value}
	}
	for i, v := range list {
		key, ok := v.(string)
		switch {
		case !ok:
			return nil, relay.Refuse(relay.ReasonEncode, fmt.Errorf("header %s: RabbitMQ takes it for more routing keys, and element %d of the array is no string: want an array of strings, or another name for the header", name, i))
		case len(key) > maxShortString:
			return nil, relay.Refuse(relay.ReasonEncode, fmt.Errorf("header %s: RabbitMQ takes it for more routing keys, and one of them has %d bytes, AMQP allows 255: shorten it, or use another name for the header", name, len(key)))
		}
	}
	return list, nil
}
