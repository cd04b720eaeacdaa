package webhook

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestKindOfAddress(t *testing.T) {
	for kind, list := range map[addressKind][]string{
		publicAddress:    {"8.8.8.8", "203.0.113.7", "2001:4860:4860::8888", "64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8", "172.32.0.1", "100.128.0.1"},
		privateAddress:   {"127.0.0.1", "127.255.0.1", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fd12::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:c0a8:101::1", "::ffff:127.0.0.1"},
		forbiddenAddress: {"169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1", "fe80::1%eth0", "0.0.0.0", "::", "0.1.2.3", "224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "fec0::1"},
	} {
		for _, s := range list {
			if got := kindOf(netip.MustParseAddr(s)); got != kind {
				t.Errorf("%s: got %d, want %d", s, got, kind)
			}
		}
	}
}

func TestMeansInside(t *testing.T) {
	for host, want := range map[string]bool{
		"orders": true, "localhost": true, "orders.shop.svc": true, "orders.shop.svc.cluster.local": true, "ORDERS.Shop.SVC.": true, "host.docker.internal": true, "127.0.0.1": true, "::1": true, "10.1.2.3": true,
		"hooks.example.com": false, "8.8.8.8": false, "169.254.169.254": false, "svc.example.com": false, "notlocal": true, "evil.notlocal": false, "10.1.2.3.nip.io": false,
	} {
		if got := meansInside(host); got != want {
			t.Errorf("%s: got %t, want %t", host, got, want)
		}
	}
}

// nameServer answers every question for an address with the one that it has at the moment; with
// 0.0.0.0, that the name does not exist.
type nameServer struct {
	conn net.PacketConn

	mu   sync.Mutex
	ip   [4]byte // guarded by mu
	asks int     // guarded by mu
}

func newNameServer(t *testing.T, ip [4]byte) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{conn: conn, ip: ip}
	var serving sync.WaitGroup
	serving.Go(s.serve)
	t.Cleanup(func() {
		_ = conn.Close()
		serving.Wait()
	})
	return s
}

func (s *nameServer) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.Additionals = true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			s.mu.Lock()
			s.asks++
			if s.ip == [4]byte{} {
				m.RCode = dnsmessage.RCodeNameError
			}
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, Type: q.Type}, Body: &dnsmessage.AResource{A: s.ip}}}
			s.mu.Unlock()
		}
		if packed, err := m.Pack(); err == nil {
			_, _ = s.conn.WriteTo(packed, from)
		}
	}
}

// A public name that leads to this machine, now or later, gets no connection; and with the setting
// it does.
func TestGuard(t *testing.T) {
	r := newReceiver(t, nil)
	names := newNameServer(t, [4]byte{127, 0, 0, 1})
	cfg := r.config()
	_, port, _ := net.SplitHostPort(r.addr)
	cfg.URL = "http://hooks.example.com:" + port + "/hush"
	cfg.resolver = resolverOf(names)
	s := open(t, cfg)
	recs := sinktest.Records("OrderCreated", "a", 0, 2)
	check := func(what string, err error) {
		t.Helper()
		var setup *relay.SetupError
		if !errors.Is(err, errGuarded) || !errors.As(err, &setup) || !strings.Contains(setup.Fix, "RELAY_WEBHOOK_ALLOW_PRIVATE=true") || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v, want it refused, and what to do", what, err)
		}
	}
	for _, err := range outcomes(t, 2, s.Publish(soon(t), recs)) {
		check("publish", err)
	}
	check("check", s.Check(soon(t)))
	if r.count() > 0 || len(r.conns()) > 0 {
		t.Error("a connection was made")
	}
	names.mu.Lock()
	if names.asks == 0 {
		t.Error("the name was not looked up")
	}
	names.mu.Unlock()

	cfg.AllowPrivate = true
	if err := open(t, cfg).Publish(soon(t), recs); err != nil || r.count() != 2 {
		t.Errorf("allowed: %v, %d requests", err, r.count())
	}
	names.mu.Lock()
	names.ip = [4]byte{169, 254, 169, 254}
	names.mu.Unlock()
	if err := open(t, cfg).Check(soon(t)); !errors.Is(err, errGuarded) {
		t.Errorf("the cloud's metadata: %v, want it refused although private addresses are allowed", err)
	}
	// A service of the cluster needs no setting.
	names.mu.Lock()
	names.ip = [4]byte{127, 0, 0, 1}
	names.mu.Unlock()
	cfg.AllowPrivate = false
	cfg.URL = "http://receiver.shop.svc.cluster.local.:" + port + "/"
	if err := open(t, cfg).Publish(soon(t), recs); err != nil {
		t.Errorf("a service: %v", err)
	}
}
