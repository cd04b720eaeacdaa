package rabbitmq

import (
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// cloudEventPrefix begins an attribute's name in the AMQP protocol binding of CloudEvents (section
// 3.1.3.1). The binding is for AMQP 1.0's application properties; in AMQP 0-9-1 headers take their
// place.
const cloudEventPrefix = "cloudEvents_"

// headerName is the name under which a record's header is sent, which may be empty, and whether it
// is.
func headerName(rec *relay.Record, name string) (as string, sent bool) {
	if !rec.CloudEvent {
		return name, true
	}
	if name == relay.CloudEventContentType {
		return "", false // it is the property content_type
	}
	if attribute, ok := strings.CutPrefix(name, relay.CloudEventPrefix); ok {
		return cloudEventPrefix + attribute, true
	}
	return name, true
}
