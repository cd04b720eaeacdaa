// Package proof runs the real thing: two relays on a real PostgreSQL, Kafka and RabbitMQ, under load and with faults, scraped by a real Prometheus
// that has the rules of monitoring/. Then every expression of every dashboard and rule is asked there: none may be an error, and each must
// have had data at some second of the play.
//
// A second play makes one fault after the other, waits for its alert, runs the commands of its runbook, mends the fault, and waits for the alert to end.
package proof
