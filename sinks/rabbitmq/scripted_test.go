package rabbitmq

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// scripted is a broker that speaks as much AMQP as the sink needs, and closes a channel or the
// connection as the test wants. Like RabbitMQ it handles the frames of a channel in order, and
// sends its confirms late: those that are due are lost with the channel.
type scripted struct {
	listener net.Listener
	done     sync.WaitGroup

	// judge returns the code with which the broker ends what a message came on; 0 means that it
	// takes it. cut ends the connection without a code. control is for messages within a
	// transaction.
	judge func(message []byte, control bool) (code int, text string, connection bool)

	// silentFrom is the first method (class and number) that is not answered, and nothing is after
	// it.
	silentFrom [2]uint16

	channels, conns atomic.Int64 // opened

	mu    sync.Mutex
	got   []sinktest.Delivered // guarded by mu
	peers map[net.Conn]struct{}
}

const (
	cut = -1 // a code: none is sent, the connection ends
	// deaf is a code, too: a transaction is never answered.
	deaf = -2
)

func newScripted(t testing.TB, judge func([]byte, bool) (int, string, bool)) *scripted {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &scripted{listener: listener, judge: judge, peers: map[net.Conn]struct{}{}}
	b.done.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.peers[conn] = struct{}{}
			b.mu.Unlock()
			b.conns.Add(1)
			b.done.Go(func() {
				defer func() { _ = conn.Close() }()
				(&scriptedConn{broker: b, conn: conn, in: bufio.NewReader(conn), channels: map[uint16]*scriptedChannel{}}).serve()
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		b.mu.Lock()
		for c := range b.peers {
			_ = c.Close()
		}
		b.mu.Unlock()
		b.done.Wait()
	})
	return b
}

func (b *scripted) config() Config {
	cfg := DefaultConfig()
	cfg.URL = "amqp://guest:guest@" + b.listener.Addr().String() + "/"
	return cfg
}

func (b *scripted) delivered() []sinktest.Delivered {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.got
}

type scriptedConn struct {
	broker   *scripted
	conn     net.Conn
	in       *bufio.Reader
	channels map[uint16]*scriptedChannel
}

type scriptedChannel struct {
	transaction bool
	closed      bool   // by us: all is dropped until the client has closed it, too
	tag, owed   uint64 // owed: the highest tag whose confirm is due
	left        int    // of the body
	message     []byte // method, header and body
	body        []byte
}

func shortstr(s string) []byte { return append([]byte{byte(len(s))}, s...) }

func method(class, method uint16, args ...[]byte) []byte {
	out := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, class), method)
	return append(out, bytes.Join(args, nil)...)
}

func (c *scriptedConn) send(channel uint16, payload []byte) bool {
	out := binary.BigEndian.AppendUint16([]byte{1}, channel)
	out = binary.BigEndian.AppendUint32(out, uint32(len(payload)))
	_, err := c.conn.Write(append(append(out, payload...), 0xCE))
	return err == nil
}

func (c *scriptedConn) serve() {
	if _, err := io.ReadFull(c.in, make([]byte, 8)); err != nil { // "AMQP" and the version
		return
	}
	empty, plain := []byte{0, 0, 0, 0}, []byte("\x00\x00\x00\x05PLAIN")
	c.send(0, method(10, 10, []byte{0, 9}, empty, plain, []byte("\x00\x00\x00\x05en_US")))
	for {
		var head [7]byte
		if c.in.Buffered() == 0 {
			c.confirm()
		}
		if _, err := io.ReadFull(c.in, head[:]); err != nil {
			return
		}
		payload := make([]byte, binary.BigEndian.Uint32(head[3:])+1)
		if _, err := io.ReadFull(c.in, payload); err != nil {
			return
		}
		payload = payload[:len(payload)-1]
		number := binary.BigEndian.Uint16(head[1:])
		ok := true
		switch ch := c.channels[number]; {
		case head[0] == 1:
			ok = c.method(number, binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:]), payload)
		case ch == nil || ch.closed:
		case head[0] == 2:
			ch.left = int(binary.BigEndian.Uint64(payload[4:]))
			ch.message = append(ch.message, payload...)
			ok = ch.left > 0 || c.whole(number, ch)
		case head[0] == 3:
			ch.body = append(ch.body, payload...)
			ch.left -= len(payload)
			ok = ch.left > 0 || c.whole(number, ch)
		}
		if !ok {
			return
		}
	}
}

// confirm sends the confirms that are due.
func (c *scriptedConn) confirm() {
	for number, ch := range c.channels {
		if ch.owed > 0 && !ch.closed {
			c.send(number, method(60, 80, binary.BigEndian.AppendUint64(nil, ch.owed), []byte{1}))
			ch.owed = 0
		}
	}
}

func (c *scriptedConn) method(number, class, id uint16, payload []byte) bool {
	ch := c.channels[number]
	if c.broker.silentFrom == [2]uint16{class, id} {
		_, _ = io.Copy(io.Discard, c.in)
		return false
	}
	switch [2]uint16{class, id} {
	case [2]uint16{10, 11}: // start-ok; frames of 128 KiB
		return c.send(0, method(10, 30, []byte{0, 0}, []byte{0, 2, 0, 0}, []byte{0, 0}))
	case [2]uint16{10, 31}: // tune-ok
	case [2]uint16{10, 40}:
		return c.send(0, method(10, 41, shortstr("")))
	case [2]uint16{10, 50}:
		c.send(0, method(10, 51))
		return false
	case [2]uint16{10, 51}:
		return false
	case [2]uint16{20, 10}:
		c.channels[number] = &scriptedChannel{}
		c.broker.channels.Add(1)
		return c.send(number, method(20, 11, []byte{0, 0, 0, 0}))
	case [2]uint16{20, 40}:
		c.confirm()
		delete(c.channels, number)
		return c.send(number, method(20, 41))
	case [2]uint16{20, 41}: // close-ok
		delete(c.channels, number)
	case [2]uint16{40, 10}:
		return c.send(number, method(40, 11))
	case [2]uint16{85, 10}:
		return c.send(number, method(85, 11))
	case [2]uint16{60, 40}:
		if ch != nil {
			ch.message, ch.body = append([]byte(nil), payload...), nil
		}
	case [2]uint16{90, 10}:
		switch code, _, _ := c.broker.judge(nil, true); code {
		case deaf:
			return true
		case 540:
			return c.end(number, 540, "NOT_IMPLEMENTED - no transactions here", true)
		}
		ch.transaction = true
		return c.send(number, method(90, 11))
	case [2]uint16{90, 30}:
		if ch != nil && !ch.closed {
			return c.send(number, method(90, 31))
		}
	default:
		panic(fmt.Sprintf("scripted broker: method %d.%d", class, id))
	}
	return true
}

// whole judges a message that has arrived.
func (c *scriptedConn) whole(number uint16, ch *scriptedChannel) bool {
	code, text, connection := c.broker.judge(append(ch.message, ch.body...), ch.transaction)
	if code != 0 {
		return c.end(number, code, text, connection)
	}
	if ch.transaction {
		return true
	}
	c.broker.mu.Lock()
	c.broker.got = append(c.broker.got, sinktest.Delivered{Value: ch.body})
	c.broker.mu.Unlock()
	ch.tag++
	ch.owed = ch.tag
	return true
}

// end closes the channel or the connection.
func (c *scriptedConn) end(number uint16, code int, text string, connection bool) bool {
	if code == cut {
		return false
	}
	text = strings.ToValidUTF8(text[:min(len(text), 255)], "")
	args := append(binary.BigEndian.AppendUint16(nil, uint16(code)), shortstr(text)...)
	args = append(args, 0, 60, 0, 40)
	if connection {
		c.send(0, method(10, 50, args))
		for number := range c.channels { // nothing more is handled
			c.channels[number].closed = true
		}
		return true
	}
	c.channels[number].closed = true
	return c.send(number, method(20, 40, args))
}

// scriptedListener accepts connections and sends nothing.
func scriptedListener(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.Addr().String()
}
