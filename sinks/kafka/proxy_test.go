package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/segmentio/kafka-go/protocol"
)

// proxy is the network between a sink and its brokers. It knows Kafka's frames, so that a test can
// lose or keep back a certain request or answer. Config.dial is where it is put in.
type proxy struct {
	ln net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	dialM sync.Mutex    // one dial at a time, so that accepted connections match their targets
	open  chan struct{} // closed while traffic flows
	done  chan struct{}
	conns map[net.Conn]struct{}
	dials int
	// request is asked about each request, answer about each answer, by the API key of the request.
	request func(key protocol.ApiKey, frame []byte) fate
	answer  func(key protocol.ApiKey) fate
	delayed []delayed
}

type fate int

const (
	forward fate = iota
	// keep a request back until release, with the connection to the broker that it is on
	delay
	cut // close the connection instead
)

type delayed struct {
	upstream net.Conn
	frame    []byte
	answer   chan []byte
}

func newProxy(t testing.TB) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, open: make(chan struct{}), done: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	close(p.open)
	t.Cleanup(func() {
		close(p.done)
		p.cutAll()
		_ = ln.Close()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) use(c *Config) { c.dial = p.dial }

func (p *proxy) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	p.dialM.Lock()
	defer p.dialM.Unlock()
	p.mu.Lock()
	p.dials++
	p.mu.Unlock()
	upstream, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	// not under ctx: a connection given up would still be accepted
	client, err := net.Dial("tcp", p.ln.Addr().String())
	if err != nil {
		_ = upstream.Close()
		return nil, err
	}
	inner, err := p.ln.Accept()
	if err != nil {
		_ = upstream.Close()
		_ = client.Close()
		return nil, err
	}
	c := &proxied{proxy: p, inner: inner, upstream: upstream}
	p.mu.Lock()
	p.conns[inner], p.conns[upstream] = struct{}{}, struct{}{}
	p.mu.Unlock()
	p.wg.Go(c.requests)
	p.wg.Go(c.answers)
	return client, nil
}

// stall stops all traffic, both ways, until resume is called.
func (p *proxy) stall() (resume func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gate := make(chan struct{})
	p.open = gate
	return sync.OnceFunc(func() { close(gate) })
}

// cutAll closes all connections.
func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
}

func (p *proxy) flows() bool {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	select {
	case <-open:
		return true
	case <-p.done:
		return false
	}
}

// script sets what happens to requests and answers.
func (p *proxy) script(request func(protocol.ApiKey, []byte) fate, answer func(protocol.ApiKey) fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.request, p.answer = request, answer
}

func (p *proxy) delayedRequests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.delayed)
}

// release sends the delayed requests to the broker now, each over the connection that it came by,
// and returns the error codes of the first partition in the answers.
func (p *proxy) release(t testing.TB) []int16 {
	t.Helper()
	p.mu.Lock()
	all := p.delayed
	p.delayed = nil
	p.mu.Unlock()
	var codes []int16
	for _, h := range all {
		if _, err := h.upstream.Write(h.frame); err != nil {
			t.Fatalf("release: %v", err)
		}
		answer, ok := <-h.answer
		if !ok {
			t.Fatal("no answer to the delayed request")
		}
		// size, correlation, one topic with its name, one partition with its index, error code
		at := 4 + 4 + 4
		at += 2 + int(binary.BigEndian.Uint16(answer[at:])) + 4 + 4
		codes = append(codes, int16(binary.BigEndian.Uint16(answer[at:])))
	}
	return codes
}

type proxied struct {
	proxy           *proxy
	inner, upstream net.Conn

	mu   sync.Mutex
	keys []protocol.ApiKey // of unanswered requests
	// set when a request is delayed: upstream stays open, the answer goes here
	kept chan []byte
}

func (c *proxied) close() {
	_ = c.inner.Close()
	c.mu.Lock()
	kept := c.kept
	c.mu.Unlock()
	if kept == nil {
		_ = c.upstream.Close()
	}
}

func (c *proxied) requests() {
	defer c.close()
	for {
		frame, err := readFrame(c.inner)
		if err != nil || !c.proxy.flows() {
			return
		}
		key := protocol.ApiKey(binary.BigEndian.Uint16(frame[4:]))
		c.proxy.mu.Lock()
		f := forward
		if c.proxy.request != nil {
			f = c.proxy.request(key, frame)
		}
		if f == delay {
			c.mu.Lock()
			c.kept = make(chan []byte, 1)
			c.mu.Unlock()
			c.proxy.delayed = append(c.proxy.delayed, delayed{c.upstream, frame, c.kept})
		}
		c.proxy.mu.Unlock()
		switch f {
		case cut:
			return
		case delay:
			_, _ = io.Copy(io.Discard, c.inner) // until the client gives up
			return
		}
		c.mu.Lock()
		c.keys = append(c.keys, key)
		c.mu.Unlock()
		if _, err := c.upstream.Write(frame); err != nil {
			return
		}
	}
}

func (c *proxied) answers() {
	defer c.close()
	for {
		frame, err := readFrame(c.upstream)
		c.mu.Lock()
		kept := c.kept
		c.mu.Unlock()
		if kept != nil {
			if err == nil {
				kept <- frame
			}
			close(kept)
			_ = c.upstream.Close()
			return
		}
		if err != nil || !c.proxy.flows() {
			return
		}
		c.mu.Lock()
		key := c.keys[0]
		c.keys = c.keys[1:]
		c.mu.Unlock()
		c.proxy.mu.Lock()
		f := forward
		if c.proxy.answer != nil {
			f = c.proxy.answer(key)
		}
		c.proxy.mu.Unlock()
		if f == cut {
			return
		}
		if _, err := c.inner.Write(frame); err != nil {
			return
		}
	}
}

// readFrame returns a request or an answer with its size in front.
func readFrame(r io.Reader) ([]byte, error) {
	size := make([]byte, 4)
	if _, err := io.ReadFull(r, size); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size)
	if n > 200<<20 {
		return nil, errors.New("no frame")
	}
	frame := append(size, make([]byte, n)...)
	_, err := io.ReadFull(r, frame[4:])
	return frame, err
}
