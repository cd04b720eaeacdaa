// Package browser looks at the status page as a person does: a headless Chromium against the real relay, with PostgreSQL, Kafka and RabbitMQ.
//
// It is a module of its own, beside internal/checks, for the sake of the DevTools protocol's library. With SAGAZ_SCREENSHOTS=DIR the
// screenshots stay there; those in docs/ were made so.
package browser
