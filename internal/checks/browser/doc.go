// Package browser looks at the status page as a person does: a headless Chromium against the real
// relay, with PostgreSQL, Kafka and RabbitMQ.
//
// With SAGAZ_SCREENSHOTS=DIR the screenshots stay there. Those in docs/ were made so, in TestLooks
// with eleven minutes of inserts in waves before RabbitMQ goes away.
package browser
