// Package sinktest holds the test that every sink passes, and a scripted sink that fails on cue.
//
// Run checks the contract of relay.Sink against a real broker (or file). A sink's own test gives it
// how to make a sink and how to read back what arrived:
//
//	sinktest.Run(t, sinktest.Harness{
//		New: func(t testing.TB) *sinktest.Target {
//			topic := newTopic(t)
//			return &sinktest.Target{
//				Sink: newSink(t), Topic: topic,
//				Consume: func(t testing.TB) []sinktest.Delivered { ... },
//			}
//		},
//	})
//
// What it asks is what the lanes rely on: an acknowledged record is there, records of one key
// arrive in the order given whatever happens on the way, a failure names the right record, and
// nothing hangs or leaks. What only one broker can do (nacks, full disks, returned messages) is
// that sink's own test.
//
// Script is the other side: a relay.Sink in memory for the tests of the engine.
package sinktest
