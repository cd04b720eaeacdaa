// Package browser looks at the status page as a person does: a headless Chromium against the real
// relay, with PostgreSQL, Kafka and RabbitMQ.
//
// With SAGAZ_SCREENSHOTS=DIR the screenshots stay there; those in docs/ were made so.
package browser
