package admin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
)

const token = "0123456789abcdef-secret"

func TestToken(t *testing.T) {
	h := Handler(Config{Token: token}, statusOf(watch.SlotStatus{Role: relay.Standby}), prometheus.NewRegistry())
	ask := func(path string, auth func(*http.Request)) *httptest.ResponseRecorder {
		req := httptest.NewRequest("GET", path, nil)
		auth(req)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		return rec
	}
	header := func(value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", value) }
	}
	basic := func(user, password string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(user, password) }
	}
	for name, tt := range map[string]struct {
		auth func(*http.Request)
		code int
	}{
		"None":          {func(*http.Request) {}, 401},
		"Bearer":        {header("Bearer " + token), 200},
		"BearerInLower": {header("bearer " + token), 200},
		"BearerWrong":   {header("Bearer " + token + "x"), 401},
		"BearerPart":    {header("Bearer " + token[:10]), 401},
		"BearerEmpty":   {header("Bearer "), 401},
		"OtherScheme":   {header("Digest " + token), 401},
		"BasicAnyUser":  {basic("me", token), 200},
		"BasicNoUser":   {basic("", token), 200},
		"BasicAsUser":   {basic(token, ""), 401},
		"InTheQuery":    {func(r *http.Request) { r.URL.RawQuery = "token=" + token }, 401},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"/", "/status.json", "/metrics", "/page.js"} {
				rec := ask(path, tt.auth)
				if rec.Code != tt.code {
					t.Errorf("%s: got %d, want %d", path, rec.Code, tt.code)
				}
				if rec.Code == 401 && !strings.HasPrefix(rec.Header().Get("WWW-Authenticate"), "Basic ") {
					t.Errorf("%s: a browser would not ask: %v", path, rec.Header())
				}
				if strings.Contains(rec.Body.String(), token) {
					t.Errorf("%s shows the token", path)
				}
			}
			// Probes keep no secret.
			for _, path := range []string{"/health/live", "/health/ready"} {
				if rec := ask(path, tt.auth); rec.Code != 200 {
					t.Errorf("%s: got %d, want 200", path, rec.Code)
				}
			}
			if rec := ask("/nowhere", tt.auth); tt.code == 401 && rec.Code != 401 {
				t.Errorf("/nowhere shows a stranger what is there: %d", rec.Code)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, ""},
		{Config{Token: token, CertFile: "a", KeyFile: "b"}, ""},
		{Config{Token: "short"}, "at least 16"},
		{Config{Token: "with a space in between"}, "without spaces"},
		{Config{CertFile: "a"}, "want both or neither"},
		{Config{KeyFile: "a"}, "want both or neither"},
	} {
		err := tt.cfg.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "short")) {
			t.Errorf("%+v: got %v, want %q", tt.cfg, err, tt.want)
		}
	}
}

// The headers are on every answer, so that nothing which comes from a row can be made to run.
func TestHeaders(t *testing.T) {
	h := Handler(Config{Token: token}, statusOf(watch.SlotStatus{}), prometheus.NewRegistry())
	for _, path := range []string{"/", "/status.json", "/metrics", "/health/live", "/nowhere"} {
		_, header, _ := get(t, h, "GET", path)
		csp := header.Get("Content-Security-Policy")
		for _, part := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"} {
			if !strings.Contains(csp, part) {
				t.Errorf("%s: CSP %q lacks %s", path, csp, part)
			}
		}
		if strings.Contains(csp, "unsafe") || strings.Contains(csp, "http") || strings.Contains(csp, "*") {
			t.Errorf("%s: CSP %q is not strict", path, csp)
		}
		if header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: headers %v", path, header)
		}
	}
}

// pairOf writes a certificate for a name, and its key.
func pairOf(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	return pairUntil(t, dir, name, time.Now().Add(time.Hour))
}

func pairUntil(t *testing.T, dir, name string, end time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: end.Add(-24 * time.Hour), NotAfter: end,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		// All of one size.
		text := append(pem.EncodeToMemory(block), bytes.Repeat([]byte("\n"), 2048)...)[:2048]
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// serve runs a server until the test ends, and returns what it logs.
func serve(t *testing.T, cfg Config, r Relay) (*Server, *bytes.Buffer) {
	t.Helper()
	var text bytes.Buffer
	cfg.Addr = "127.0.0.1:0"
	s, err := Listen(cfg, r, prometheus.NewRegistry(), hclog.New(&hclog.LoggerOptions{Output: &text, Level: hclog.Info}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, &text
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := pairOf(t, dir, "first.example")
	s, _ := serve(t, Config{CertFile: cert, KeyFile: key}, statusOf(watch.SlotStatus{Role: relay.Standby}))
	name := func(max uint16) (string, error) {
		conn, err := tls.Dial("tcp", s.Addr(), &tls.Config{InsecureSkipVerify: true, MaxVersion: max})
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
	}
	if got, err := name(0); err != nil || got != "first.example" {
		t.Fatalf("got %q, %v", got, err)
	}
	if got, err := name(tls.VersionTLS11); err == nil {
		t.Errorf("TLS 1.1 is spoken, with %q", got)
	}
	// A renewal: the key arrives before the certificate, and in between the old pair serves.
	other := t.TempDir()
	newCert, newKey := pairOf(t, other, "second.example")
	replace := func(from, to string) {
		// A clock's tick is longer than it takes to write two files, so they may have one time, and
		// one size.
		old, err := os.Stat(to)
		if err == nil {
			err = os.Chtimes(from, old.ModTime(), old.ModTime())
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	replace(newKey, key)
	if got, err := name(0); err != nil || got != "first.example" {
		t.Errorf("with half of the new pair: got %q, %v", got, err)
	}
	replace(newCert, cert)
	if got, err := name(0); err != nil || got != "second.example" {
		t.Errorf("with the new pair: got %q, %v", got, err)
	}
	// Plain HTTP is answered as such, and does no harm.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if res, err := client.Get("http://" + s.Addr() + "/health/live"); err == nil {
		res.Body.Close()
		if res.StatusCode == http.StatusOK {
			t.Error("plain HTTP got an answer on the TLS port")
		}
	}
	if !strings.HasPrefix(s.URL(), "https://127.0.0.1:") {
		t.Errorf("URL %s", s.URL())
	}
}

// A certificate whose time is over stays in use, and that is logged, once.
func TestTLSExpired(t *testing.T) {
	var text bytes.Buffer
	log := hclog.New(&hclog.LoggerOptions{Output: &text, Level: hclog.Info})
	dir := t.TempDir()
	load := func(end time.Time) *pair {
		t.Helper()
		cert, key := pairUntil(t, dir, "relay.example", end)
		p, err := loadPair(cert, key, log)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	load(time.Now().Add(time.Minute)).get()
	if text.Len() != 0 {
		t.Errorf("of a good one: %s", text.String())
	}
	p := load(time.Now().Add(-time.Minute))
	for range 3 {
		if p.get() == nil {
			t.Error("it does not serve")
		}
	}
	if n := strings.Count(text.String(), "the certificate is not valid now"); n != 1 {
		t.Errorf("%d lines: %s", n, text.String())
	}
	text.Reset()
	load(time.Now().Add(48 * time.Hour))
	if !strings.Contains(text.String(), "not_before") {
		t.Errorf("of one whose time has not come: %s", text.String())
	}
	pairUntil(t, dir, "relay.example", time.Now().Add(time.Hour)) // renewed
	text.Reset()
	p.get()
	p.get()
	if got := text.String(); !strings.Contains(got, "read again") || strings.Contains(got, "not valid now") {
		t.Errorf("renewed: %s", got)
	}
}

func TestTLSFilesThatAreNotThere(t *testing.T) {
	_, err := Listen(Config{Addr: "127.0.0.1:0", CertFile: "/nonexistent.crt", KeyFile: "/nonexistent.key"}, statusOf(watch.SlotStatus{}), prometheus.NewRegistry(), hclog.NewNullLogger())
	if err == nil || !strings.Contains(err.Error(), "RELAY_HTTP_TLS_CERT_FILE") || !strings.Contains(err.Error(), "/nonexistent.crt") {
		t.Errorf("got %v, want the setting and the file", err)
	}
}

// Peers that dribble their request are sent away, and delay no other meanwhile.
func TestSlowPeers(t *testing.T) {
	s, _ := serve(t, Config{}, statusOf(watch.SlotStatus{Role: relay.Standby}))
	var slow []net.Conn
	for range 50 {
		conn, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /status.json HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		slow = append(slow, conn)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + s.Addr() + "/health/live")
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("a probe among slow peers: %v, %v", res, err)
	}
	res.Body.Close()
	for _, conn := range slow {
		_ = conn.SetReadDeadline(time.Now().Add(10 * headerTimeout)) // a loaded machine
		answer, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil && !strings.Contains(answer, " 408 ") || err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatalf("a slow peer got %q, %v; want to be cut off", answer, err)
		}
	}
	// A header without end.
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nX-Long: "+strings.Repeat("x", 64<<10)+"\r\n\r\n") //nolint:errcheck // it is cut off; ends with conn
	_ = conn.SetReadDeadline(time.Now().Add(10 * headerTimeout))
	if answer, err := bufio.NewReader(conn).ReadString('\n'); err == nil && !strings.Contains(answer, " 431 ") {
		t.Errorf("a header of 64 KiB got %q", answer)
	}
}
