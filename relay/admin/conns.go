package admin

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// mostConns is how many connections are open at a time: some browsers, scrapers and probes, and
	// some more.
	mostConns = 128
	// spared is the age below which a connection is not closed for a new one, as long as there is
	// an older one.
	spared = time.Second
)

// conns bounds the open connections. One more than that is taken all the same, and an older one is
// closed for it. So a client that opens connections and does not read, or does not ask, cannot keep
// a probe out.
type conns struct {
	mu   sync.Mutex // guards open
	open map[net.Conn]*connState
}

type connState struct {
	since  time.Time
	active bool // a request is being answered
}

func newConns() *conns { return &conns{open: make(map[net.Conn]*connState)} }

// state is http.Server's ConnState.
func (c *conns) state(conn net.Conn, state http.ConnState) {
	var victim net.Conn
	c.mu.Lock()
	switch known := c.open[conn]; state {
	case http.StateNew:
		c.open[conn] = &connState{since: time.Now()}
		if len(c.open) > mostConns {
			victim = c.oldest(conn)
			delete(c.open, victim)
		}
	case http.StateActive, http.StateIdle:
		if known != nil {
			known.active = state == http.StateActive
		}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
	c.mu.Unlock()
	if victim != nil {
		closeAtOnce(victim)
	}
}

// oldest is the connection to close for a new one. Those that wait for a request come before those
// that are being answered, and old ones before those that have just come. The caller holds mu.
func (c *conns) oldest(but net.Conn) net.Conn {
	var found net.Conn
	var best connState
	young := time.Now().Add(-spared)
	worse := func(a, b *connState) bool {
		if x, y := a.since.Before(young), b.since.Before(young); x != y {
			return x
		}
		if a.active != b.active {
			return !a.active
		}
		return a.since.Before(b.since)
	}
	for conn, s := range c.open {
		if conn != but && (found == nil || worse(s, &best)) {
			found, best = conn, *s
		}
	}
	return found
}

// closeAtOnce sends no close_notify, which over TLS waits for a peer that does not read.
func closeAtOnce(conn net.Conn) {
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn()
	}
	_ = conn.Close() // it is given up
}
