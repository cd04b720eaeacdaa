package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// resolverOf asks that server.
func resolverOf(s *nameServer) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", s.conn.LocalAddr().String())
	}}
}

// conns are the connections that came.
func (r *receiver) conns() []*serverConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open
}

func TestTLS(t *testing.T) {
	secure, certs := serverTLS(t)
	r := newReceiver(t, secure)
	plain := newReceiver(t, nil)
	mutual := secure.Clone()
	mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	pem, err := os.ReadFile(certs.CAFile)
	if err != nil || !mutual.ClientCAs.AppendCertsFromPEM(pem) {
		t.Fatalf("read %s: %v", certs.CAFile, err)
	}
	asking := newReceiver(t, mutual)
	_, other := serverTLS(t)
	for _, tc := range []struct {
		name   string
		of     *receiver
		change func(*Config)
		want   string // of the error; empty: none
	}{
		{"CA", r, func(*Config) {}, ""},
		{"no CA", r, func(c *Config) { c.TLSCAFile = "" }, "RELAY_WEBHOOK_TLS_CA_FILE"},
		{"another CA", r, func(c *Config) { c.TLSCAFile = other.CAFile }, "RELAY_WEBHOOK_TLS_CA_FILE"},
		{"another name", r, func(c *Config) { c.TLSServerName = "hooks.example.com" }, "RELAY_WEBHOOK_TLS_SERVER_NAME"},
		{"the certificate's name", r, func(c *Config) { c.TLSServerName = "localhost" }, ""},
		{"TLS to a plain port", r, func(c *Config) { c.URL = "https://" + plain.addr + "/" }, "http://"},
		{"plain to a TLS port", r, func(c *Config) { c.URL, c.TLSCAFile = "http://"+r.addr+"/", "" }, "answered 400"},
		{"client certificate", asking, func(c *Config) { c.TLSCertFile, c.TLSKeyFile = certs.ClientCert, certs.ClientKey }, ""},
		{"no client certificate", asking, func(*Config) {}, "post to https://127.0.0.1"},
		{"another one's certificate", asking, func(c *Config) { c.TLSCertFile, c.TLSKeyFile = other.ClientCert, other.ClientKey }, "post to https://127.0.0.1"},
		{"nobody listens", r, func(c *Config) { c.URL = "https://127.0.0.1:1/hush?hush=1" }, "nothing listens there"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := tc.of.config()
			cfg.TLSCAFile = certs.CAFile
			tc.change(&cfg)
			before := len(tc.of.got())
			s := open(t, cfg)
			err := outcomes(t, 1, s.Publish(soon(t), sinktest.Records("OrderCreated", "a", 0, 1)))[0]
			switch {
			case tc.want == "":
				if err != nil {
					t.Fatal(err)
				}
				if got := tc.of.got(); len(got) != before+1 || got[before].ProtoMajor != 2 {
					t.Errorf("%d requests, want one more, by HTTP/2", len(got)-before)
				}
				if err := s.Check(soon(t)); err != nil {
					t.Errorf("check: %v", err)
				}
			case err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hush"):
				t.Errorf("got %v, want it to have %q", err, tc.want)
			default:
				if _, refused := relay.Refused(err); refused && !strings.Contains(tc.want, "400") {
					t.Errorf("refused: %v", err)
				}
			}
		})
	}
}

// A name that does not resolve is the setting's fault, and events wait.
func TestUnresolved(t *testing.T) {
	cfg := DefaultConfig()
	cfg.URL, cfg.resolver = "https://no-such-host.invalid/hush", resolverOf(newNameServer(t, [4]byte{}))
	err := open(t, cfg).Check(soon(t))
	var setup *relay.SetupError
	if !errors.As(err, &setup) || !strings.Contains(setup.Fix, "RELAY_WEBHOOK_URL") || strings.Contains(err.Error(), "hush") {
		t.Errorf("got %v, want what to do", err)
	}
}

// A named sink's texts have its own variables.
func TestNamed(t *testing.T) {
	cfg := DefaultConfig()
	cfg.URL = "http://127.0.0.1:1/"
	cfg.Call("audit", func(text string) string { return strings.ReplaceAll(text, "RELAY_WEBHOOK_", "RELAY_SINK_AUDIT_") })
	s := open(t, cfg)
	if err := s.Check(soon(t)); s.Name() != "audit" || err == nil || !strings.Contains(err.Error(), "RELAY_SINK_AUDIT_URL") || strings.Contains(err.Error(), "RELAY_WEBHOOK") {
		t.Errorf("%s: %v", s.Name(), err)
	}
	if p := s.Place(nil); p.Host != "127.0.0.1" || p.Port != 1 {
		t.Errorf("place %+v", p)
	}
}
