package relay

// Values of RELAY_MODE.
const (
	ModeAuto    = "auto"
	ModeCDC     = "cdc"
	ModePolling = "polling"
)

// ModeRecovering is, besides ModeCDC and ModePolling, how events are found while an owed sweep is
// done.
const ModeRecovering = "recovering"

// WantsPolling is why the table is polled when that is what was asked for.
const WantsPolling = "RELAY_MODE=polling"

// What a dead letter means for later events of its key: values of RELAY_DEAD_LETTER.
const (
	DeadLetterContinue = "continue"
	DeadLetterHold     = "hold"
)

// Values of RELAY_RETENTION_ACTION.
const (
	RetentionDelete  = "delete"
	RetentionArchive = "archive"
)
