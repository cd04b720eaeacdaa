package relay

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"
)

// LSN is a position in PostgreSQL's write-ahead log: a byte address, counted from the start of the
// cluster's life (PostgreSQL docs, "pg_lsn Type"). Zero means "none".
type LSN uint64

// String renders the position as PostgreSQL does, two hexadecimal halves: "16/B374D848".
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// ParseLSN reads the form that String writes. It returns an error for anything else.
func ParseLSN(s string) (LSN, error) {
	var hi, lo uint32
	if n, err := fmt.Sscanf(s, "%X/%X", &hi, &lo); err != nil || n != 2 {
		return 0, fmt.Errorf("parse LSN %q: want two hexadecimal numbers with a slash between", s)
	}
	return LSN(hi)<<32 | LSN(lo), nil
}

// UUID is an event_id in its 16 raw bytes.
type UUID [16]byte

// String renders the canonical lower-case form, as PostgreSQL's uuid_out does.
func (u UUID) String() string { return string(u.AppendText(make([]byte, 0, 36))) }

// AppendText appends the canonical form to b.
func (u UUID) AppendText(b []byte) []byte {
	b = hex.AppendEncode(b, u[0:4])
	b = append(b, '-')
	b = hex.AppendEncode(b, u[4:6])
	b = append(b, '-')
	b = hex.AppendEncode(b, u[6:8])
	b = append(b, '-')
	b = hex.AppendEncode(b, u[8:10])
	b = append(b, '-')
	return hex.AppendEncode(b, u[10:16])
}

// ParseUUID reads the canonical form (upper or lower case).
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, fmt.Errorf("parse event_id: %q is no UUID", s)
	}
	for i, span := range [...][2]int{{0, 8}, {9, 13}, {14, 18}, {19, 23}, {24, 36}} {
		at := [...]int{0, 4, 6, 8, 10}[i]
		if _, err := hex.Decode(u[at:], []byte(s[span[0]:span[1]])); err != nil {
			return u, fmt.Errorf("parse event_id %q: %w", s, err)
		}
	}
	return u, nil
}

// Timestamp is a timestamptz as PostgreSQL stores it: microseconds since 2000-01-01 00:00 UTC.
// Its two extreme values stand for -infinity and infinity (PostgreSQL docs, "Date/Time Types").
type Timestamp int64

// Timestamps without a place on the calendar.
const (
	Infinity         Timestamp = math.MaxInt64
	NegativeInfinity Timestamp = math.MinInt64
)

const postgresEpochUnixMicro = 946_684_800_000_000

// TimestampOf converts a time; it drops what is below a microsecond.
func TimestampOf(t time.Time) Timestamp { return Timestamp(t.UnixMicro() - postgresEpochUnixMicro) }

// Time converts to a time in UTC. An infinity becomes the nearest moment that a four-digit year can
// name, which is what the Python library sends for it too.
func (t Timestamp) Time() time.Time {
	const (
		first = -63_082_281_600_000_000 // 0001-01-01 00:00:00
		last  = 252_455_615_999_999_999 // 9999-12-31 23:59:59.999999
	)
	return time.UnixMicro(int64(min(max(t, first), last)) + postgresEpochUnixMicro).UTC()
}

// Event is one row of saga_outbox as it was inserted.
//
// The strings of one event may share one allocation, so holding any of them holds all of them.
type Event struct {
	ID            UUID
	SagaID        string
	AggregateType string
	AggregateID   string // the partition key; events of one key are delivered in commit order
	EventType     string
	Payload       string // a jsonb as PostgreSQL renders it, a text, the bytes of a bytea
	Headers       string // the jsonb as PostgreSQL renders it; empty when the column is NULL
	Status        string // as inserted; anything but "pending" is not ours to publish
	CreatedAt     Timestamp

	// CommitLSN and Ordinal are the event's place in commit order: the WAL position of its
	// transaction's commit record and its number within the transaction, from 0. Both are zero for
	// a row that was read from the table rather than from the stream.
	CommitLSN LSN
	Ordinal   uint32
	// CommitEnd is set on the last event of a transaction, to the position just past its commit
	// record. Once this event and all before it are settled, the slot may move there. It is 0
	// otherwise, and when the stream reports the transaction's end by itself.
	CommitEnd LSN
	// XID is the transaction that inserted the row; zero when read from the table.
	XID uint32
	// CommittedAt is when that transaction committed, by the server's clock.
	CommittedAt Timestamp

	// NoPayload: the payload is NULL. One that is empty is not.
	NoPayload bool
	// Unfit is why the row cannot be delivered, if whoever read it knows: it is too large, for
	// instance, and was not read whole. Payload and Headers are empty then.
	Unfit *RefusedError
	// Loose: nobody has checked the texts, because payload or headers are of another type than
	// jsonb, or the database knows no encoding. The encoder does it then.
	Loose bool
}

// TooLarge is why an event is refused whose texts have size bytes, more than RELAY_MAX_EVENT_BYTES.
// Trying again does not make it smaller.
func TooLarge(size, limit int64) *RefusedError {
	return &RefusedError{Reason: ReasonTooLarge, Size: size, Limit: limit, Err: errTooLarge, Final: true}
}

// errTooLarge names the limit, because a broker may have a lower one.
var errTooLarge = errors.New("the row is larger than RELAY_MAX_EVENT_BYTES, so it is not read")

// DefaultMaxEventBytes is the default of RELAY_MAX_EVENT_BYTES.
const DefaultMaxEventBytes = 32 << 20

// CheckMaxEventBytes reports what is wrong with a RELAY_MAX_EVENT_BYTES.
func CheckMaxEventBytes(bytes int) error {
	if bytes < 64<<10 || bytes > 1<<30 {
		return fmt.Errorf("RELAY_MAX_EVENT_BYTES=%d: want 65536 to 1073741824", bytes)
	}
	return nil
}

// Size is the number of bytes that the event is charged against the in-flight budget.
func (e *Event) Size() int {
	return len(e.SagaID) + len(e.AggregateType) + len(e.AggregateID) + len(e.EventType) +
		len(e.Payload) + len(e.Headers) + eventOverhead
}

// eventOverhead is what an event in flight costs besides its text: the ring entry, the record, its
// headers, and the queue slots that point at it.
const eventOverhead = 512
