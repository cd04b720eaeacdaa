package rabbitmq

import (
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// cloudEventNames are the attributes that the relay itself sets, as the AMQP protocol binding of CloudEvents names them (section 3.1.3.1:
// the prefix cloudEvents_). The binding is for AMQP 1.0's application properties, whose place headers have in AMQP 0-9-1.
var cloudEventNames = func() map[string]string {
	names := map[string]string{relay.CloudEventContentType: ""} // it is the property content_type
	for _, attribute := range []string{"specversion", "id", "source", "type", "time", "subject", "partitionkey", "aggregatetype", "sagaid"} {
		names[relay.CloudEventPrefix+attribute] = cloudEventPrefix + attribute
	}
	return names
}()

const cloudEventPrefix = "cloudEvents_"

// headerName is the name under which a record's header is sent; empty: it is not.
func headerName(rec *relay.Record, name string) string {
	if !rec.CloudEvent {
		return name
	}
	if ours, ok := cloudEventNames[name]; ok {
		return ours
	}
	if attribute, ok := strings.CutPrefix(name, relay.CloudEventPrefix); ok {
		return cloudEventPrefix + attribute
	}
	return name
}
