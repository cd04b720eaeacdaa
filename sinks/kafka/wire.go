package kafka

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/segmentio/kafka-go/protocol"
)

// What comes over a connection is trusted only as far as it is there. kafka-go's decoder allocates
// what a length or a count claims before it reads any of it. So a server which speaks something
// else ("SSH-2.0…" is a frame of 1.4 GB), or a wrong length, would take gigabytes. Therefore frames
// are read here: their length has a limit, memory grows with the bytes that arrive, and each length
// and count in a frame is checked against what is left of it (shape.go) before kafka-go sees the
// frame.
const (
	// greetingLimit is for the first answer, which lists the versions of some 100 requests.
	greetingLimit = 64 << 10
	// frameLimit is for answers about topics, records and rights: 32 MiB have room for 600,000
	// partitions.
	frameLimit = 32 << 20
	// fetchLimit is for what holds records, which only reading back asks for.
	fetchLimit = 256 << 20
	// readChunk is how far memory is ahead of what has arrived.
	readChunk = 64 << 10
	// keepFrame is the largest buffer that is kept for the next frame.
	keepFrame = 1 << 20
)

// wire is a connection to a broker. Its users set the deadlines. One goroutine at a time may write,
// and one read.
type wire struct {
	net.Conn
	clientID string
	versions map[protocol.ApiKey]int16 // nil until agreed on
	in       *bufio.Reader
	buf      []byte
	id       int32 // of the last request of roundTrip
}

func newWire(conn net.Conn, clientID string) *wire {
	return &wire{Conn: conn, clientID: clientID, in: bufio.NewReader(conn)}
}

// notKafka is an answer that no Kafka broker gives.
type notKafka struct {
	start []byte // the first bytes
	looks string // which protocol begins so; empty when none is known
}

func (e *notKafka) Error() string {
	if e.looks != "" {
		return fmt.Sprintf("the answer begins with %q: that is %s, not Kafka", e.start, e.looks)
	}
	return fmt.Sprintf("the answer begins with %q, which is no frame of Kafka's", e.start)
}

// greetings are the first bytes of other servers, sent by themselves or in answer to a Kafka
// request.
var greetings = []struct{ start, looks string }{
	{"SSH-", "SSH"},
	{"HTTP/", "HTTP"},
	{"220", "SMTP or FTP"},
	{"554 ", "SMTP"},
	{"+OK", "POP3"},
	{"* OK", "IMAP"},
	{"AMQP", "AMQP (RabbitMQ)"},
	{"-ERR", "Redis"},
	{"\x15\x03", "TLS: the listener wants it"},
	{"\x16\x03", "TLS: the listener wants it"},
	{"RFB ", "VNC"},
	{"<", "HTML or XML"},
	{"E\x00\x00", "PostgreSQL"},
	{"EFATAL", "PostgreSQL"},
	{"N", "PostgreSQL"},
	{"INFO {", "NATS"},
}

func (w *wire) foreign(header []byte) *notKafka {
	e := &notKafka{start: append([]byte(nil), header...)}
	// what is there already; nothing is waited for
	if more, _ := w.in.Peek(min(w.in.Buffered(), 12)); len(more) > 0 {
		e.start = append(e.start, more...)
	}
	for _, g := range greetings {
		if bytes.HasPrefix(e.start, []byte(g.start)) {
			e.looks = g.looks
			break
		}
	}
	if len(e.start) >= 5 && e.start[3] == 0 && e.start[4] == 10 {
		e.looks = "MySQL"
	}
	return e
}

// frame reads one frame and returns it with its length in front. It is valid until the next call.
func (w *wire) frame(limit int) ([]byte, error) {
	buf := append(w.buf[:0], 0, 0, 0, 0)
	if _, err := io.ReadFull(w.in, buf); err != nil {
		return nil, noEOF(err)
	}
	size := int(int32(binary.BigEndian.Uint32(buf)))
	if size < 4 || size > limit {
		if w.versions == nil {
			return nil, w.foreign(buf)
		}
		return nil, fmt.Errorf("an answer of %d bytes, want at most %d: no broker sends that", size, limit)
	}
	for left := size; left > 0; {
		n := min(left, readChunk)
		from := len(buf)
		buf = append(buf, make([]byte, n)...)
		if _, err := io.ReadFull(w.in, buf[from:]); err != nil {
			return nil, noEOF(err)
		}
		left -= n
	}
	if w.buf = buf; cap(buf) > keepFrame {
		w.buf = nil
	}
	return buf, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// response reads the answer to a request.
func (w *wire) response(key protocol.ApiKey, version int16) (id int32, msg protocol.Message, err error) {
	limit := frameLimit
	switch {
	case w.versions == nil:
		limit = greetingLimit
	case key == protocol.Fetch:
		limit = fetchLimit
	}
	frame, err := w.frame(limit)
	if err != nil {
		return 0, nil, err
	}
	if err := checkResponse(key, version, frame[4:]); err != nil {
		if w.versions == nil {
			return 0, nil, w.foreign(frame[:min(len(frame), 16)])
		}
		return 0, nil, fmt.Errorf("answer to %s: %w", key, err)
	}
	return protocol.ReadResponse(bytes.NewReader(frame), key, version)
}

// RoundTrip sends a request and reads its answer.
func (w *wire) RoundTrip(req protocol.Message) (protocol.Message, error) {
	if raw, ok := req.(protocol.RawExchanger); ok && raw.Required(w.versions) {
		return raw.RawExchange(&rawFrames{wire: w})
	}
	version := w.versions[req.ApiKey()]
	// would create it: version 0 has no validate_only
	if req.ApiKey() == protocol.CreateTopics && version < 1 {
		return nil, fmt.Errorf("the broker cannot be asked whether it would create a topic")
	}
	if p, ok := req.(protocol.PreparedMessage); ok {
		p.Prepare(version)
	}
	w.id++
	if err := protocol.WriteRequest(w.Conn, version, w.id, w.clientID, req); err != nil {
		return nil, err
	}
	id, res, err := w.response(req.ApiKey(), version)
	if err != nil {
		return nil, err
	}
	if id != w.id {
		return nil, fmt.Errorf("answer to request %d, want %d", id, w.id)
	}
	return res, nil
}

// rawFrames are those of a login before Kafka 1.0: a length and bytes, no more.
type rawFrames struct {
	*wire
	rest []byte
}

func (r *rawFrames) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		buf := make([]byte, 4)
		if _, err := io.ReadFull(r.in, buf); err != nil {
			return 0, noEOF(err)
		}
		size := int(int32(binary.BigEndian.Uint32(buf)))
		if size < 0 || size > greetingLimit {
			return 0, fmt.Errorf("a login's answer of %d bytes, want at most %d", size, greetingLimit)
		}
		r.rest = append(buf, make([]byte, size)...)
		if _, err := io.ReadFull(r.in, r.rest[4:]); err != nil {
			return 0, noEOF(err)
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
