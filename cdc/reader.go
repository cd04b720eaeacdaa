package cdc

import (
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// reader puts a large buffer between the socket and the protocol decoder, and calls before when the
// buffer is empty and the socket is about to be read. That is the moment to hand on what has been
// gathered, because the read may take for ever.
type reader struct {
	src     io.Reader
	conn    net.Conn      // for deadlines; nil while connecting
	silence time.Duration // longest wait for the server; 0 means no limit
	before  func() error  // nil while connecting

	// What was read: buf[r:ok] may be handed out, buf[ok:w] is still to be looked at (frames.go).
	buf      []byte
	r, ok, w int
	frames   frames

	lastRead time.Time
	lastSize int
	lastTook time.Duration   // from the read before it
	slots    int             // that the table has, as far as it counts here; see grow
	busy     bool            // the last read brought much, so the next one waits for more
	lowWater func(bytes int) // sets SO_RCVLOWAT; nil where the system has no such option
}

// A walsender that sends small transactions writes each to the socket by itself. Reading each by
// itself would cost a wake-up, a batch and a broker's request an event, and the walsender pays for
// the wake-up, too. So reads that do not fill half the buffer are spaced: by idlePause on a quiet
// stream, which hardly delays an event, by busyPause once reads bring more than busyRead. On a busy
// stream the kernel is asked not to wake us for less than busyLowWater either (SO_RCVLOWAT,
// socket(7)). Otherwise every segment would wake the poller, even while no read waits. busyWait
// bounds how long that can delay the last bytes when the stream goes quiet. Draining single-row
// transactions this halves the CPU of all sides (docs/measurements.md).
const (
	idlePause    = time.Millisecond
	busyPause    = 4 * time.Millisecond
	busyRead     = 16 << 10
	busyLowWater = 32 << 10
	busyGather   = 128 << 10
	busyWait     = 5 * time.Millisecond
)

// readBuffer is a few hundred events: fewer bytes cost a system call more often, more are never
// there at once. A slot among several brings its part of them.
const (
	readBuffer  = 256 << 10
	shardBuffer = 64 << 10
	startBuffer = 16 << 10 // before the stream begins
)

func newReader(src io.Reader) *reader {
	return &reader{src: src, buf: make([]byte, startBuffer), slots: 1}
}

// grow makes the reader one for the stream of one of so many slots. It brings a part of the events,
// so less of them makes it a busy one.
func (r *reader) grow(slots int) {
	r.slots = min(max(slots, 1), 8)
	buf := make([]byte, max(readBuffer/r.slots, shardBuffer))
	copy(buf, r.buf[:r.w])
	r.buf = buf
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		if n := r.frames.take(p); n > 0 {
			return n, nil
		}
		if r.r < r.ok {
			n := copy(p, r.buf[r.r:r.ok])
			r.r += n
			return n, nil
		}
		if passed, cut := r.frames.look(r.buf[r.ok:r.w]); passed > 0 || cut > 0 {
			r.ok += passed
			if cut > 0 { // none has passed then
				r.ok += cut
				r.r = r.ok
			}
			continue
		}
		r.w = copy(r.buf, r.buf[r.ok:r.w]) // the beginning of a message, at most
		r.r, r.ok = 0, 0
		n, err := r.refill()
		if n == 0 {
			return 0, err
		}
		r.w += n
	}
}

func (r *reader) refill() (int, error) {
	if r.before == nil { // not streaming
		return r.src.Read(r.buf[r.w:])
	}
	for {
		if err := r.before(); err != nil {
			return 0, err
		}
		r.setBusy(r.lastSize >= busyRead/r.slots)
		wait, pause := r.silence, idlePause
		if r.busy {
			// As long as it takes to gather busyGather at the last read's rate. A longer pause
			// would fill the socket, and the walsender would wait for us.
			wait, pause = busyWait, min(busyPause, r.lastTook*time.Duration(min(busyGather, len(r.buf)/2))/time.Duration(r.lastSize))
		}
		if r.lastSize < len(r.buf)/2 {
			time.Sleep(pause - time.Since(r.lastRead))
		}
		if err := r.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return 0, err
		}
		n, err := r.src.Read(r.buf[r.w:])
		now := time.Now()
		r.lastTook, r.lastRead, r.lastSize = now.Sub(r.lastRead), now, n
		if n == 0 && r.busy && errors.Is(err, os.ErrDeadlineExceeded) {
			continue // it dried up; from now on every byte wakes us
		}
		return n, err
	}
}

func (r *reader) setBusy(busy bool) {
	if busy == r.busy {
		return
	}
	r.busy = busy
	if r.lowWater == nil {
		return
	}
	if busy {
		r.lowWater(busyLowWater / r.slots)
	} else {
		r.lowWater(1)
	}
}
