package pgtest

import (
	"bytes"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// Proxy is a TCP proxy in front of a server, to break the network between the two.
//
//	passes -- Freeze --> silent: buffers take what is sent, nothing is closed -- Thaw --> passes
//	any state -- Strand --> present connections stay silent for ever, nothing is closed, not even
//	    when one end closes; new ones pass
//	any state -- StrandNamed --> the same for connections of one application_name
//	any state -- Cut --> all connections are reset; new ones pass
type Proxy struct {
	DSN string // the same database, by way of the proxy

	listener net.Listener
	target   string
	copying  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	thawed *sync.Cond
	frozen bool
	left   int64 // bytes to pass to the server before it freezes; negative: no limit
	conns  map[net.Conn]*link
	closed bool
}

// link is a connection that passes; guarded by Proxy.mu.
type link struct {
	application string // application_name, once the client has sent it
	stranded    bool   // it is silent for ever
}

// NewProxy starts a proxy in front of the server of dsn, a URL. It ends with the test.
func NewProxy(t testing.TB, dsn string) *Proxy {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("the DSN of the test database is not a URL") // it is not shown: it has a password
	}
	p := &Proxy{target: u.Host, left: -1, conns: make(map[net.Conn]*link)}
	p.thawed = sync.NewCond(&p.mu)
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	u.Host = p.listener.Addr().String()
	p.DSN = u.String()
	p.copying.Go(p.accept)
	t.Cleanup(func() {
		p.listener.Close()
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.Thaw()
		p.Cut()
		p.copying.Wait()
	})
	return p
}

// Freeze stops forwarding, both ways.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = true
}

// FreezeAfter lets the given number of bytes through to the server, and then freezes: in the middle
// of a message, maybe.
func (p *Proxy) FreezeAfter(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = bytes
}

// Strand makes all present connections half-open: neither end gets anything from the other again.
func (p *Proxy) Strand() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.conns {
		l.stranded = true
	}
}

// StrandNamed makes those connections half-open whose application_name begins with the prefix, and
// returns how many.
func (p *Proxy) StrandNamed(prefix string) (stranded int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := make(map[*link]bool)
	for _, l := range p.conns {
		if strings.HasPrefix(l.application, prefix) && !l.stranded && !seen[l] {
			seen[l], l.stranded = true, true
			stranded++
		}
	}
	return stranded
}

// Thaw goes on where Freeze has stopped; nothing is lost.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen, p.left = false, -1
	p.thawed.Broadcast()
}

// Cut resets all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		c.Close()
	}
	clear(p.conns)
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		if p.closed {
			client.Close()
			server.Close()
		}
		l := &link{}
		p.conns[client], p.conns[server] = l, l
		p.mu.Unlock()
		p.copying.Go(func() { p.forward(server, client, true, l) })
		p.copying.Go(func() { p.forward(client, server, false, l) })
	}
}

// note reads the application_name in the first message of a client of PostgreSQL.
func (p *Proxy) note(l *link, message []byte) {
	const key = "\x00application_name\x00"
	at := bytes.Index(message, []byte(key))
	if at < 0 {
		return
	}
	name, _, _ := bytes.Cut(message[at+len(key):], []byte{0})
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.application == "" {
		l.application = string(name)
	}
}

func (p *Proxy) forward(to, from net.Conn, up bool, l *link) {
	defer func() {
		to.Close()
		from.Close()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if up {
			p.note(l, buf[:n])
		}
		for at := 0; at < n; {
			pass := p.wait(n-at, up, l)
			if _, err := to.Write(buf[at : at+pass]); err != nil {
				return
			}
			at += pass
		}
		if err != nil {
			p.wait(0, false, l)
			return
		}
	}
}

// wait blocks while frozen or stranded, and returns how much of n may pass.
func (p *Proxy) wait(n int, up bool, l *link) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for (p.frozen || l.stranded) && !p.closed {
		p.thawed.Wait()
	}
	if up && p.left >= 0 && !p.closed {
		n = int(min(int64(n), p.left))
		if p.left -= int64(n); p.left == 0 {
			p.frozen = true
		}
	}
	return n
}
