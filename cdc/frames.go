package cdc

import (
	"encoding/binary"

	"github.com/jackc/pglogrepl"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
)

// frames looks at the bytes of a replication connection below the protocol decoder, which takes
// memory for a whole message before anybody can look at it. A row that is larger than may be read
// passes without its large values: their bytes are dropped as they come, and pgoutput.CutColumn
// takes the place of each.
//
// A message is: a byte that names its kind, an int32 length that counts itself, the body
// (PostgreSQL docs, "Message Formats").
type frames struct {
	limit int                               // bytes of a row's values; 0 for no limit
	needs func(oid uint32, column int) bool // whether a column is worth keeping; nil: all are
	left  int                               // bytes of the current message that are still to pass
	cut   *cutter                           // the message that is being cut; nil when none is
	done  []byte                            // what is left of such a message, to be handed out
}

const (
	frameHead = 5
	// rowHead is the length of what comes before the columns of an Insert: the head, 'w' with three
	// int64, 'I' with the relation's OID, 'N', the number of columns.
	rowHead = frameHead + 1 + 24 + 1 + 4 + 1 + 2
	// rowSlack is how much a row may take in addition to the values that count: what lies between
	// is measured by the decoder.
	rowSlack = 4 << 10
	// smallValue is the size of values that are kept in any case, so that the row can be identified
	// by its id, key and type.
	smallValue = 4 << 10
)

// take hands out what is left of a message that was cut.
func (f *frames) take(p []byte) int {
	n := copy(p, f.done)
	f.done = f.done[n:]
	return n
}

// look looks at what was received. It returns how many of the bytes, from the first on, may be
// handed out as they are; or how many were taken for a message that is being cut. Neither means
// that it has to see more.
func (f *frames) look(b []byte) (passed, cut int) {
	if f.cut != nil {
		return 0, f.feed(b)
	}
	for at := 0; at < len(b); {
		if f.left > 0 {
			n := min(f.left, len(b)-at)
			at += n
			f.left -= n
			passed = at
			continue
		}
		head := b[at:]
		if len(head) < frameHead {
			break
		}
		size := int(int32(binary.BigEndian.Uint32(head[1:])))
		if f.limit > 0 && head[0] == 'd' && size > f.limit+rowSlack {
			if len(head) < rowHead {
				break
			}
			if head[frameHead] == pglogrepl.XLogDataByteID && head[frameHead+25] == 'I' && head[frameHead+30] == 'N' {
				if at > 0 {
					break // what is before it first
				}
				f.cut = newCutter(f, head[:rowHead], 1+size-rowHead)
				return 0, rowHead + f.feed(b[rowHead:])
			}
		}
		f.left = max(1, 1+size) // a length that cannot be is for the protocol decoder to refuse
	}
	return passed, 0
}

func (f *frames) feed(b []byte) int {
	n := f.cut.write(b)
	if f.cut.left == 0 {
		f.done, f.cut = f.cut.frame(), nil
	}
	return n
}

// cutter makes a smaller message of one whose row is too large.
type cutter struct {
	f      *frames
	oid    uint32
	left   int    // bytes of the message to come
	out    []byte // what is kept
	column int
	head   []byte // of a value: its kind and length, as far as they are there
	value  int    // bytes of the value to come
	keep   bool   // they are kept
	broken bool   // the row makes no sense: the rest is dropped, and the decoder reports it
}

func newCutter(f *frames, head []byte, left int) *cutter {
	return &cutter{f: f, oid: binary.BigEndian.Uint32(head[frameHead+26:]), left: left, out: append([]byte(nil), head...)}
}

// write takes what belongs to the message, and returns how much that was.
func (c *cutter) write(b []byte) (n int) {
	for n < len(b) && c.left > 0 {
		var took int
		switch rest := b[n:min(len(b), n+c.left)]; {
		case c.broken:
			took = len(rest)
		case c.value > 0:
			took = min(c.value, len(rest))
			if c.keep {
				c.out = append(c.out, rest[:took]...)
			}
			c.value -= took
		default:
			took = 1
			c.head = append(c.head, rest[0])
			c.begin()
		}
		n += took
		c.left -= took
	}
	return n
}

// begin looks at the head of a value.
func (c *cutter) begin() {
	switch kind := c.head[0]; {
	case kind == 'n' || kind == 'u':
		c.out = append(c.out, kind)
	case kind != 't' && kind != 'b':
		c.broken = true
		return
	case len(c.head) < frameHead:
		return
	default:
		c.value = int(binary.BigEndian.Uint32(c.head[1:]))
		if c.value > c.left {
			c.broken = true
			return
		}
		needed := c.f.needs == nil || c.f.needs(c.oid, c.column)
		if c.keep = needed && (c.value <= smallValue || len(c.out)+c.value <= c.f.limit+rowSlack); !c.keep {
			c.head[0] = pgoutput.CutColumn
		}
		c.out = append(c.out, c.head...)
	}
	c.head = c.head[:0]
	c.column++
}

// frame is the message that is left.
func (c *cutter) frame() []byte {
	binary.BigEndian.PutUint32(c.out[1:], uint32(len(c.out)-1))
	return c.out
}
