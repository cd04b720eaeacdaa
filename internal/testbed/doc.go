// Package testbed brings up what developers need around the relay, from the first source that has
// it. Command testenv is its command line; the product's image has nothing of it.
//
// Below it are the parts, each of which a test can have for itself:
//
//	pgserver    a PostgreSQL server, its standby, a pooler; downloads the binaries
//	pgtest      a database of its own for a test, and a proxy to cut its connections
//	brokertest  Apache Kafka and RabbitMQ, with topics and queues of its own for a test
//	otlptest    a collector of traces
//	child       a process that does not outlive the one that started it; free ports
//	program     sagaz-relay itself, built once for all packages of a run
//	peers       the Python library and Debezium Server, which tests and comparisons run
//	cache       a directory for downloads that several processes may fill at once
//	debian      packages of the system
package testbed
