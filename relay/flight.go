package relay

// Flight is an event on its way, from the moment at which it was taken until its mark is committed,
// as far as an Observer may know it.
type Flight struct {
	Record        Record
	SagaID        string
	AggregateType string
	CommitLSN     LSN       // 0 when it was read from the table
	CommittedAt   Timestamp // 0 when not known
	Swept         bool      // found in the table, not reported by the slot
	// WhileStreaming: it was swept while the slot was being read, and most likely delivered before.
	WhileStreaming bool
	// Unfit is why it could not be made into a record, so that no sink is offered it.
	Unfit *RefusedError
	// Entry is its entry in the ledger, of an event that is offered from there.
	Entry *Entry
	// Parked are the ledger entries of sinks that did not take it, at most one for each.
	Parked []Parked
}

// Created is the row's created_at.
func (f *Flight) Created() Timestamp { return TimestampOf(f.Record.Timestamp) }

// At is when the event was committed, or created where that is not known; 0 for a created_at, which
// the client sets, that no clock shows.
func (f *Flight) At() Timestamp {
	if f.CommittedAt != 0 {
		return f.CommittedAt
	}
	if year := f.Record.Timestamp.Year(); year < 1970 || year > 2200 {
		return 0
	}
	return f.Created()
}
