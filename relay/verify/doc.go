// Package verify checks the relay's promises. Tests, bench and demo report to it what was committed
// and what each sink got. It returns which promise was broken, by which event. It does not know how
// records were carried.
//
// What it checks, for each sink:
//
//	nothing lost        every committed event arrives, or is a dead letter
//	nothing invented    what arrives was committed, and has its key
//	order               an event arrives for the first time after those committed before it
//	                    under the same key
//	redelivery          what arrives again repeats a suffix, in order: after going back it goes
//	                    on one by one (or goes further back) until it is past everything that
//	                    has arrived before
//	duplicates          are counted, and allowed up to a limit
//
// With a key's events numbered in commit order, this is legal: 0 1 2 | 1 2 3 | 0 1 2 3 4. These are
// not:
//
//	0 2 1        2 overtook 1
//	0 1 2 1 3    the redelivery began with 1 and left 2 out
//	0 1 2 1      the redelivery began with 1 and ended before 2
//
// An event that never arrives is missing, and leaves no hole: 0 2 is one missing event and no
// disorder.
//
// Audit is for sagaz-relay verify, which comes later and has only the table to compare with. It
// knows what is missing and what came twice, and of order only what the table and the sinks have of
// it (see there).
package verify
