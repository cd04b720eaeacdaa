package pgtest

import (
	"net"
	"net/url"
	"sync"
	"testing"
)

// Proxy is a TCP proxy in front of a server, to break the network between the two.
//
//	passes -- Freeze --> silent: what is sent is swallowed up by buffers, nothing is closed -- Thaw --> passes
//	any state -- Strand --> the connections of now stay silent for ever, nothing is closed, not even when one end closes; new ones pass
//	any state -- Cut --> all connections are reset; new ones pass
type Proxy struct {
	DSN string // the same database, by way of the proxy

	listener net.Listener
	target   string
	copying  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	thawed *sync.Cond
	frozen bool
	age    int // of new connections; those below alive are silent for ever
	alive  int
	left   int64 // bytes to pass to the server before it freezes; negative: no limit
	conns  map[net.Conn]bool
	closed bool
}

// NewProxy starts a proxy in front of the server of dsn, a URL. It ends with the test.
func NewProxy(t testing.TB, dsn string) *Proxy {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("the DSN of the test database is not a URL") // it is not shown: it holds a password
	}
	p := &Proxy{target: u.Host, left: -1, conns: make(map[net.Conn]bool)}
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

// FreezeAfter lets the given number of bytes through to the server, and then freezes: in the middle of a message, maybe.
func (p *Proxy) FreezeAfter(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = bytes
}

// Strand makes all connections of now half-open: no end hears of the other again.
func (p *Proxy) Strand() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.age++
	p.alive = p.age
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
		p.conns[client], p.conns[server] = true, true
		age := p.age
		p.mu.Unlock()
		p.copying.Go(func() { p.forward(server, client, true, age) })
		p.copying.Go(func() { p.forward(client, server, false, age) })
	}
}

func (p *Proxy) forward(to, from net.Conn, up bool, age int) {
	defer func() {
		to.Close()
		from.Close()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		for at := 0; at < n; {
			pass := p.wait(n-at, up, age)
			if _, err := to.Write(buf[at : at+pass]); err != nil {
				return
			}
			at += pass
		}
		if err != nil {
			p.wait(0, false, age)
			return
		}
	}
}

// wait blocks while frozen or stranded, and returns how much of n may pass.
func (p *Proxy) wait(n int, up bool, age int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for (p.frozen || age < p.alive) && !p.closed {
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
