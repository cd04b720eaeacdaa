// Package chaos runs relays, their database and their brokers through random accidents while
// applications insert events, and compares afterwards what was committed with what the brokers
// hold, event by event. It holds tests only.
//
//	make chaos                                              ten minutes of it
//	make chaos DURATION=1h FAULTS=kill,pg-fast,kafka-silent
//	make chaos SEED=1234 DURATION=1s                        the round that printed this seed, again
//	make chaos SHARDS=8 PODS=10 DURATION=15m                one round of many relays, see crowd_test.go
//
// A run is a number of rounds, each with a seed of its own; the next round's is one more. From the
// seed comes the round's plan: how many relays, with which settings, into which sinks, and which
// faults, when and for how long. The same seed gives the same plan; what meets what in the relays
// still depends on the machine. In a round
//
//	applications commit events under many keys, with clocks hours apart; each key's commit
//	  order is known
//	→ faults happen, several at a time → every fault ends → the applications stop
//	→ each row gets its outcome
//	→ the table, the ledger and what each broker holds are compared (relay/verify)
//
// Nothing may be missing or out of order, and nothing may arrive twice unless a fault of the round
// explains it (see fault.repeats).
//
//	chaos_test.go       the run: rounds, totals
//	plan_test.go        what a seed means
//	crowd_test.go       many relays, while the number of slots changes
//	fault_test.go       the faults, and what each excuses; *_faults_test.go is how they are done
//	round_test.go       one round
//	ending_test.go      what is waited for and looked at in the end
//	comparison_test.go  the comparison
//	load_test.go        the applications
//	testbed_test.go     the servers
//	link_test.go        the network between
//	seat_test.go        a relay process
package chaos
