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

	lastRead time.Time
	lastSize int
}

// readPause is the least time between two reads that did not fill half the buffer. A walsender that sends small transactions
// writes each by itself; reading each by itself would cost a wake-up, a batch and a broker's request an event. They
// gather in the socket meanwhile. An event pays at most this for it, and nothing on a stream that is slower.
const readPause = time.Millisecond

// readBuffer is a few hundred events: fewer bytes cost a system call more often, more are never there at once.
const readBuffer = 256 << 10

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
		if r.before != nil && r.lastSize < len(r.buf)/2 {
			if pause := readPause - time.Since(r.lastRead); pause > 0 {
				time.Sleep(pause)
			}
		}
		n, err := r.src.Read(r.buf)
		r.lastRead, r.lastSize = time.Now(), n
		if n == 0 {
			return 0, err
		}
		r.r, r.w = 0, n
	}
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	return n, nil
}
