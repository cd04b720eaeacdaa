package chaos

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// link is the network between relays and one server: a TCP proxy that can be made worse while they
// talk.
type link struct {
	addr string // where clients connect

	fault    sync.Mutex // held by the fault that has the link
	listener net.Listener
	copying  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	changed *sync.Cond // the state, or conns
	target  string
	state   linkState
	delay   time.Duration
	conns   map[net.Conn]bool   // accepted and dialled ones
	names   map[net.Conn]string // application_name of clients of PostgreSQL, of both ends
	muted   string              // connections whose name begins so are silent; "" for none
	closed  bool
}

// linkState is how well a link works.
type linkState string

const (
	linkOpen linkState = "open"
	linkSlow linkState = "slow" // what is sent arrives later
	// nothing arrives, and nobody hears of it: half-open connections
	linkSilent linkState = "silent"
	// what clients send arrives, and what they are answered does not
	linkDeaf linkState = "deaf"
	linkCut  linkState = "cut" // connections are reset, new ones too
)

// newLink starts a link to nowhere; see connect. It ends with the test.
func newLink(t testing.TB) *link {
	t.Helper()
	l := &link{state: linkOpen, conns: make(map[net.Conn]bool), names: make(map[net.Conn]string)}
	l.changed = sync.NewCond(&l.mu)
	var err error
	if l.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	l.addr = l.listener.Addr().String()
	l.copying.Go(l.accept)
	t.Cleanup(func() {
		l.listener.Close()
		l.mu.Lock()
		l.closed = true
		l.reset()
		l.mu.Unlock()
		l.copying.Wait()
	})
	return l
}

// connect sets where the link leads.
func (l *link) connect(target string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.target = target
}

// set changes the state. What a silent or deaf link held back arrives when it is open again.
func (l *link) set(state linkState, delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.delay = state, delay
	if state == linkCut {
		l.reset()
	}
	l.changed.Broadcast()
}

// mute makes those connections silent whose application_name begins with the prefix, the new ones
// too; "" ends it.
func (l *link) mute(prefix string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.muted = prefix
	l.changed.Broadcast()
}

// note reads the application_name in what a client of PostgreSQL sends first.
func (l *link) note(client, server net.Conn, sent []byte) {
	const key = "\x00application_name\x00"
	at := bytes.Index(sent, []byte(key))
	if at < 0 {
		return
	}
	name, _, _ := bytes.Cut(sent[at+len(key):], []byte{0})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names[client] == "" {
		l.names[client], l.names[server] = string(name), string(name)
	}
}

// heal opens the link. With forget, what it held back is lost, and the connections are reset, as by
// a router that has forgotten them.
func (l *link) heal(forget bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if forget {
		l.reset()
	}
	l.state, l.delay, l.muted = linkOpen, 0, ""
	l.changed.Broadcast()
}

// reset resets all connections. The caller holds mu.
func (l *link) reset() {
	for c := range l.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // only how the end looks
		}
		c.Close()
	}
	clear(l.conns)
	l.changed.Broadcast()
}

func (l *link) accept() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.mu.Lock()
		l.conns[client] = true
		if l.state == linkCut || l.closed {
			l.reset()
		}
		l.mu.Unlock()
		l.copying.Go(func() { l.serve(client) })
	}
}

// serve connects a client to the target, when the link is open, and copies both ways.
func (l *link) serve(client net.Conn) {
	defer client.Close()
	if !l.wait(client, true) {
		return
	}
	l.mu.Lock()
	target := l.target
	l.mu.Unlock()
	server, err := net.Dial("tcp", target)
	l.mu.Lock()
	if err != nil || !l.conns[client] {
		if err == nil {
			server.Close()
		}
		if tcp, ok := client.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		delete(l.conns, client)
		l.mu.Unlock()
		return
	}
	l.conns[server] = true
	l.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { l.forward(server, client, true) })
	both.Go(func() { l.forward(client, server, false) })
	both.Wait()
	l.mu.Lock()
	delete(l.conns, client)
	delete(l.conns, server)
	delete(l.names, client)
	delete(l.names, server)
	l.mu.Unlock()
}

func (l *link) forward(to, from net.Conn, up bool) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if up {
			l.note(from, to, buf[:n])
		}
		if !l.wait(from, up) { // an end, too, is heard of only when the link is open
			return
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait blocks while the link lets nothing pass in this direction, and for its delay. False means
// that the connection was reset.
func (l *link) wait(c net.Conn, up bool) bool {
	l.mu.Lock()
	for l.conns[c] && (l.state == linkSilent || l.state == linkDeaf && !up || l.muted != "" && strings.HasPrefix(l.names[c], l.muted)) {
		l.changed.Wait()
	}
	alive, delay := l.conns[c], l.delay
	l.mu.Unlock()
	if alive && delay > 0 {
		time.Sleep(delay) // it is what this link is for
	}
	return alive
}
