package relay

// ReplayLock is the advisory lock between retention and sagaz-relay replay. Retention holds it
// shared for the statement that removes rows, replay holds it alone for the transaction that puts
// them into the ledger: so replay never promises an event that is being removed, and what it
// promised retention sees.
const ReplayLock int64 = 0x736167617a02
