// Package bench measures the relay against the bare replication stream, in one run on one machine:
// backlogs that both drain, the time from commit to acknowledgement, and the memory of one large
// transaction.
//
// It makes a database, a topic and a queue of its own, and removes them. The relay that drains runs
// as a process of its own, so that its CPU and memory are its own.
package bench
