// Package halve finds the record for which a broker refuses a whole piece of a batch without naming
// the record.
//
// The piece is halved until it is refused with one record in it, which is the one. Pieces go out
// one after the other and in order, so what is in front of the culprit has arrived when it is
// found. One culprit among n records costs about log2(n) refused pieces, and many in a row cost one
// each.
package halve

// Piece is how many records the next offer may hold. The zero value is no limit. It is not safe for
// concurrent use.
type Piece struct {
	most     int // 0: no limit
	suspects int // among this many from the next one on is a culprit; 0: none is known of
}

// wide is the size from which on the search counts as over.
const wide = 4096

// Of begins with pieces of n records.
func Of(n int) Piece { return Piece{most: n} }

// Most returns the size of the next piece; 0 is no limit.
func (p *Piece) Most() int { return p.most }

// Taken notes that the next n records went through.
func (p *Piece) Taken(n int) {
	if p.suspects > n {
		p.suspects -= n
		p.most = (p.suspects + 1) / 2
		return
	}
	p.suspects = 0
	if p.most *= 2; p.most > wide {
		p.most = 0
	}
}

// Refused notes that a piece of the next n records was refused, and reports whether it had one
// record only.
func (p *Piece) Refused(n int) (alone bool) {
	if n <= 1 {
		*p = Piece{most: 1}
		return true
	}
	*p = Piece{most: (n + 1) / 2, suspects: n}
	return false
}

// Named is for a broker that names the culprit by its place in the refused piece. Next come those
// in front of it, or the culprit alone.
func (p *Piece) Named(place int) { *p = Piece{most: max(1, place), suspects: place + 1} }
