package cdc

import "time"

// silence is how long streams of one slot wait for the server.
//
// A walsender that writes a large transaction to its disk, or reads one of many parts, sends
// nothing meanwhile, however often it is asked. A logical_decoding_work_mem of some GB takes it
// tens of seconds (reorderbuffer.c, ReorderBufferSerializeTXN). To give the connection up then does
// not help: the next one begins the same transaction from the start, and is given up at the same
// place, for ever. So each silence that ended a stream lets the next one wait twice as long, until
// an hour has passed without. A server that is gone, or cut off, is noticed sooner than that by
// others: connecting again does not work, and the lease is lost.
type silence struct {
	broke int // streams ended by it lately
	last  time.Time
}

const (
	longestSilence = 10 * time.Minute
	silenceForgets = time.Hour
)

// silenceOf returns how long the slot's next stream may receive nothing.
func (s *Source) silenceOf(slot string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait, was := s.cfg.WALSenderTimeout, s.silences[slot]
	if time.Since(was.last) > silenceForgets {
		return wait
	}
	for range was.broke {
		if wait >= longestSilence {
			break
		}
		wait = min(2*wait, longestSilence)
	}
	return wait
}

// wasSilent notes that silence has ended a stream of the slot.
func (s *Source) wasSilent(slot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.silences[slot]
	if time.Since(was.last) > silenceForgets {
		was.broke = 0
	}
	s.silences[slot] = silence{broke: was.broke + 1, last: time.Now()}
}
