// Package relay is the heart of sagaz-relay: the path of an event from a committed row of saga_outbox
// to the brokers' acknowledgements and back to the row's mark.
package relay
