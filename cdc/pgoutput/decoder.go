package pgoutput

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"

	"github.com/sagaz-relay/relay/relay"
)

// Kind is what a decoded message was, as far as a relay cares.
type Kind uint8

// Kinds of messages.
const (
	Other    Kind = iota // nothing to do: an origin, a type, a message, another table's row
	Begin                // a transaction starts; its events follow
	Insert               // Decoder.Event holds a row of the outbox table
	Commit               // the transaction is complete; Decoder.CommitEnd is where it ends
	Truncate             // the outbox table was truncated
	// the outbox table was described: at the first row, and after anything that touched table or
	// publication
	Relation
)

// ErrProtocol marks bytes that no PostgreSQL would send.
var ErrProtocol = errors.New("malformed pgoutput message")

// ErrWantsText means that a column's type has a binary form that is not read here: the stream has
// to be asked for text.
var ErrWantsText = errors.New("a column of the outbox table has a type that is read as text only")

// Decoder holds the state of one replication connection: the relations and the open transaction. A
// new connection needs a new Decoder, because the server sends each relation once per connection.
// It is for one goroutine.
type Decoder struct {
	table uint32 // OID of the outbox table; rows of other relations are skipped

	relations map[uint32]*relation
	scratch   []byte // text of the row being decoded; copied out once

	// MaxEventBytes is how large an event's texts may be; 0 means that there is no limit. Unchecked
	// means that the server knows no encoding, so nobody has checked the texts. Both are set before
	// the first message.
	MaxEventBytes int
	Unchecked     bool

	inTx      bool
	commitLSN relay.LSN
	committed relay.Timestamp
	xid       uint32
	ordinal   uint32

	// Event is the row of the last message of kind Insert. It is valid until the next Decode; its
	// strings stay valid.
	Event relay.Event
	// CommitEnd is, after a message of kind Commit, the position just past the transaction's commit
	// record: what may be confirmed once all its events are marked or in the ledger.
	CommitEnd relay.LSN
}

// NewDecoder returns a decoder of the rows of the table with the given OID.
func NewDecoder(table uint32) *Decoder {
	return &Decoder{table: table, relations: make(map[uint32]*relation)}
}

// Decode reads one message of the stream (the payload of an XLogData message). An error means that
// the stream cannot be understood from here on. A *ColumnError means that the table has lost a
// column that is needed.
func (d *Decoder) Decode(msg []byte) (Kind, error) {
	if len(msg) == 0 {
		return Other, fmt.Errorf("%w: empty", ErrProtocol)
	}
	switch msg[0] {
	case 'I':
		return d.insert(msg[1:])
	case 'B':
		return d.begin(msg[1:])
	case 'C':
		return d.commit(msg[1:])
	case 'T':
		return d.truncate(msg[1:])
	}
	return d.rare(msg)
}

// begin reads: int64 LSN of the commit record, int64 commit time, int32 xid.
func (d *Decoder) begin(b []byte) (Kind, error) {
	if len(b) < 20 {
		return Other, fmt.Errorf("%w: Begin of %d bytes", ErrProtocol, len(b))
	}
	d.commitLSN = relay.LSN(binary.BigEndian.Uint64(b))
	d.committed = relay.Timestamp(binary.BigEndian.Uint64(b[8:]))
	d.xid = binary.BigEndian.Uint32(b[16:])
	d.ordinal = 0
	d.inTx = true
	return Begin, nil
}

// commit reads: int8 flags, int64 LSN of the commit record, int64 end LSN, int64 commit time.
func (d *Decoder) commit(b []byte) (Kind, error) {
	if len(b) < 25 {
		return Other, fmt.Errorf("%w: Commit of %d bytes", ErrProtocol, len(b))
	}
	d.CommitEnd = relay.LSN(binary.BigEndian.Uint64(b[9:]))
	d.inTx = false
	return Commit, nil
}

// insert reads: int32 relation OID, byte 'N', tuple.
func (d *Decoder) insert(b []byte) (Kind, error) {
	if len(b) < 5 || b[4] != 'N' {
		return Other, fmt.Errorf("%w: Insert of %d bytes", ErrProtocol, len(b))
	}
	oid := binary.BigEndian.Uint32(b)
	rel, ok := d.relations[oid]
	switch {
	case !ok:
		return Other, fmt.Errorf("%w: Insert into relation %d, which was not described", ErrProtocol, oid)
	case oid != d.table:
		return Other, nil
	case !d.inTx:
		return Other, fmt.Errorf("%w: Insert outside a transaction", ErrProtocol)
	case rel.err != nil:
		return Other, rel.err
	}
	if err := d.row(rel, b[5:]); err != nil {
		return Other, err
	}
	d.Event.CommitLSN, d.Event.Ordinal = d.commitLSN, d.ordinal
	d.Event.XID, d.Event.CommittedAt = d.xid, d.committed
	d.ordinal++
	return Insert, nil
}

// truncate reads: int32 number of relations, int8 flags, int32 OID of each. It is not left to
// pglogrepl, which allocates for as many relations as the message claims.
func (d *Decoder) truncate(b []byte) (Kind, error) {
	if len(b) < 5 || uint64(len(b)-5) < 4*uint64(binary.BigEndian.Uint32(b)) {
		return Other, fmt.Errorf("%w: Truncate of %d bytes", ErrProtocol, len(b))
	}
	n := binary.BigEndian.Uint32(b)
	for b = b[5:]; n > 0; n-- {
		if binary.BigEndian.Uint32(b) == d.table {
			return Truncate, nil
		}
		b = b[4:]
	}
	return Other, nil
}

// rare handles what occurs once per connection or by accident.
func (d *Decoder) rare(msg []byte) (Kind, error) {
	parsed, err := parseRare(msg)
	if err != nil {
		return Other, fmt.Errorf("%w: message %q: %w", ErrProtocol, msg[0], err)
	}
	if m, ok := parsed.(*pglogrepl.RelationMessage); ok {
		d.relations[m.RelationID] = newRelation(m)
		if m.RelationID == d.table {
			return Relation, nil
		}
	}
	return Other, nil
}

// parseRare calls pglogrepl and turns a panic into an error: its reader indexes without looking at
// the length, so bytes that were cut short would end the process.
func parseRare(msg []byte) (m pglogrepl.Message, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("parse: %v", r)
		}
	}()
	return pglogrepl.Parse(msg)
}

// Types returns the type OIDs of the outbox table's columns as it was described last, by name; nil
// before that. It has only the columns that the relay needs.
func (d *Decoder) Types() map[string]uint32 {
	rel := d.relations[d.table]
	if rel == nil {
		return nil
	}
	types := make(map[string]uint32, fieldCount)
	for _, c := range rel.columns {
		if c.field != fieldNone {
			types[Columns[c.field]] = c.oid
		}
	}
	return types
}

// Broken is why no row of the outbox table can be read as it was described last: a *ColumnError, or
// nil.
func (d *Decoder) Broken() error {
	if rel := d.relations[d.table]; rel != nil {
		return rel.err
	}
	return nil
}

// At is the commit position of the transaction that was begun last.
func (d *Decoder) At() relay.LSN { return d.commitLSN }

// WantsText reports whether the outbox table, as it was described last, can be read as text only.
func (d *Decoder) WantsText() bool {
	rel := d.relations[d.table]
	return rel != nil && rel.textual
}

// Needs reports whether the event needs the value of a column of the relation with the given OID. A
// column that is not known is needed.
func (d *Decoder) Needs(oid uint32, column int) bool {
	rel := d.relations[oid]
	return rel == nil || column >= len(rel.columns) || rel.columns[column].field != fieldNone
}

// InTransaction reports whether a transaction has begun and not ended yet.
func (d *Decoder) InTransaction() bool { return d.inTx }
