// Package proof runs the real thing: two relays on a real PostgreSQL, Kafka and RabbitMQ, under load and with faults, scraped by a real Prometheus
// that has the rules of monitoring/. Then every expression of every dashboard and rule is asked there: none may be an error, and each must
// have had data at some second of the play.
package proof
