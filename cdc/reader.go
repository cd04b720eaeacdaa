package cdc

import (
	"io"
	"net"
	"time"
)

// reader puts a large buffer between the socket and the protocol decoder, and calls before when the buffer is empty and
// the socket is about to be asked: the moment to hand on what has been gathered, because the read may take for ever.
type reader struct {
	src     io.Reader
	conn    net.Conn      // for deadlines; nil while connecting
	silence time.Duration // longest wait for the server; 0 means no limit
	before  func() error  // nil while connecting

	buf  []byte
	r, w int
}

// readBuffer is a few hundred events: fewer bytes cost a system call more often, more are never there at once.
const readBuffer = 128 << 10

func newReader(src io.Reader) *reader { return &reader{src: src, buf: make([]byte, readBuffer)} }

func (r *reader) Read(p []byte) (int, error) {
	if r.r == r.w {
		if r.before != nil {
			if err := r.before(); err != nil {
				return 0, err
			}
		}
		if r.conn != nil && r.silence > 0 {
			if err := r.conn.SetReadDeadline(time.Now().Add(r.silence)); err != nil {
				return 0, err
			}
		}
		n, err := r.src.Read(r.buf)
		if n == 0 {
			return 0, err
		}
		r.r, r.w = 0, n
	}
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	return n, nil
}
