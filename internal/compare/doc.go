// Command compare runs this relay and its peers side by side: the same PostgreSQL, the same
// brokers, the same rows, one after the other in turn, on one machine.
//
//	compare run -csv docs/benchmarks/results.csv     measures, and adds a line for each figure
//	compare report -csv docs/benchmarks/results.csv  draws the plots and writes the tables
//	compare growth                                   draws what bench --grow --csv has written
//
// Each measurement has a database, a topic or queue and a process of its own, which are gone when
// it is over:
//
//	drain     a backlog is written, and a copy of the slot drained to nowhere by pg_recvlogical;
//	          then the contestant is started, and drains it
//	latency   the contestant runs; rows are committed one by one at a steady rate, and a consumer
//	          of the broker notes when each arrives
//	recovery  the same, and the contestant is killed with SIGKILL under way and started again
//
// A figure is written when its run ends, so an interrupted run keeps what it has. What fails is
// written as failed, with its reason, and the rest goes on.
//
// A module of its own, so that the relay's does not depend on the peers' modules.
package main
