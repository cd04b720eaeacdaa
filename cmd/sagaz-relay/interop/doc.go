// Package interop holds the tests of the relay against the Python library that it works next to:
// its storage makes the tables and inserts, its worker publishes the same rows for comparison, its
// inbox consumes, and its storage reads what the relay has marked.
//
// Equal, event for event, to what the library's worker sends: the body as JSON, the headers with
// names, values and (Kafka) order, Kafka's topic, key and partition, RabbitMQ's exchange, routing
// key, content type and delivery mode.
//
// Different, and tested as such:
//
//   - RabbitMQ's message_id, timestamp and type, which the worker leaves empty, and the mandatory
//     flag.
//   - Numbers in a payload keep their digits; the worker reads them as Python floats, which hold
//     17.
//   - A header that is not a string is sent as its JSON text. To RabbitMQ the worker sends a typed
//     AMQP value (5, true, a table); to Kafka it cannot send the event at all, and the row ends as
//     dead_letter.
//   - A row whose created_at lies ahead (a clock that is fast, infinity) goes out at once. The
//     worker leaves it until then.
//   - Kafka partition of an event with an empty aggregate_id: it has no key, so that is anybody's
//     choice.
//   - Order: by commit, per key. The worker publishes a batch in parallel.
//
// The library comes from the package index by pip, in the versions that internal/testbed/peers pins,
// into a virtual environment in the cache directory that all runs share.
package interop
