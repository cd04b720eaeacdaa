// Package e2e tests the program as its users meet it: the binary, run as processes, against real
// PostgreSQL, Kafka and RabbitMQ, judged by relay/verify. It holds tests only.
//
//	delivery_test.go   each sink, the wire, a stop under load repeats nothing
//	crash_test.go      kill -9 at random moments
//	restart_test.go    brokers and PostgreSQL go away and come back
//	standby_test.go    three relays: takeover after stop, kill and freeze; a rolling restart
//	large_test.go      one huge transaction in bounded memory
//	setup_test.go      settings, objects and rights that are wrong
//	rows_test.go       rows that are odd, and what others do to the table
//	poll_test.go       where nothing can be streamed
//	modes_test.go      RELAY_MODE=auto, and restarts in other modes
//	leftover_test.go   rows that the stream does not deliver
//	admin_test.go      metrics and health
//	traces_test.go     rows' traces go on, and spans reach a collector
//
// and, to build those with: main_test.go (waiting, random choices), process_test.go (a relay),
// world_test.go (a database with a role of its own), load_test.go (transactions whose commit order
// is known), kafka_test.go and rabbitmq_test.go (what arrived).
//
// Every process's log is searched at the end of its test for the passwords it was given, the
// payloads it carried, and reports of the race detector. SAGAZ_E2E_SEED repeats the random choices
// of a run.
package e2e
