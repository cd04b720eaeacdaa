package cdc

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
)

// message frames a body.
func message(kind byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body))), body...)
}

// row is an Insert in its CopyData; a value of nil is NULL. kinds may replace the kind of a value
// that is there.
func row(cut map[int]bool, values ...[]byte) []byte {
	b := append([]byte{'w'}, make([]byte, 24)...)
	b = append(b, 'I', 0, 0, 64, 0, 'N', 0, byte(len(values)))
	for i, v := range values {
		switch {
		case v == nil:
			b = append(b, 'n')
		case cut[i]:
			b = binary.BigEndian.AppendUint32(append(b, pgoutput.CutColumn), uint32(len(v)))
		default:
			b = append(binary.BigEndian.AppendUint32(append(b, 'b'), uint32(len(v))), v...)
		}
	}
	return message('d', b)
}

// pieces gives bytes in pieces of any size.
type pieces struct {
	rest []byte
	rnd  *rand.Rand
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), 1+p.rnd.IntN(200))], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// Whatever pieces the bytes come in: a row over the limit loses its large values, a column that
// nobody needs first, and every other byte passes as it is.
func TestFramesCutLargeRows(t *testing.T) {
	const limit = 64 << 10
	small, large := []byte("small"), bytes.Repeat([]byte("x"), 3*limit)
	half := bytes.Repeat([]byte("h"), limit*2/3)
	nearly := row(nil, small, bytes.Repeat([]byte("y"), limit), small)
	plain := message('d', append([]byte{'k'}, make([]byte, 17)...))
	long := message('D', large) // not a row: not ours to cut
	var in, want []byte
	add := func(sent, passed []byte) { in, want = append(in, sent...), append(want, passed...) }
	same := func(b []byte) { add(b, b) }
	same(plain)
	same(row(nil, small, nil, small))
	add(row(nil, small, large, nil, small), row(map[int]bool{1: true}, small, large, nil, small))
	add(row(nil, small, large, large, small), row(map[int]bool{1: true, 2: true}, small, large, large, small))
	same(nearly)
	same(long)
	add(row(nil, half, half, small, half, small), row(map[int]bool{1: true, 3: true}, half, half, small, half, small))
	add(row(nil, small, half, small, small, small, small, small, small, small, large), row(map[int]bool{9: true}, small, half, small, small, small, small, small, small, small, large))
	same(plain)
	for seed := range uint64(30) {
		r := newReader(&pieces{rest: in, rnd: rand.New(rand.NewPCG(seed, 1))})
		r.frames.limit = limit
		r.frames.needs = func(oid uint32, column int) bool { return oid != 0x4000 || column != 9 }
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d: got %d bytes (%v), want %d", seed, len(got), err, len(want))
		}
	}
}

// Nonsense is passed on for the protocol decoder to refuse, or cut in some way; it never ends in a
// panic or an endless loop.
func TestFramesOfNonsense(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		in := row(nil, bytes.Repeat([]byte("x"), 200<<10), []byte("small"))
		for range 5 {
			in[rnd.IntN(min(len(in), 80))] = byte(rnd.Uint32())
		}
		r := newReader(&pieces{rest: in, rnd: rnd})
		r.frames.limit = 64 << 10
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
	}
}
