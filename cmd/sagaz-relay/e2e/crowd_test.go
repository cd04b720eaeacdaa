package e2e

import (
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// A thousand connections that ask for the metrics and never read cost the relay neither its lease
// nor its probes, and events flow.
func TestCrowdCostsNoLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := toFile(t)
	p := w.relay("relay-a", d.env)
	p.waitStreaming()
	epoch := value[int64](w, `SELECT epoch FROM saga_outbox_relay`)

	const crowd = 1000
	for i := range crowd {
		conn, err := net.DialTimeout("tcp", p.addr, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		for range 20 {
			// it may have been closed for a newer one
			_, _ = conn.Write([]byte("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))
		}
		if i%100 != 0 {
			continue
		}
		w.insert(row{key: "k", topic: "t"})
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
		res, err := client.Get("http://" + p.addr + "/health/live")
		if err != nil {
			t.Fatalf("with %d connections: %v", i, err)
		}
		res.Body.Close()
	}
	if got := w.waitNonePending(p); got["sent"] != crowd/100 {
		t.Errorf("rows by status: %v, want %d sent", got, crowd/100)
	}
	if got := p.role(); got != relay.Owner {
		t.Errorf("the relay is %s, want owner", got)
	}
	if got := value[int64](w, `SELECT epoch FROM saga_outbox_relay`); got != epoch {
		t.Errorf("epoch %d, want %d: the lease was lost", got, epoch)
	}
}
